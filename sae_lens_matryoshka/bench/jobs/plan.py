"""What a benchmark comes to: jobs of one eval and seed, each with the SAE levels to go through."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sae_lens_matryoshka.bench.config import BenchConfig, SAESource
from sae_lens_matryoshka.bench.evals.catalogue import (
    EVALS,
    data_sets,
    eval_config,
    needs_resid_post,
    smallest_width,
)
from sae_lens_matryoshka.bench.inputs.models import device_of
from sae_lens_matryoshka.bench.inputs.saes import Level, layer_of
from sae_lens_matryoshka.bench.outcome import FIDELITY
from sae_lens_matryoshka.settings.yaml_file import ConfigError

# what else decides a number
PACKAGES = (
    "sae-lens-matryoshka",
    "sae-bench",
    "sae-lens",
    "sae-probes",
    "transformer-lens",
    "transformers",
    "tokenizers",
    "datasets",
    "torch",
    "numpy",
    "scikit-learn",
)
HEADS_UNKNOWN_TO_CORE = ("hook_rot_q", "hook_rot_k", "hook_result")
RESULTS_FORMAT = {FIDELITY: 2}
"""By eval, 1 where it has none; raised whenever this package computes something else from the same settings."""


@dataclass(frozen=True)
class Item:
    """
    One SAE level under one eval and one seed.

    Args:
        sae: Index of the SAE in the config.
        name: Unique name for SAEBench's files.
        level: Its nested level, 0 the innermost.
        levels: Number of levels of that SAE.
        width: Latents.
        fingerprint: Of the whole SAE.
        folder: Where its result goes; named by everything that decides it.
        too_narrow: Latents that the eval needs if the level has fewer, else 0.
    """

    sae: int
    name: str
    level: int
    levels: int
    width: int
    fingerprint: str
    folder: str
    too_narrow: int = 0


@dataclass(frozen=True)
class Job:
    """
    One eval under one seed; runs in a process of its own.

    Args:
        eval: The eval's name, or "fidelity".
        seed: Its seed; None if it has none.
        fields: The eval's SAEBench fields, as the user gave them.
        key: Hash of everything that decides its caches.
        items: SAE levels to go through in turn.
        work: Working folder: caches, links to data, log.
    """

    eval: str
    seed: int | None
    fields: dict[str, Any]
    key: str
    work: str
    items: list[Item] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its name for folders."""
        return Path(self.work).name

    @property
    def label(self) -> str:
        """Its name for people."""
        return self.eval if self.seed is None else f"{self.eval} seed {self.seed}"


@dataclass(frozen=True)
class OpenedSAE:
    """An SAE as the plan sees it: its place in the config, levels, content and metadata."""

    source: SAESource
    levels: list[Level]
    fingerprint: str
    metadata: dict[str, Any] = field(default_factory=dict)


def check_evals(config: BenchConfig) -> None:
    """
    Check every eval's fields, and that the eval measures the hook that the SAEs were trained on.

    Raises:
        ConfigError: Something does not fit.
    """
    layer = layer_of(config.hook_name)
    if layer is None:
        raise ConfigError(
            f"hook_name: {config.hook_name!r} is outside the model's blocks, but SAEBench needs a layer. Give a hook "
            "such as blocks.1.hook_resid_post."
        )
    for name, given in config.evals.items():
        eval_config(name, given)
        if name == "core" and config.hook_name.endswith(HEADS_UNKNOWN_TO_CORE):
            raise ConfigError(
                f"evals.core: SAEBench does not know that {config.hook_name} has a dimension for heads, and fails on "
                "it. Leave core out."
            )
        if needs_resid_post(name) and config.hook_name != f"blocks.{layer}.hook_resid_post":
            raise ConfigError(
                f"evals.{name}: SAEBench reads hook_resid_post of the SAE's layer whatever the SAE's own hook "
                f"is, so an SAE of {config.hook_name} would silently be measured on other activations. "
                f"Leave {name} out, or give SAEs of a hook_resid_post."
            )


def needed_data(config: BenchConfig) -> dict[str, list[str]]:
    """Hub names of the data sets that each eval, and "fidelity", reads."""
    evals = {
        name: data_sets(name, eval_config(name, given)) for name, given in config.evals.items()
    }
    return {FIDELITY: [config.text.dataset], **evals}


def make_jobs(
    config: BenchConfig, saes: list[OpenedSAE], model_key: str, data_keys: dict[str, str]
) -> list[Job]:
    """
    The jobs of a benchmark, the measurement of L0 and FVU first.

    Args:
        config: The benchmark.
        saes: Its SAEs, in the config's order.
        model_key: Fingerprint of the model.
        data_keys: Fingerprint of the data of each eval, and of "fidelity".
    """
    return [
        _with_items(config, saes, _job(config, name, seed, fields, model_key, data_keys[name]))
        for name, seed, fields in _runs(config)
    ]


def _runs(config: BenchConfig) -> Iterator[tuple[str, int | None, dict[str, Any]]]:
    yield FIDELITY, None, config.text.model_dump()
    for name, fields in config.evals.items():
        for seed in config.seeds if EVALS[name].seeded else [None]:
            yield name, seed, fields


def _job(
    config: BenchConfig,
    name: str,
    seed: int | None,
    fields: dict[str, Any],
    model_key: str,
    data_key: str,
) -> Job:
    decides = {
        "eval": name,
        "seed": seed,
        "fields": fields,
        "upstream_defaults": config.upstream_defaults if name == "absorption" else None,
        "model": model_key,
        "label": config.model.label,  # SAEBench writes it into its results
        "dtype": config.model.dtype,
        "device": device_of(config.model),
        "prepend_bos": config.model.prepend_bos,
        "batch_size": config.model.batch_size,
        "hook": config.hook_name,
        "data": data_key,
        "packages": package_versions(),
        "format": RESULTS_FORMAT.get(name, 1),
    }
    key = _hash(decides)
    name_and_seed = name if seed is None else f"{name}-seed{seed}"
    return Job(name, seed, fields, key, str(config.output / "work" / f"{name_and_seed}-{key}"))


def _with_items(config: BenchConfig, saes: list[OpenedSAE], job: Job) -> Job:
    needed = 1
    if job.eval != FIDELITY:
        needed = smallest_width(job.eval, eval_config(job.eval, job.fields))
    for index, opened in enumerate(saes):
        for level in opened.levels:
            name = f"{opened.source.name}__level_{level.index}_width_{level.width}"
            key = _hash([job.key, opened.fingerprint, asdict(level)])
            job.items.append(
                Item(
                    sae=index,
                    name=name,
                    level=level.index,
                    levels=level.of,
                    width=level.width,
                    fingerprint=opened.fingerprint,
                    folder=str(config.output / "jobs" / job.name / f"{name}-{key}"),
                    too_narrow=needed if level.width < needed else 0,
                )
            )
    return job


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide the numbers."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _hash(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
