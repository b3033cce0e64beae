"""What a resumed run must have in common with the run that wrote its checkpoint."""

import json
from pathlib import Path
from typing import Any

import torch
from sae_lens import LanguageModelSAERunnerConfig, logger
from sae_lens.constants import RUNNER_CFG_FILENAME, SAE_CFG_FILENAME, TRAINER_STATE_FILENAME
from transformer_lens.HookedTransformer import HookedRootModule

from sae_lens_matryoshka.atomic_files import as_read
from sae_lens_matryoshka.loading import model_identity
from sae_lens_matryoshka.training.activations.finite_rows import MAX_NONFINITE_FRACTION
from sae_lens_matryoshka.training.settings.run_record import record_of, same_place

# What the restored optimizer and scheduler bring with them; the length only where the rate depends on it.
SCHEDULE_FIELDS = (
    "lr",
    "lr_end",
    "lr_scheduler_name",
    "lr_warm_up_steps",
    "lr_decay_steps",
    "n_restart_cycles",
    "adam_beta1",
    "adam_beta2",
    "lr_decay_to",
)
LENGTH_FIELDS = ("training_tokens", "train_batch_size_tokens")

# What the activations are of: another value makes it another training.
MODEL_FIELDS = (
    "model_name",
    "model_class_name",
    "model_kwargs",
    "model_from_pretrained_kwargs",
    "hook_name",
    "hook_head_index",
    "context_size",
    "use_cached_activations",
    "seed",
)
TEXT_FIELDS = (
    "dataset_path",
    "use_chat_formatting",
    "seqpos_slice",
    "disable_concat_sequences",
    "sequence_separator_token",
    "prepend_bos",
    "exclude_special_tokens",
)
CACHE_FIELDS = ("cached_activations_path",)

# Where a run computes and what it writes: may always differ. What is in no list is reported.
FREE_FIELDS = (
    "sae",  # compared with the checkpoint's own
    "training_tokens",
    "device",
    "llm_device",
    "act_store_device",
    "prefetch_llm_batches",
    "compile_llm",
    "llm_compilation_mode",
    "compile_sae",
    "sae_compilation_mode",
    "logger",
    "n_eval_batches",
    "eval_batch_size_prompts",
    "n_checkpoints",
    "checkpoint_path",
    "save_final_checkpoint",
    "resume_from_checkpoint",
    "output_path",
    "verbose",
    "hook_eval",
    "sae_lens_version",
    "sae_lens_training_version",
    "dead_feature_threshold",  # SAELens reads it nowhere
    "n_batches_for_norm_estimate",  # the estimate is restored
)

# Options that SAELens's configurations lack, or that are written down only where they are given.
DEFAULTS = {"lr_decay_to": 0.0, "max_nonfinite_fraction": MAX_NONFINITE_FRACTION}


def check_run_is_kept(path: str, cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """
    Check that a run goes on with the training that its checkpoint is of.

    Args:
        path: The checkpoint's folder.
        cfg: The run's configuration, of plain values.

    Raises:
        ValueError: It would be another training, or ask for fewer tokens than are done.
    """
    file = Path(path) / RUNNER_CFG_FILENAME
    target = DEFAULTS | as_read(record_of(cfg))
    saved = target | DEFAULTS | json.loads(file.read_text()) if file.is_file() else target
    changed = [name for name in target if not same_place(saved[name], target[name])]
    _refuse_another_schedule(path, saved, target, changed)
    _refuse_another_training(path, saved, target, changed)
    _check_length(path, saved, target)
    known = (*MODEL_FIELDS, *TEXT_FIELDS, *CACHE_FIELDS, *SCHEDULE_FIELDS, *FREE_FIELDS)
    reported = [name for name in changed if name not in known]
    if target["use_cached_activations"]:
        reported += [name for name in TEXT_FIELDS if name in changed]
    if reported:
        logger.warning(
            f"Resuming from {path} with {describe(target, reported)} instead of "
            f"{describe(saved, reported)}."
        )


def report_another_model(path: str, model: HookedRootModule) -> None:
    """
    Warn if a run goes on with another model than its checkpoint, which has the same name.

    Args:
        path: The checkpoint's folder.
        model: The loaded model.
    """
    cfg = json.loads(Path(path, SAE_CFG_FILENAME).read_text())
    trained_on = cfg.get("metadata", {}).get(model_identity.KEY)
    if not trained_on:  # a checkpoint of SAELens
        return
    found = model_identity.differences(trained_on, model_identity.model_identity(model))
    if found:
        logger.warning(
            f"Resuming from {path} with another model than it was trained on: {'; '.join(found)}."
        )


def _refuse_another_training(
    path: str, saved: dict[str, Any], target: dict[str, Any], changed: list[str]
) -> None:
    source = CACHE_FIELDS if target["use_cached_activations"] else TEXT_FIELDS
    names = [name for name in (*MODEL_FIELDS, *source) if name in changed]
    if names:
        raise ValueError(
            f"resume_from_checkpoint={path!r} was trained with {describe(saved, names)}, not "
            f"{describe(target, names)}. Give the values that it was trained with (edit its "
            f"{RUNNER_CFG_FILENAME} if the same data have moved), or start without "
            "resume_from_checkpoint."
        )


def _refuse_another_schedule(
    path: str, saved: dict[str, Any], target: dict[str, Any], changed: list[str]
) -> None:
    is_constant = saved["lr_scheduler_name"] == "constant" and not saved["lr_decay_steps"]
    kept = SCHEDULE_FIELDS if is_constant else (*SCHEDULE_FIELDS, *LENGTH_FIELDS)
    names = [name for name in kept if name in changed]
    if names:
        raise ValueError(
            f"resume_from_checkpoint={path!r} was trained with {describe(saved, names)}, and SAELens goes on "
            f"with its learning rates whatever the run asks for: {describe(target, names)} would have no effect. "
            "Leave it as it was, or start without resume_from_checkpoint."
        )


def _check_length(path: str, saved: dict[str, Any], target: dict[str, Any]) -> None:
    # memory-mapped: the optimizer's state in it may be many gigabytes
    state = torch.load(
        Path(path, TRAINER_STATE_FILENAME), map_location="cpu", mmap=True, weights_only=True
    )
    done, asked = int(state["n_training_samples"]), target["training_tokens"]
    # the last batch of a finished run may have gone beyond its training_tokens
    if done >= asked + saved["train_batch_size_tokens"] or (
        done > asked and saved["training_tokens"] > asked
    ):
        raise ValueError(
            f"training_tokens={asked} is less than the {done} tokens that "
            f"resume_from_checkpoint={path!r} has been trained on. Raise it, or resume from an "
            "earlier checkpoint."
        )


def describe(cfg: dict[str, Any], names: list[str]) -> str:
    """Return "name=value, ..." of some options."""
    return ", ".join(f"{name}={cfg[name]!r}" for name in names)
