"""Matryoshka sparse autoencoders as a plugin of SAELens.

Importing this package registers the training architecture ``"matryoshka"`` with SAELens, and
``"matryoshka_refined"``, as which SAEs with refinement to the end are saved.
"""

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_lens_matryoshka import bench, hub
    from sae_lens_matryoshka.levels.calibration import calibrate_threshold
    from sae_lens_matryoshka.levels.matryoshka_sae import MatryoshkaSAE
    from sae_lens_matryoshka.saes.config import MatryoshkaTrainingSAEConfig
    from sae_lens_matryoshka.saes.training_sae import MatryoshkaTrainingSAE
    from sae_lens_matryoshka.training.runner import (
        LanguageModelSAERunnerConfig,
        MatryoshkaSAETrainingRunner,
        TrainingFailed,
        TrainingInterrupted,
    )

__version__ = "0.1.0"

__all__ = [
    "LanguageModelSAERunnerConfig",
    "MatryoshkaSAE",
    "MatryoshkaSAETrainingRunner",
    "MatryoshkaTrainingSAE",
    "MatryoshkaTrainingSAEConfig",
    "TrainingFailed",
    "TrainingInterrupted",
    "bench",
    "calibrate_threshold",
    "hub",
    "register",
]

_HOME_OF = {
    "LanguageModelSAERunnerConfig": "training.runner",
    "MatryoshkaSAE": "levels.matryoshka_sae",
    "MatryoshkaSAETrainingRunner": "training.runner",
    "MatryoshkaTrainingSAE": "saes.training_sae",
    "MatryoshkaTrainingSAEConfig": "saes.config",
    "TrainingFailed": "training.runner",
    "TrainingInterrupted": "training.runner",
    "calibrate_threshold": "levels.calibration",
}


def register() -> None:
    """Register this package's architectures with SAELens: ``"matryoshka"`` for training, and to open
    saved training SAEs as inference SAEs, ``"matryoshka_refined"`` for inference. Safe to call again.

    Raises:
        ValueError: Another package has already registered a class of one of these names.
    """
    from sae_lens_matryoshka.settings.unused_torchvision import hide_unusable_torchvision

    hide_unusable_torchvision()  # before SAELens imports transformers
    from sae_lens.registry import (
        SAE_CLASS_REGISTRY,
        SAE_TRAINING_CLASS_REGISTRY,
        register_sae_class,
        register_sae_training_class,
    )

    from sae_lens_matryoshka.saes.config import ARCHITECTURE, MatryoshkaTrainingSAEConfig
    from sae_lens_matryoshka.saes.refined_sae import (
        REFINED_ARCHITECTURE,
        RefinedSAE,
        RefinedSAEConfig,
    )
    from sae_lens_matryoshka.saes.saved_training_sae import (
        SavedTrainingSAE,
        SavedTrainingSAEConfig,
    )
    from sae_lens_matryoshka.saes.training_sae import MatryoshkaTrainingSAE

    if _is_free(SAE_TRAINING_CLASS_REGISTRY, ARCHITECTURE, MatryoshkaTrainingSAE):
        register_sae_training_class(
            ARCHITECTURE, MatryoshkaTrainingSAE, MatryoshkaTrainingSAEConfig
        )
    if _is_free(SAE_CLASS_REGISTRY, ARCHITECTURE, SavedTrainingSAE):
        register_sae_class(ARCHITECTURE, SavedTrainingSAE, SavedTrainingSAEConfig)
    if _is_free(SAE_CLASS_REGISTRY, REFINED_ARCHITECTURE, RefinedSAE):
        register_sae_class(REFINED_ARCHITECTURE, RefinedSAE, RefinedSAEConfig)


def _is_free(registry: Mapping[str, tuple[type, type]], name: str, ours: type) -> bool:
    owner = registry[name][0] if name in registry else None
    if owner not in (None, ours):
        raise ValueError(
            f"The SAELens architecture {name!r} already belongs to "
            f"{owner.__module__}.{owner.__qualname__}; sae_lens_matryoshka registers "
            f"{ours.__qualname__} under that name. Import only one of the two."
        )
    return owner is None


def __getattr__(name: str) -> Any:
    if name in ("bench", "hub"):
        return import_module(f"{__name__}.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


# Importing SAELens takes 7-11 s. Our command line shows help and errors without it, and
# registers when a command needs it; every other importer gets the registration at once.
if Path(sys.argv[0] if sys.argv else "").stem != "sae-lens-matryoshka":
    register()
