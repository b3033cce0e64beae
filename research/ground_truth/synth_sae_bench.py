"""The data models of SynthSAEBench (arXiv 2602.14687), smaller ones of the same law, and others' models."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from sae_lens.synthetic import (
    SYNTHETIC_MODEL_CONFIG_FILENAME,
    FoldedNormalMagnitudeConfig,
    HierarchyConfig,
    LinearMagnitudeConfig,
    LowRankCorrelationConfig,
    OrthogonalizationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
)

from research.ground_truth.orthogonal_features import feature_dictionary
from sae_lens_matryoshka.atomic_files import as_read
from sae_lens_matryoshka.levels.fingerprint import hash_files
from sae_lens_matryoshka.loading.hub_access import fetching
from sae_lens_matryoshka.ownership import replaced_folder

_HIERARCHY = HierarchyConfig(
    total_root_nodes=128,
    branching_factor=4,
    max_depth=3,
    mutually_exclusive_portion=1.0,
    mutually_exclusive_min_depth=0,
    compensate_probabilities=True,
    scale_children_by_parent=True,
)

SYNTH_SAE_BENCH_16K = SyntheticModelConfig(
    num_features=16_384,
    hidden_dim=768,
    firing_probability=ZipfianFiringProbabilityConfig(exponent=0.5, max_prob=0.4, min_prob=5e-4),
    hierarchy=_HIERARCHY,
    orthogonalization=OrthogonalizationConfig(num_steps=100, lr=3e-4),
    correlation=LowRankCorrelationConfig(rank=25, correlation_scale=0.1),
    mean_firing_magnitudes=LinearMagnitudeConfig(start=5.0, end=4.0),
    std_firing_magnitudes=FoldedNormalMagnitudeConfig(mean=0.5, std=0.5),
    bias=0.5,
    seed=42,
)
"""The published model, as on the Hub: decoderesearch/synth-sae-bench-16k-v1."""


def _smaller(num_features: int, hidden_dim: int, roots: int) -> SyntheticModelConfig:
    return replace(
        SYNTH_SAE_BENCH_16K,
        num_features=num_features,
        hidden_dim=hidden_dim,
        hierarchy=replace(_HIERARCHY, total_root_nodes=roots),
    )


MODELS = {
    "mini": _smaller(1_024, 128, roots=8),
    "medium": _smaller(4_096, 256, roots=32),
    "16k": SYNTH_SAE_BENCH_16K,
}


def save_model(source: str, folder: Path) -> str:
    """
    Put a model where several processes can load it.

    Args:
        source: A name among MODELS, a folder that SyntheticModel.save wrote, or a Hub id.
        folder: Where to. A model of MODELS that is there already is not built again.

    Returns:
        A hash of its files.
    """
    if source not in MODELS:
        with fetching(f"The model {source}", "Give mini, medium, 16k or a local folder as model."):
            model = SyntheticModel.load_from_source(source)
        _write(model, folder)
    elif not _holds(folder, MODELS[source]):
        cfg = MODELS[source]
        _write(SyntheticModel(cfg, feature_dict=feature_dictionary(cfg)), folder)
    return hash_files(folder, ("*",))


def load_model(folder: Path) -> SyntheticModel:
    """The model that save_model put there, the same in every process."""
    # SAELens saves no magnitudes: it draws them again, and without a seed anew each time
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(torch.Generator().manual_seed(0).get_state())
        return SyntheticModel.load_from_disk(folder)


def _write(model: SyntheticModel, folder: Path) -> None:
    with replaced_folder(folder) as staging:
        model.save(staging)


def _holds(folder: Path, wanted: SyntheticModelConfig) -> bool:
    file = folder / SYNTHETIC_MODEL_CONFIG_FILENAME
    if not file.is_file():
        return False
    return json.loads(file.read_text()) == as_read(wanted.to_dict())
