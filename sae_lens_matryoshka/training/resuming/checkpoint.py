"""Checkpoints on disk: checked before they are used, random generators included."""

import json
import random
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import TrainingSAEConfig, logger
from sae_lens.constants import SAE_CFG_FILENAME

from sae_lens_matryoshka.saes.inference_sae import FOLDED_NORMALIZATIONS
from sae_lens_matryoshka.training.resuming.checkpoint_folder import (
    checkpoints_below,
    damage,
    newest_complete,
)
from sae_lens_matryoshka.training.resuming.resume_check import describe

# Fields in which a checkpoint must agree, and those in which it always may differ.
SHAPE_FIELDS = (
    "architecture",
    "d_in",
    "d_sae",
    "activation",
    "latent_order",
    "normalize_activations",
    "reshape_activations",
    "apply_b_dec_to_input",
    "rescale_acts_by_decoder_norm",
)
FREE_FIELDS = ("device", "dtype", "metadata")

# Options that keep a state of their own, with the value that keeps none: a checkpoint has it or has it not.
OPTIONS_WITH_STATE = {
    "refinement_step": None,
    "refine_until": None,
    "target_l0": None,
    "prefix_sampling": "fixed",
    "b_dec_init": "zeros",
}


# ---- checks before training


def check_writable(option: str, path: str | None) -> None:
    """
    Check that a folder can be written or created, and leave no trace.

    Args:
        option: The option's name, for the error.
        path: The folder that the run will write to; None: nothing will be written.

    Raises:
        OSError: Nothing can be written there.
    """
    if path is None:
        return
    existing = Path(path).absolute()
    while not existing.exists():
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = error.strerror if existing.is_dir() else "it is no folder"
        raise type(error)(
            f"{option}={path!r} cannot be written: {existing}: {reason}. Nothing was trained. Set "
            f"{option} to a folder that you may write to, or to None to save nothing there."
        ) from error


def check_checkpoint(path: str, sae_cfg: TrainingSAEConfig) -> None:
    """
    Check that training can resume from a checkpoint.

    Args:
        path: The checkpoint's folder, written by this package or by SAELens.
        sae_cfg: The SAE that the run will train.

    Raises:
        FileNotFoundError: No such folder, or it is no complete checkpoint.
        ValueError: A file in it is damaged, it holds another SAE, or one whose training is over.
    """
    folder = Path(path)
    problem = damage(folder) if folder.is_dir() else "is no folder"
    if problem:
        kind = ValueError if "is damaged" in problem else FileNotFoundError
        raise kind(f"resume_from_checkpoint={path!r} {problem}. {_others(folder)}")
    saved = json.loads((folder / SAE_CFG_FILENAME).read_text())
    wanted = sae_cfg.to_dict()
    _check_not_folded(path, saved, wanted)
    both = saved.keys() & wanted.keys()
    differing = [name for name in SHAPE_FIELDS if name in both and saved[name] != wanted[name]]
    differing += [
        name
        for name, off in OPTIONS_WITH_STATE.items()
        if name in both and (saved[name] == off) != (wanted[name] == off)
    ]
    if differing:
        raise ValueError(
            f"resume_from_checkpoint={path!r} holds another SAE: {describe(saved, differing)}; "
            f"this run asks for {describe(wanted, differing)}. Give the values it was trained "
            "with, or start without resume_from_checkpoint."
        )
    _warn_of_changes(path, saved, wanted, sae_cfg)


def _others(folder: Path) -> str:
    below = checkpoints_below(folder)
    if below:
        names = sorted(str(path.relative_to(folder)) for path in below)
        newest = newest_complete(folder)
        hint = f" The newest complete one is {newest}." if newest else ""
        return f"There are checkpoints below it: {', '.join(names)}. Give one of them.{hint}"
    newest = newest_complete(folder.parent) if folder.parent.is_dir() else None
    if newest:
        return f"The newest complete checkpoint beside it is {newest}."
    return "Give the folder of one checkpoint, such as 'checkpoints/<id>/<number of tokens>'."


def _check_not_folded(path: str, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    mode = wanted["normalize_activations"]
    if mode in FOLDED_NORMALIZATIONS and saved["normalize_activations"] == "none":
        raise ValueError(
            f"resume_from_checkpoint={path!r} has normalize_activations='none': training was over "
            f"when it was saved, and the statistics are folded into its weights. Resuming with "
            f"{mode!r} would fold new ones into them again. Resume from an earlier checkpoint, or "
            "set normalize_activations='none'."
        )


def _warn_of_changes(
    path: str, saved: dict[str, Any], wanted: dict[str, Any], sae_cfg: TrainingSAEConfig
) -> None:
    names = [field.name for field in fields(sae_cfg) if field.name not in FREE_FIELDS]
    changed = [name for name in names if name in saved and saved[name] != wanted[name]]
    if changed:
        logger.warning(
            f"Resuming from {path} with another configuration of the SAE: "
            f"{describe(wanted, changed)} instead of {describe(saved, changed)}."
        )


# ---- what SAELens's checkpoints lack


def rng_state() -> dict[str, Any]:
    """The state of torch's, numpy's and Python's global random generators, of safe types only."""
    name, keys, *rest = np.random.get_state(legacy=True)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "python": random.getstate(),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what rng_state returned; GPUs are left alone where their number has changed."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
