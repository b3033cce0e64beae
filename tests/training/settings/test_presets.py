"""recipe="paper" and recipe="best": one line that stands for many options, each of which can be overruled."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runner_helpers import TinyModel, token_dataset
from runner_helpers import options as run_options
from sae_lens import LanguageModelSAETrainingRunner, TopKTrainingSAEConfig

import sae_lens_matryoshka as slm
from sae_lens_matryoshka.settings.yaml_file import ConfigError, read_settings
from sae_lens_matryoshka.training.settings import presets as recipes
from sae_lens_matryoshka.training.settings.from_file import checked_config

FILES = Path(__file__).parents[3] / "train_configs"


def config(**options: Any) -> slm.LanguageModelSAERunnerConfig:
    options = {"d_in": 8, "d_sae": 64, "hook_name": "blocks.0.hook_resid_post", **options}
    return slm.LanguageModelSAERunnerConfig(**options)


def test_paper_is_the_example_of_the_papers_main_experiment():
    path = FILES / "gemma-2-2b-layer12-65k.yaml"
    example = checked_config(read_settings(path, []), str(path))
    ours = config(recipe="paper", d_in=2304, d_sae=65536, k=40, training_tokens=500_000_000)
    names = ("lr", "lr_warm_up_steps", "lr_decay_steps", "train_batch_size_tokens")
    for name in (*names, "dead_feature_window", "lr_scheduler_name"):
        assert getattr(ours, name) == getattr(example, name), name
    for name, value in ours.sae.to_dict().items():
        if name not in ("device", "metadata"):
            assert value == example.sae.to_dict()[name], name


def test_best_has_lengths_that_are_shares_of_the_run():
    cfg = config(recipe="best", k=8, training_tokens=6_000_000, train_batch_size_tokens=1000)
    assert (cfg.sae.resample_every, cfg.sae.resample_until) == (60, 4800)
    assert (cfg.sae.refinement_step, cfg.sae.refine_until) == (0.3, 4800)
    assert (cfg.lr_decay_steps, cfg.dead_feature_window) == (5400, 10)
    assert cfg.sae.widths == [2, 4, 8, 16, 32, 64]
    assert cfg.sae.k_aux == 4
    assert cfg.sae.latent_order == "frequency"
    assert cfg.sae.detach_inner_levels
    long = config(recipe="best", k=40, training_tokens=500_000_000, train_batch_size_tokens=2048)
    assert long.sae.resample_every == 2441


@pytest.mark.parametrize("recipe", ["paper", "best"])
def test_no_decay_beside_a_schedule_that_ends_low(recipe):
    """SAELens's decay would follow the whole schedule, squeezed into what is left of the run."""
    run = {"k": 8, "training_tokens": 6_000_000, "lr_scheduler_name": "cosineannealing"}
    assert config(recipe=recipe, **run).lr_decay_steps == 0


@pytest.mark.parametrize(
    "impossible",
    [
        {"train_batch_size_tokens": 0},
        {"training_tokens": None},
        {"lr_warm_up_steps": None},
        {"k": "8"},
        {"k": -3},
        {"d_sae": None},
    ],
    ids=str,
)
def test_what_is_impossible_without_the_recipe_is_answered_alike(impossible):
    answers = []
    for recipe in ({}, {"recipe": "best"}):
        with pytest.raises(Exception) as raised:
            config(**{"k": 8, "training_tokens": 6_000_000, **recipe, **impossible})
        answers.append((type(raised.value), str(raised.value)))
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("tokens", "batch", "window"),
    [
        (
            600_000,
            256,
            17,
        ),  # 100 * 1024 / 24 tokens, a hundred times as long as the average latent needs
        (600_000, 8192, 1),
        (60_000_000, 256, 390),  # a 600th of the run
        (60_000_000_000, 4096, 2441),  # 10 million tokens
        (10_000, 256, 9),  # a quarter of the run
    ],
)
def test_bests_dead_window(tokens, batch, window):
    cfg = config(
        recipe="best", k=24, d_sae=1024, training_tokens=tokens, train_batch_size_tokens=batch
    )
    assert cfg.dead_feature_window == window


def test_bests_decay_leaves_room_for_the_warm_up():
    run: dict[str, Any] = {
        "recipe": "best",
        "training_tokens": 1_000_000,
        "train_batch_size_tokens": 1000,
    }
    assert config(k=8, lr_warm_up_steps=50, **run).lr_decay_steps == 900
    assert config(k=8, lr_warm_up_steps=300, **run).lr_decay_steps == 700


def test_the_papers_dead_window_counts_tokens():
    cfg = config(recipe="paper", k=8, training_tokens=100_000_000, train_batch_size_tokens=16_384)
    assert cfg.dead_feature_window == 610


def test_a_run_too_short_for_the_papers_schedule():
    with pytest.raises(
        ValueError, match="lr_warm_up_steps=1000 and .* run of 976 steps.*'paper' added"
    ):
        config(recipe="paper", k=8, training_tokens=2_000_000)


def test_a_recipe_that_adds_nothing():
    given = recipes.options("paper", {})
    with pytest.raises(ValueError, match="recipe='paper' has no effect"):
        recipes.options("paper", given)


def test_what_is_given_is_kept():
    given = {
        "k_aux": 20,
        "latent_order": "fixed",
        "lr_decay_steps": 7,
        "dead_feature_window": 9,
    }
    cfg = config(recipe="best", k=8, **given)
    for name, value in given.items():
        assert getattr(cfg.sae if hasattr(cfg.sae, name) else cfg, name) == value


def test_without_d_sae_the_message_is_the_usual_one():
    with pytest.raises(ValueError, match="d_sae must be given"):
        slm.LanguageModelSAERunnerConfig(recipe="best", d_in=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "beste"}, r"recipe='beste' must be one of \['paper', 'best'\]"),
        ({"recipe": "best", "architecture": "topk"}, "for architecture 'matryoshka', not 'topk'"),
    ],
)
def test_impossible_recipes(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_errors_name_what_nobody_gave():
    with pytest.raises(
        ValueError,
        match=r"refinement_step=0.3 has no effect.*recipe='best' added .*refinement_step",
    ):
        config(recipe="best", activation="relu")


def test_what_errors_say_to_do_can_be_done():
    flat = {"k": 16, "matryoshka_widths": [64]}
    with pytest.raises(ValueError, match="added detach_inner_levels") as caught:
        config(recipe="best", **flat)
    assert "null" not in str(caught.value)  # is no bool
    config(recipe="best", **flat, detach_inner_levels=False, latent_order="fixed")


def test_the_demos_best_is_the_recipe(tmp_path, monkeypatch):
    from sae_lens_matryoshka.bench.inputs.demo_saes import BENCHMARKED
    from sae_lens_matryoshka.demo import quickstart

    made: list[slm.LanguageModelSAERunnerConfig] = []

    class Runner:
        def __init__(self, cfg, **_: Any):
            made.append(cfg)

        def run(self) -> None: ...

    monkeypatch.setattr(quickstart, "MatryoshkaSAETrainingRunner", Runner)
    quickstart.train(TinyModel(), ["a"], tmp_path, BENCHMARKED, recipe="best")
    sae = made[0].sae
    assert sae.widths == [32, 64, 128, 256, 512, 1024]
    assert (sae.latent_order, sae.detach_inner_levels) == ("frequency", True)
    # lengths are the recipe's, not the quickstart's
    assert (made[0].dead_feature_window, made[0].lr_decay_steps) == (17, 2343 * 9 // 10)


def test_beside_a_whole_configuration():
    sae = TopKTrainingSAEConfig(d_in=8, d_sae=64, k=4)
    with pytest.raises(ValueError, match="sae= gives all of them. Give them flat"):
        slm.LanguageModelSAERunnerConfig(sae=sae, recipe="best")


class TestFile:
    @pytest.fixture
    def load(self, tmp_path: Path):
        def load(*lines: str):
            path = tmp_path / "config.yaml"
            common = ["d_in: 8", "d_sae: 64", "sae: {k: 8}", "model_name: gpt2", "verbose: false"]
            common += ["hook_name: blocks.0.hook_resid_post", "dataset_path: some/dataset"]
            path.write_text("\n".join([*common, *lines]))
            return checked_config(read_settings(path, []), str(path))

        return load

    @pytest.mark.parametrize("recipe", ["paper", "best"])
    def test_says_the_same_as_the_call(self, load, recipe):
        ours = load(f"recipe: {recipe}", "training_tokens: 4_000_000", "lr_decay_steps: 3")
        other = config(recipe=recipe, k=8, training_tokens=4_000_000, lr_decay_steps=3)
        assert ours.sae.to_dict() | {"metadata": None} == other.sae.to_dict() | {"metadata": None}
        for name in ("lr", "lr_warm_up_steps", "lr_decay_steps", "dead_feature_window"):
            assert getattr(ours, name) == getattr(other, name), name

    def test_what_the_file_gives_otherwise_is_said(self, load, caplog):
        with caplog.at_level("WARNING"):
            load("recipe: best", "matryoshka_widths: [4, 16, 64]", "k_aux: 4")
        (line,) = [
            record.getMessage() for record in caplog.records if "recipe" in record.getMessage()
        ]
        assert "leaves as they are given: matryoshka_widths=[4, 16, 64]." in line
        assert "to have the recipe's: matryoshka_widths=[2, 4, 8, 16, 32, 64]." in line
        caplog.clear()
        load("recipe: best")
        assert not [r for r in caplog.records if "recipe" in r.getMessage()]

    def test_unknown(self, load):
        with pytest.raises(ConfigError, match="recipe='new' must be one of"):
            load("recipe: new")

    def test_of_a_run_that_is_resumed(self, tmp_path):
        """All options stand in what a run has saved of its configuration."""
        saved = tmp_path / "runner_cfg.json"
        saved.write_text(json.dumps(config(k=8, model_name="gpt2", dataset_path="a/b").to_dict()))
        settings = read_settings(saved, ["recipe=best"])
        with pytest.raises(ConfigError, match="recipe='best' has no effect.*resumed"):
            checked_config(settings, str(saved), is_saved=True)

    def test_another_architecture(self, load):
        with pytest.raises(
            ConfigError, match="recipe='best' is for architecture 'matryoshka', not 'topk'"
        ):
            load("recipe: best", "architecture: topk")


@pytest.mark.parametrize(
    "runner_class", [LanguageModelSAETrainingRunner, slm.MatryoshkaSAETrainingRunner]
)
def test_best_trains_under_both_runners(tmp_path, runner_class):
    options = run_options(tmp_path, recipe="best", lr_warm_up_steps=0)
    for name in ("lr_decay_steps", "dead_feature_window", "lr_scheduler_name"):
        del options[name]
    runner = runner_class(
        slm.LanguageModelSAERunnerConfig(**options),
        override_model=TinyModel(),
        override_dataset=token_dataset(),
    )
    runner.run()
    opened = slm.MatryoshkaSAE.load_from_disk(tmp_path / "output")
    assert opened.widths == (4, 12, 32)
    assert opened.sae.cfg.architecture() == "jumprelu"  # a stock one, for all its second look
    x = torch.randn(20, 16)
    assert opened.reconstructions(x).isfinite().all()
