"""Logging to Weights & Biases that cannot end a training."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sae_lens import logger
from sae_lens.config import LoggingConfig
from typing_extensions import override

# W&B's longest name of an artifact, less what SAELens appends for the sparsity's.
_MAX_NAME_LENGTH = 128 - len("_log_feature_sparsity")


class EvaluationFailed(RuntimeError):
    """An evaluation in the middle of a run raised; its cause says why."""


class RunLog:
    """Reports the first failure of the logger, after which a run goes on without it."""

    def __init__(self) -> None:
        self.has_failed = False

    @contextmanager
    def failure_reported(self) -> Iterator[None]:
        """Report a failure in the block instead of raising it; an evaluation's is raised."""
        try:
            yield
        except EvaluationFailed:
            raise
        except Exception as error:
            if not self.has_failed:
                logger.error(
                    f"Logging to W&B failed ({type(error).__name__}: {error}). "
                    "The run goes on without it."
                )
            self.has_failed = True


@dataclass
class ValidNames(LoggingConfig):
    """SAELens's LoggingConfig, which names artifacts as W&B allows."""

    @classmethod
    def of(cls, config: LoggingConfig) -> "ValidNames":
        """Return a copy of a configuration."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(LoggingConfig)})

    @override
    def log(
        self,
        trainer: Any,
        weights_path: Path | str,
        cfg_path: Path | str,
        sparsity_path: Path | str | None,
        wandb_aliases: list[str] | None = None,
    ) -> None:
        name = artifact_name(trainer.sae.get_name())
        named = SimpleNamespace(cfg=trainer.cfg, sae=SimpleNamespace(get_name=lambda: name))
        super().log(named, weights_path, cfg_path, sparsity_path, wandb_aliases)


def artifact_name(name: str) -> str:
    """Return a name that W&B takes for an artifact; one that SAELens would give stays as it is."""
    name = re.sub(r"[^\w.-]", "_", name.replace("/", "__"), flags=re.ASCII)
    if len(name) <= _MAX_NAME_LENGTH:
        return name
    return name[: _MAX_NAME_LENGTH // 2] + name[-_MAX_NAME_LENGTH // 2 :]  # the end: hook and width
