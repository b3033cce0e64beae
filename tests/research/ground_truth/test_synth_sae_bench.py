"""The data models: the published figures, and that they are built once."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from sae_lens.synthetic import SyntheticModel
from synthetic_helpers import TINY, save_tiny_model

from research.ground_truth import synth_sae_bench
from research.ground_truth.absorption_rate import children_by_parent
from research.ground_truth.synth_sae_bench import MODELS, load_model, save_model


def test_16k_is_as_published():
    assert MODELS["16k"].to_dict() == {
        "num_features": 16_384,
        "hidden_dim": 768,
        "firing_probability": {
            "generator_name": "zipfian",
            "exponent": 0.5,
            "max_prob": 0.4,
            "min_prob": 5e-4,
        },
        "hierarchy": {
            "total_root_nodes": 128,
            "branching_factor": 4,
            "max_depth": 3,
            "mutually_exclusive_portion": 1.0,
            "mutually_exclusive_min_depth": 0,
            "mutually_exclusive_max_depth": None,
            "compensate_probabilities": True,
            "scale_children_by_parent": True,
        },
        "orthogonalization": {"num_steps": 100, "lr": 3e-4, "chunk_size": 1024},
        "correlation": {"rank": 25, "correlation_scale": 0.1, "seed": None},
        "std_firing_magnitudes": {
            "generator_name": "folded_normal",
            "mean": 0.5,
            "std": 0.5,
            "min_value": None,
            "max_value": None,
        },
        "mean_firing_magnitudes": {"generator_name": "linear", "start": 5.0, "end": 4.0},
        "bias": 0.5,
        "dtype": "float32",
        "seed": 42,
    }


@pytest.mark.parametrize(
    ("name", "size"), [("mini", (1_024, 128, 8)), ("medium", (4_096, 256, 32))]
)
def test_the_smaller_ones_have_the_same_law(name: str, size: tuple[int, int, int]):
    small, published = asdict(MODELS[name]), asdict(MODELS["16k"])
    roots = small["hierarchy"].pop("total_root_nodes")
    published["hierarchy"].pop("total_root_nodes")
    assert (small.pop("num_features"), small.pop("hidden_dim"), roots) == size
    assert small == {key: published[key] for key in small}


def test_a_model_is_built_once_and_again_when_another_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    built: list[int] = []

    class Counting(SyntheticModel):
        def __init__(self, cfg, **parts):
            built.append(cfg.num_features)
            super().__init__(cfg, **parts)

    monkeypatch.setattr(synth_sae_bench, "SyntheticModel", Counting)
    monkeypatch.setitem(MODELS, "a", TINY)
    monkeypatch.setitem(MODELS, "b", MODELS["mini"].__class__(num_features=8, hidden_dim=4, seed=1))
    first = save_model("a", tmp_path / "model")
    assert save_model("a", tmp_path / "model") == first
    assert built == [64]
    assert save_model("b", tmp_path / "model") != first
    assert built == [64, 8]
    assert save_model("a", tmp_path / "model") == first


def test_a_saved_model_gives_the_samples_of_the_built_one(tmp_path: Path):
    source = save_tiny_model(tmp_path / "theirs")
    save_model(source, tmp_path / "ours")
    torch.manual_seed(3)
    wanted = SyntheticModel(TINY).sample(50)
    torch.manual_seed(3)
    torch.testing.assert_close(load_model(tmp_path / "ours").sample(50), wanted)


def test_a_model_without_a_seed_is_the_same_in_every_process(tmp_path: Path):
    SyntheticModel(MODELS["mini"].__class__(**{**vars(TINY), "seed": None})).save(tmp_path)
    first = load_model(tmp_path)
    torch.rand(3)
    before = torch.get_rng_state()
    second = load_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    spread = first.activation_generator.std_firing_magnitudes
    assert torch.equal(spread, second.activation_generator.std_firing_magnitudes)


def test_the_trees_of_a_model():
    children = children_by_parent(SyntheticModel(TINY).hierarchy)
    assert len(children) == 2 * (1 + 4)
    assert all(len(below) == 4 for below in children.values())
    assert sorted(sum(children.values(), [])) == list(range(2, 42))
