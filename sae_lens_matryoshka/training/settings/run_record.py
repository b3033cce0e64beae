"""What of a run's configuration is written down: plain values that JSON holds."""

import copy
import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from sae_lens import LanguageModelSAERunnerConfig, TrainingSAEConfig

T = TypeVar("T", bound=LanguageModelSAERunnerConfig[Any])

# Options that may hold objects for SAELens to pass on: a model, a tokenizer, a torch.dtype.
OPTIONS_OF_THE_MODEL = ("model_kwargs", "model_from_pretrained_kwargs")

_PATHS = ("output_path", "checkpoint_path", "resume_from_checkpoint")

_DESCRIBED = re.compile(r"<\S+ object>")


def with_plain_values(
    cfg: LanguageModelSAERunnerConfig[Any],
) -> LanguageModelSAERunnerConfig[Any]:
    """
    Return a copy of a configuration whose values can be written as JSON.

    Paths, NumPy scalars, devices and data types become strings and numbers, and "~" in the paths
    that a run writes to is expanded. Options that are passed to the model are kept as they are.

    Args:
        cfg: The configuration; left as it is.

    Raises:
        TypeError: A value has no JSON form.
    """
    cfg = copy.copy(cfg)
    for field in fields(cfg):
        value = getattr(cfg, field.name)
        if field.name == "logger":
            value = copy.copy(value)
            for each in fields(value):
                setattr(value, each.name, plain(getattr(value, each.name), f"logger.{each.name}"))
        elif field.name == "sae":
            value = with_plain_fields(value)
        elif field.name in _PATHS and value is not None:
            value = os.path.expanduser(plain(value, field.name))
        elif field.name not in OPTIONS_OF_THE_MODEL:
            value = plain(value, field.name)
        setattr(cfg, field.name, value)
    return cfg


def with_plain_fields(sae_cfg: TrainingSAEConfig) -> TrainingSAEConfig:
    """Return a copy of an SAE's configuration whose values, metadata too, can be written as JSON."""
    sae_cfg = copy.copy(sae_cfg)
    sae_cfg.metadata = copy.copy(sae_cfg.metadata)
    make_plain(sae_cfg)
    return sae_cfg


def make_plain(sae_cfg: TrainingSAEConfig) -> None:
    """Convert the values of an SAE's configuration, metadata too, to what JSON holds."""
    for field in fields(sae_cfg):
        if field.name != "metadata":
            setattr(sae_cfg, field.name, plain(getattr(sae_cfg, field.name), field.name))
    for name, value in sae_cfg.metadata.to_dict().items():
        if name in OPTIONS_OF_THE_MODEL:
            setattr(sae_cfg.metadata, name, _without_objects(value))
        else:
            setattr(sae_cfg.metadata, name, plain(value, f"metadata.{name}"))


def record_of(cfg: LanguageModelSAERunnerConfig[Any]) -> dict[str, Any]:
    """
    Return what runner_cfg.json holds of a configuration with plain values.

    An object among the options of the model is described by its class, not copied.
    """
    return with_objects_described(cfg).to_dict()


def with_objects_described(cfg: T) -> T:
    """Return a copy of a configuration, in which a description stands for each object of the model."""
    cfg = copy.copy(cfg)
    for name in OPTIONS_OF_THE_MODEL:
        setattr(cfg, name, _described(getattr(cfg, name)))
    return cfg


def plain(value: Any, name: str) -> Any:
    """
    Convert a value to one that JSON holds.

    Args:
        value: None, a string, a number, a path, a NumPy scalar or array, a tensor, a device, a data
            type, or a list, tuple or dictionary of these.
        name: The option's name, for the error.

    Raises:
        TypeError: The value has no JSON form.
    """
    if isinstance(value, (list, tuple)):
        return type(value)(plain(item, f"{name}[{i}]") for i, item in enumerate(value))
    if isinstance(value, dict):
        return {plain(key, name): plain(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (np.generic, np.ndarray, torch.Tensor)):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"{name}={value!r} is a {type(value).__name__}, which cannot be saved with the run's "
        "configuration. Give a number, a string, a path, or a list or dictionary of these."
    )


def _described(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _described(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_described(item) for item in value]
    try:
        return plain(value, "")
    except TypeError:
        return f"<{type(value).__module__}.{type(value).__qualname__} object>"


def _without_objects(options: Any) -> Any:
    """The options of a model that loading it from a saved SAE's metadata can use."""
    if not isinstance(options, dict):
        return options
    described = {str(name): _described(value) for name, value in options.items()}
    return {name: value for name, value in described.items() if not _holds_description(value)}


def _holds_description(value: Any) -> bool:
    if isinstance(value, (dict, list)):
        parts = value.values() if isinstance(value, dict) else value
        return any(_holds_description(part) for part in parts)
    return isinstance(value, str) and _DESCRIBED.fullmatch(value) is not None


def refuse_descriptions(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """
    Check that no option of the model is only the description of an object.

    Raises:
        ValueError: One is, as in a configuration that was read from a file.
    """
    for name in OPTIONS_OF_THE_MODEL:
        for key, value in (getattr(cfg, name) or {}).items():
            if _holds_description(value):
                raise ValueError(
                    f"{name}[{key!r}]={value!r} only describes the object that the run was given. "
                    "Resume from Python and give the object itself."
                )


def same_place(one: Any, other: Any) -> bool:
    """True if two names of a model or data set differ at most in how a path is spelled."""
    if not isinstance(one, str) or not isinstance(other, str):
        return one == other
    return _resolved(one) == _resolved(other)


def _resolved(name: str) -> str:
    path = Path(name).expanduser()
    return os.path.realpath(path) if path.exists() else name.rstrip("/")
