"""Copies of options, which share no container with the caller and every object."""

import copy
from typing import Any

import numpy as np
from sae_lens.config import LoggingConfig
from sae_lens.saes.sae import SAEMetadata, TrainingSAEConfig


def own_copy(value: Any) -> Any:
    """
    Copy an option deeply enough to change it, but keep objects such as a loaded model.

    Args:
        value: What was given for the option.
    """
    if isinstance(value, dict):
        return {name: own_copy(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value)(own_copy(item) for item in value)
    if isinstance(value, SAEMetadata):
        return SAEMetadata(**own_copy(value.to_dict()))
    if isinstance(value, TrainingSAEConfig):
        copied = copy.copy(value)
        vars(copied).update(own_copy(vars(value)))
        return copied
    if isinstance(value, LoggingConfig | np.ndarray):
        return copy.copy(value)
    return value
