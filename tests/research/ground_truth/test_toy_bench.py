"""The comparison on the toy tree."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE

from research.ground_truth.toy_bench import ToyResult, ToyTreeConfig, run, table
from research.ground_truth.toy_training import _config, _lr_factor, _sort
from research.ground_truth.toy_tree import D_IN, N_FEATURES
from sae_lens_matryoshka.saes.training_sae import MatryoshkaTrainingSAE
from sae_lens_matryoshka.settings.strict_models import validated
from sae_lens_matryoshka.settings.yaml_file import ConfigError, read_mapping

CONFIGS = Path(__file__).parents[3] / "bench_configs"


def test_the_schedule_ends_at_a_tenth():
    factors = [_lr_factor(step, 40_000) for step in (0, 49, 99, 31_999, 36_000, 40_000)]
    assert factors == pytest.approx([0.01, 0.5, 1, 1, 0.55, 0.1], abs=1e-4)


def test_the_shipped_config_is_the_papers():
    config = validated(ToyTreeConfig, read_mapping(CONFIGS / "toy_tree.yaml"))
    assert (config.seeds, config.steps) == ([0, 1, 2, 3, 4], 40_000)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (("stps", 2), "stps: unknown key. Did you mean 'steps'"),
        (("seeds", []), "seeds: List should have at least 1"),
        (("seeds", [0, 0]), r"seeds: \[0, 0\] holds a seed twice"),
        (("steps", 10), "steps: Input should be greater"),
    ],
)
def test_wrong_settings(override: tuple[str, Any], message: str):
    settings = read_mapping(CONFIGS / "toy_tree.yaml")
    with pytest.raises(ConfigError, match=message):
        validated(ToyTreeConfig, settings, "toy_tree.yaml", [override])


def test_the_table():
    results = [ToyResult("vanilla", seed, 8 + seed, 0.5, 0.8, 0.7, 1.2, [[1.0]]) for seed in (0, 2)]
    text = table(results)
    assert "9.0 ± 1.4 of 20 |" in text and "over 2 seeds" in text
    assert "8.0 of 20" in table(results[:1]) and "One seed." in table(results[:1])


def test_sorting_moves_whole_latents():
    sae = MatryoshkaTrainingSAE(_config("matryoshka"))
    x, order = torch.randn(8, D_IN), torch.randperm(N_FEATURES)
    W_dec, acts, recons = sae.W_dec.detach().clone(), sae.encode(x), sae(x)
    _sort(sae, order)
    assert torch.equal(sae.W_dec, W_dec[order])
    torch.testing.assert_close(sae.encode(x), acts[:, order])
    torch.testing.assert_close(sae(x), recons)


@pytest.mark.slow
def test_vanilla_absorbs_and_the_same_seed_gives_the_same_numbers(tmp_path: Path):
    config = ToyTreeConfig(kind="toy_tree", seeds=[0], steps=3_000, jobs=2, output=tmp_path / "a")
    results, text = run(config, verbose=False)
    vanilla, matryoshka = results
    assert (vanilla.arm, matryoshka.arm) == ("vanilla", "matryoshka")
    assert 8 <= vanilla.n_absorbed <= 10  # the paper's: 9
    assert matryoshka.n_absorbed < vanilla.n_absorbed
    stock = SAE.load_from_disk(tmp_path / "a" / "saes" / "vanilla_seed_0")
    torch.testing.assert_close(stock.W_dec.norm(dim=-1), torch.ones(20))
    written = json.loads((tmp_path / "a" / "results.json").read_text())
    assert written["results"][0]["cosines"] == vanilla.cosines
    assert (tmp_path / "a" / "results.md").read_text() == text
    assert (tmp_path / "a" / "heat_maps.png").stat().st_size > 10_000
    again, _ = run(config.model_copy(update={"output": tmp_path / "b"}), verbose=False)
    assert again == results
