"""Whether SAEs are measured on the model that they were trained on, as far as it can be known."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_lens_matryoshka.bench.config import DEMO, BenchConfig, ModelSource
from sae_lens_matryoshka.bench.jobs.plan import Job, OpenedSAE
from sae_lens_matryoshka.bench.jobs.stored_results import identity_file
from sae_lens_matryoshka.bench.outcome import FIDELITY
from sae_lens_matryoshka.loading.model_identity import KEY, differences
from sae_lens_matryoshka.settings.model_names import official_name

logger = logging.getLogger(__name__)

_SIZES = {
    "architectures": "architecture",
    "num_hidden_layers": "layers",
    "hidden_size": "hidden size",
    "vocab_size": "vocabulary",
}


def warn_of_names(config: BenchConfig, opened: Sequence[OpenedSAE]) -> list[str]:
    """Log, and return, which SAEs name another model than the benchmark's."""
    return _logged(name_warning(config, one.source.name, one.metadata) for one in opened)


def warn_of_identities(
    config: BenchConfig, opened: Sequence[OpenedSAE], jobs: Sequence[Job]
) -> list[str]:
    """Log, and return, which SAEs were trained on another model than that which a job has opened."""
    for job in jobs:
        file = identity_file(config.output, job)
        if job.eval == FIDELITY and file.exists():
            model = json.loads(file.read_text(encoding="utf-8"))
            return _logged(
                identity_warning(config, one.source.name, one.metadata, model) for one in opened
            )
    return []


def _logged(found: Iterable[str | None]) -> list[str]:
    warnings = [one for one in found if one is not None]
    for one in warnings:
        logger.warning(one)
    return warnings


def name_warning(config: BenchConfig, sae: str, metadata: Mapping[str, Any]) -> str | None:
    """
    Compare the model that an SAE's metadata names with the benchmark's, by name and sizes.

    Args:
        config: The benchmark.
        sae: The SAE's name.
        metadata: Its metadata. One that holds the model's identity is left to `identity_warning`.

    Returns:
        What to warn of; None if the two agree.
    """
    trained_on = metadata.get("model_name")
    if not trained_on or metadata.get(KEY):
        return None
    theirs = official_name(trained_on)
    ours = official_name(_name_in(config.model) or config.model.name)
    warning = (
        f"SAE {sae!r} was trained on {trained_on}, but is measured on {_described(config.model)}"
    )
    if theirs and ours and theirs != ours:
        return f"{warning}, which names {ours} as its origin."
    sizes = _sizes(theirs or trained_on, config), _sizes_of(config.model, config)
    if None not in sizes:
        found = _differences(*sizes)
        return f"{warning}, a model of other sizes: {found}." if found else None
    has_same_name = Path(str(trained_on)).name == config.model.label or (theirs and theirs == ours)
    return None if has_same_name else f"{warning}. Whether the two are the same is not known."


def identity_warning(
    config: BenchConfig, sae: str, metadata: Mapping[str, Any], measured_on: Mapping[str, Any]
) -> str | None:
    """
    Compare the identity that training recorded in an SAE's metadata with the model's.

    Args:
        config: The benchmark.
        sae: The SAE's name.
        metadata: Its metadata.
        measured_on: The identity of the benchmark's model.

    Returns:
        What to warn of; None if the two agree or the metadata holds none.
    """
    found = differences(metadata[KEY], measured_on) if metadata.get(KEY) else []
    if not found:
        return None
    return (
        f"SAE {sae!r} was trained on {metadata.get('model_name')}, but is measured on "
        f"{_described(config.model)}, another model: {'; '.join(found)}."
    )


def _described(source: ModelSource) -> str:
    return f"the folder {source.folder}" if source.folder else str(source.name)


def _name_in(source: ModelSource) -> str | None:
    """The name that a local folder's configuration brings along, if any."""
    if source.folder is None:
        return None
    content = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    return content.get("_name_or_path")


def _sizes_of(source: ModelSource, config: BenchConfig) -> dict[str, Any] | None:
    if source.name == DEMO:
        from sae_lens_matryoshka.demo.model import MODEL_FOLDER

        return _sizes(MODEL_FOLDER, config)
    return _sizes(source.folder or official_name(source.name) or str(source.name), config)


def _sizes(model: str | Path, config: BenchConfig) -> dict[str, Any] | None:
    """A model's sizes; None if its configuration cannot be reached."""
    if model == DEMO:
        return _sizes_of(ModelSource(name=DEMO), config)
    found = _hf_config(model, config.is_offline)
    return found and {key: getattr(found, key, None) for key in _SIZES}


def _hf_config(model: str | Path, offline: bool) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model, local_files_only=offline)
    except (OSError, ValueError):
        return None


def _differences(theirs: dict[str, Any] | None, ours: dict[str, Any] | None) -> str:
    assert theirs is not None and ours is not None
    return "; ".join(
        f"{name} {_short(theirs[key])}, here {_short(ours[key])}"
        for key, name in _SIZES.items()
        if theirs[key] != ours[key]
    )


def _short(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
