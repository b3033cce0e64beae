"""What a killed run has left unfinished is completed or removed when it is started again."""

import re
from pathlib import Path
from typing import Any

from sae_lens import LanguageModelSAERunnerConfig

from sae_lens_matryoshka.atomic_files import recover


def recover_run(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """
    Complete or remove what killed processes have left in the folders that a run writes to.

    Args:
        cfg: The run's configuration.
    """
    folders: set[Path] = set()
    if cfg.output_path is not None:
        folders.add(Path(cfg.output_path))
    if cfg.resume_from_checkpoint is not None:
        folders.add(Path(cfg.resume_from_checkpoint).parent)
    if cfg.checkpoint_path is not None:
        folder = Path(cfg.checkpoint_path)
        folders.add(folder)
        if _has_id_of_a_run(folder, cfg):  # a run that is started anew has another one
            folders.update(path for path in folder.parent.glob("[!.]*") if path.is_dir())
    for folder in sorted(folders):
        recover(folder)


def _has_id_of_a_run(folder: Path, cfg: LanguageModelSAERunnerConfig[Any]) -> bool:
    """True if SAELens appended an id to checkpoint_path."""
    return (
        folder.name == cfg.logger.wandb_id or re.fullmatch("[0-9a-f]{8}", folder.name) is not None
    )
