"""What is wrong with the configuration of a run, as far as that is known without the model."""

from collections.abc import Mapping
from typing import Any

from sae_lens import LanguageModelSAERunnerConfig

from sae_lens_matryoshka.saes.config_rules import is_whole
from sae_lens_matryoshka.training.settings.run_record import refuse_descriptions

COUNTS = (
    "training_tokens",
    "train_batch_size_tokens",
    "context_size",
    "store_batch_size_prompts",
    "n_batches_in_buffer",
    "n_batches_for_norm_estimate",
    "feature_sampling_window",
    "n_restart_cycles",
)

MAX_SEED = 2**32 - 1  # NumPy's


def check_counts(options: Mapping[str, Any]) -> None:
    """
    Check those of a run's options that count tokens, prompts or batches.

    Args:
        options: Options by name; those that are missing have their defaults.

    Raises:
        ValueError: One of them is not a whole number of at least 1.
    """
    for name in COUNTS:
        value = options.get(name, 1)
        if not is_whole(value) or value < 1:
            raise ValueError(f"{name}={value!r} must be a whole number of at least 1.")


def check_run(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """
    Check a run's options against each other.

    Args:
        cfg: The configuration, SAELens's or ours.

    Raises:
        ValueError: The run could not train, or an option would have no effect.
    """
    check_counts(vars(cfg))
    if cfg.training_tokens < cfg.train_batch_size_tokens:
        raise ValueError(
            f"training_tokens={cfg.training_tokens} is less than one batch of "
            f"train_batch_size_tokens={cfg.train_batch_size_tokens}, so that nothing would be trained. "
            "Train on more tokens or lower the batch size."
        )
    if not is_whole(cfg.seed) or not 0 <= cfg.seed <= MAX_SEED:
        raise ValueError(f"seed={cfg.seed!r} must be a whole number from 0 to {MAX_SEED}.")
    if not cfg.lr > 0:
        raise ValueError(f"lr={cfg.lr!r} must be greater than 0, or nothing would be trained.")
    for name in ("wandb_log_frequency", "eval_every_n_wandb_logs"):
        if cfg.logger.log_to_wandb and getattr(cfg.logger, name) < 1:
            raise ValueError(
                f"logger.{name}={getattr(cfg.logger, name)!r} must be at least 1. To log nothing, set "
                "log_to_wandb=False."
            )
    _check_hook(cfg)
    if cfg.cached_activations_path is not None and not cfg.use_cached_activations:
        raise ValueError(
            f"cached_activations_path={cfg.cached_activations_path!r} has no effect without "
            "use_cached_activations=True. Set that, or leave the path out."
        )
    refuse_descriptions(cfg)


def _check_hook(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    hook, head = cfg.hook_name, cfg.hook_head_index
    reshape = cfg.sae.reshape_activations
    if not isinstance(hook, str):
        raise ValueError(
            f"hook_name={hook!r} must name a hook, such as 'blocks.0.hook_resid_post'."
        )
    if reshape not in ("none", "hook_z"):
        raise ValueError(f"reshape_activations={reshape!r} must be 'none' or 'hook_z'.")
    if head is not None and (not is_whole(head) or head < 0):
        raise ValueError(f"hook_head_index={head!r} must be a whole number of at least 0.")
    if head is not None and reshape == "hook_z":
        raise ValueError(
            f"hook_head_index={head} takes one head, but reshape_activations='hook_z' joins all of "
            "them. Leave one of the two out."
        )
    if hook.endswith("hook_z") and head is None and reshape != "hook_z":
        raise ValueError(
            f"hook_name={hook!r} has an activation per head, and an SAE with "
            f"reshape_activations={reshape!r} cannot be attached there. Set reshape_activations='hook_z'."
        )
    if reshape == "hook_z" and not hook.endswith("_z"):
        raise ValueError(
            f"reshape_activations='hook_z' does not fit hook_name={hook!r}: SAELens refuses to load "
            "such an SAE. Leave it out, or train on a hook_z."
        )
