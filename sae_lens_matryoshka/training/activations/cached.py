"""Activations cached on disk: what they were made with, and what a run may say beside them."""

import copy
import json
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from datasets import Dataset, load_from_disk
from sae_lens import ActivationsStore, LanguageModelSAERunnerConfig, logger
from sae_lens.config import HfDataset
from transformer_lens.HookedTransformer import HookedRootModule

from sae_lens_matryoshka.settings.model_names import official_name

# SAELens's CacheActivationsRunner writes it to the Hub, but not beside a local cache.
RECORD_FILENAME = "cache_activations_runner_cfg.json"

# What CacheActivationsRunner always does, and has no options for.
ALWAYS = {
    "hook_head_index": None,
    "disable_concat_sequences": False,
    "sequence_separator_token": "bos",
}

# How activations came about: training from a cache does not do any of it again.
RECORDED = (
    "model_name",
    "model_class_name",
    "model_kwargs",
    "model_from_pretrained_kwargs",
    "dataset_path",
    "prepend_bos",
    "use_chat_formatting",
    "autocast_lm",
    *ALWAYS,
)

# Metadata of the SAE that a cache without a record says nothing of.
UNKNOWN = (
    "dataset_path",
    "prepend_bos",
    "sequence_separator_token",
    "disable_concat_sequences",
)


@dataclass(frozen=True)
class CachedActivations:
    """
    A cache as it lies on disk.

    Args:
        path: Its folder.
        n_positions: Positions per row, after any slicing.
        record: What it was made with, by option; None: unknown.
    """

    path: str
    n_positions: int
    record: dict[str, Any] | None

    def completed(
        self, cfg: LanguageModelSAERunnerConfig[Any]
    ) -> LanguageModelSAERunnerConfig[Any]:
        """A copy of a configuration that says how the activations were made, where that is known."""
        cfg = copy.copy(cfg)
        if self.record is None:
            if not _is_given(cfg, "seqpos_slice"):
                cfg.context_size = self.n_positions
            return cfg
        for name in (*RECORDED, "context_size", "seqpos_slice"):
            if name in self.record and (name != "model_name"):
                setattr(cfg, name, self.record[name])
        return cfg

    def for_store(
        self, cfg: LanguageModelSAERunnerConfig[Any]
    ) -> LanguageModelSAERunnerConfig[Any]:
        """A copy of a configuration for a store that reads the cache, and nothing else."""
        cfg = copy.copy(cfg)
        cfg.dataset_path = None  # pyright: ignore[reportAttributeAccessIssue]  (SAELens would load it)
        cfg.context_size, cfg.seqpos_slice = self.n_positions, (None,)  # it is sliced already
        return cfg

    def unknown(self, cfg: LanguageModelSAERunnerConfig[Any]) -> tuple[str, ...]:
        """Metadata of the SAE that must not be taken from the configuration."""
        if self.record is not None:
            return ()
        # a slice that is given has been compared with the number of positions
        return UNKNOWN if _is_given(cfg, "seqpos_slice") else (*UNKNOWN, "seqpos_slice")


def open_cache(cfg: LanguageModelSAERunnerConfig[Any]) -> CachedActivations | None:
    """
    The cache that a run trains on, checked against its configuration.

    Args:
        cfg: The run's configuration.

    Returns:
        None if the run computes its activations.

    Raises:
        FileNotFoundError: There is no cache at cached_activations_path.
        ValueError: The configuration contradicts what the cache holds or was made with.
    """
    if not cfg.use_cached_activations:
        return None
    path = str(cfg.cached_activations_path)
    dataset = _load(path)
    n_positions = _check_columns(cfg, path, dataset)
    record = _read_record(path)
    cache = CachedActivations(path, n_positions, record)
    if record is None:
        _check_without_record(cfg, cache)
    else:
        _check_record(cfg, cache, record)
    return cache


def evaluation_store(
    model: HookedRootModule,
    cfg: LanguageModelSAERunnerConfig[Any],
    dataset: HfDataset | None,
) -> ActivationsStore | None:
    """
    A store of text for the evaluations of a run whose activations are cached.

    Args:
        model: The model to evaluate with.
        cfg: The configuration, completed.
        dataset: The text; None: that of cfg.dataset_path.

    Returns:
        None if the run has no evaluations, or no text to run them on, which is reported.
    """
    logged = cfg.logger
    every = logged.wandb_log_frequency * logged.eval_every_n_wandb_logs
    if not logged.log_to_wandb or cfg.total_training_steps < every:
        return None
    cfg = copy.copy(cfg)
    cfg.use_cached_activations = False
    try:
        return ActivationsStore.from_config(model, cfg, override_dataset=dataset)
    except (OSError, ValueError, RuntimeError) as error:
        logger.warning(
            "Training on cached activations goes on without evaluations, which need text: "
            f"dataset_path={cfg.dataset_path!r} cannot be loaded ({error})."
        )
        return None


def _load(path: str) -> Dataset:
    try:
        dataset = load_from_disk(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"cached_activations_path={path!r} holds no cached activations. Give the folder that "
            "SAELens's CacheActivationsRunner wrote (new_cached_activations_path)."
        ) from error
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"cached_activations_path={path!r} holds the splits {', '.join(map(str, dataset))}. Give "
            "the folder of one of them."
        )
    return dataset


def _check_columns(cfg: LanguageModelSAERunnerConfig[Any], path: str, dataset: Dataset) -> int:
    """Compare what the cache itself shows; the number of positions per row."""
    hook, columns = cfg.hook_name, dataset.column_names
    if hook not in columns:
        held = ", ".join(repr(name) for name in columns if name != "token_ids")
        raise ValueError(
            f"cached_activations_path={path!r} holds activations of {held}, not of "
            f"hook_name={hook!r}. Give the hook that was cached."
        )
    n_positions, d_in = dataset.features[hook].shape
    if d_in != cfg.sae.d_in:
        raise ValueError(
            f"d_in={cfg.sae.d_in} does not fit cached_activations_path={path!r}, whose activations "
            f"have {d_in} dimensions. Set d_in={d_in}."
        )
    if cfg.exclude_special_tokens and "token_ids" not in columns:
        raise ValueError(
            f"exclude_special_tokens={cfg.exclude_special_tokens} has no effect: "
            f"cached_activations_path={path!r} holds no token_ids. Leave it out, or cache the "
            "activations again with a current SAELens."
        )
    if len(dataset) < cfg.store_batch_size_prompts:
        raise ValueError(
            f"cached_activations_path={path!r} holds {len(dataset)} rows, fewer than "
            f"store_batch_size_prompts={cfg.store_batch_size_prompts}. Lower that."
        )
    return n_positions


def _read_record(path: str) -> dict[str, Any] | None:
    file = Path(path, RECORD_FILENAME)
    if not file.is_file():
        return None
    try:
        record: dict[str, Any] = {**ALWAYS, **json.loads(file.read_text())}
    except ValueError as error:
        raise ValueError(
            f"{file} cannot be read: {error}. Restore it, or remove it: how the activations were "
            "made is unknown then."
        ) from error
    record["seqpos_slice"] = tuple(record.get("seqpos_slice") or (None,))  # JSON has no tuples
    return record


def _check_record(
    cfg: LanguageModelSAERunnerConfig[Any], cache: CachedActivations, record: dict[str, Any]
) -> None:
    names = [name for name in (*RECORDED, "seqpos_slice") if name in record]
    wrong = [
        name
        for name in names
        if _is_given(cfg, name) and not _same(name, getattr(cfg, name), record[name])
    ]
    lengths = {record.get("context_size", cache.n_positions)}
    if not _is_given(cfg, "seqpos_slice"):
        lengths.add(cache.n_positions)
    if _is_given(cfg, "context_size") and cfg.context_size not in lengths:
        wrong.append("context_size")
    if wrong:
        raise ValueError(
            f"cached_activations_path={cache.path!r} was made with {_listed(record, wrong)}, but the "
            f"run says {_listed(vars(cfg), wrong)}. Leave these out, or cache the activations again."
        )


def _check_without_record(cfg: LanguageModelSAERunnerConfig[Any], cache: CachedActivations) -> None:
    if cfg.hook_head_index is not None:
        raise ValueError(
            f"hook_head_index={cfg.hook_head_index} has no effect on cached activations. Leave it out."
        )
    is_sliced = _is_given(cfg, "seqpos_slice")
    is_expected = is_sliced or _is_given(cfg, "context_size")
    n_positions = len(range(cfg.context_size)[slice(*cfg.seqpos_slice)])
    if is_expected and n_positions != cache.n_positions:
        sliced = f" with seqpos_slice={cfg.seqpos_slice}" if is_sliced else ""
        raise ValueError(
            f"context_size={cfg.context_size}{sliced} gives {n_positions} positions, but each row of "
            f"cached_activations_path={cache.path!r} has {cache.n_positions}. Give the options that "
            "the activations were cached with."
        )
    logger.warning(
        f"{cache.path} does not say how its activations were made ({RECORD_FILENAME}). The SAE's "
        f"metadata will not hold {', '.join(UNKNOWN)}."
    )


def _is_given(cfg: LanguageModelSAERunnerConfig[Any], name: str) -> bool:
    """Whether an option differs from its default."""
    if name == "model_from_pretrained_kwargs":  # SAELens fills it in
        return getattr(cfg, name) not in (None, {}, {"center_writing_weights": False})
    (field,) = (field for field in fields(LanguageModelSAERunnerConfig) if field.name == name)
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return getattr(cfg, name) != default


def _same(name: str, ours: Any, recorded: Any) -> bool:
    if ours == recorded:
        return True
    if name == "model_name":  # TransformerLens has names of its own for some models
        official = official_name(ours)
        if official is not None and official == official_name(recorded):
            return True
    if name in ("model_name", "dataset_path"):
        paths = Path(str(ours)), Path(str(recorded))
        return all(path.exists() for path in paths) and paths[0].samefile(paths[1])
    return False


def _listed(options: dict[str, Any], names: list[str]) -> str:
    return ", ".join(f"{name}={options[name]!r}" for name in names)
