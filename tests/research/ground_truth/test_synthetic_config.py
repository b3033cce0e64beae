"""What the YAML file of `kind: synthetic` may say."""

from pathlib import Path
from typing import Any

import pytest
from sae_lens import BatchTopKTrainingSAEConfig
from sae_lens.synthetic import SyntheticSAERunnerConfig
from synthetic_helpers import config, settings

from research.ground_truth.synth_sae_bench import MODELS
from research.ground_truth.synthetic_config import SyntheticConfig
from sae_lens_matryoshka.saes.config import MatryoshkaTrainingSAEConfig
from sae_lens_matryoshka.settings.strict_models import validated
from sae_lens_matryoshka.settings.yaml_file import ConfigError, read_mapping

CONFIGS = Path(__file__).parents[3] / "bench_configs"


def shipped(name: str) -> SyntheticConfig:
    return validated(SyntheticConfig, read_mapping(CONFIGS / f"{name}.yaml"), name)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("synthetic_*.yaml")))
def test_a_shipped_config_names_arms_that_can_be_built(name: str):
    comparison = shipped(name)
    d_in = MODELS[comparison.model].hidden_dim
    for arm in comparison.arms:
        sae = comparison.sae_config(arm, d_in)
        assert (sae.d_in, sae.d_sae) == (d_in, comparison.d_sae)
    assert comparison.output.name == name


def test_16k_has_the_published_settings():
    comparison = shipped("synthetic_16k")
    assert (comparison.model, comparison.d_sae, comparison.k) == ("16k", 4096, 25)
    trainer = comparison.trainer_config("plain")
    assert (trainer.lr, trainer.train_batch_size_samples) == (1e-3, 512)  # of a shorter run
    plain = comparison.sae_config("plain", 768)
    assert isinstance(plain, MatryoshkaTrainingSAEConfig)
    assert plain.matryoshka_widths == [128, 512, 2048, 4096]
    assert plain.aux_loss == "per_level"


def test_the_trainers_defaults_are_saelenss_and_an_arm_may_differ(tmp_path: Path):
    arms = {"a": {}, "b": {"training": {"lr": 0.01, "lr_decay_steps": 5}}}
    comparison = config(tmp_path, arms=arms, lr_decay_steps=2, dead_feature_window=9)
    default = SyntheticSAERunnerConfig(
        synthetic_model="", sae=comparison.sae_config("a", 16)
    ).to_sae_trainer_config()
    ours, other = comparison.trainer_config("a"), comparison.trainer_config("b")
    names = ("lr", "lr_end", "lr_scheduler_name", "lr_warm_up_steps")
    for name in (*names, "adam_beta1", "adam_beta2", "feature_sampling_window"):
        assert getattr(ours, name) == getattr(default, name)
    assert (ours.lr_decay_steps, other.lr_decay_steps) == (2, 5)
    assert (ours.dead_feature_window, other.dead_feature_window) == (9, 9)
    assert other.lr == 0.01


def test_all_arms_get_the_same_width_and_k(tmp_path: Path):
    arms: dict[str, Any] = {
        "flat": {"architecture": "batchtopk"},
        "per_sample": {"architecture": "topk"},
        "ours": None,
        "relu": {"activation": "relu"},
        "jumprelu": {"architecture": "jumprelu"},
    }
    comparison = config(tmp_path, arms=arms)
    made = {arm: comparison.sae_config(arm, 16) for arm in arms}
    assert isinstance(made["flat"], BatchTopKTrainingSAEConfig)
    assert isinstance(made["ours"], MatryoshkaTrainingSAEConfig)
    assert {sae.d_sae for sae in made.values()} == {32}
    ks = {arm: getattr(sae, "k", "no field") for arm, sae in made.items()}
    assert ks == {"flat": 3, "per_sample": 3, "ours": 3, "relu": None, "jumprelu": "no field"}


def test_saelens_may_change_its_lists_but_not_ours(tmp_path: Path):
    arms = {"a": {"architecture": "matryoshka_batchtopk", "matryoshka_widths": [4, 16]}}
    comparison = config(tmp_path, arms=arms)
    comparison.sae_config("a", 16).matryoshka_widths.append(99)
    assert comparison.sae_config("a", 16).matryoshka_widths[:2] == [4, 16]
    assert 99 not in comparison.sae_config("a", 16).matryoshka_widths
    assert arms["a"]["matryoshka_widths"] == [4, 16]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (("smaples", 2), "smaples: unknown key. Did you mean 'samples'"),
        (("seeds", [3, 3]), r"seeds: \[3, 3\] holds a seed twice"),
        (("baseline", "falt"), "baseline: there is no arm 'falt'. Did you mean 'flat'"),
        (("arms", {}), "arms: Dictionary should have at least 1 item"),
        (("arms.a/b", {}), r"a/b.*should match pattern"),
        (("arms.flat", 3), r"arms.flat: give a mapping, e\.g\."),
        (("arms.flat.k", 4), "arms.flat: k=4 belongs to the top of the file"),
        (("arms.flat.d_sae", 64), "arms.flat: d_sae=64 belongs to the top of the file"),
        (("arms.flat.lr", 0.1), "arms.flat: unknown key 'lr'"),
        (("arms.nested.matryoshka_width", [4]), "Did you mean 'matryoshka_widths'"),
        (("arms.nested.matryoshka_widths", 4), "is 4, but must be a list"),
        (("arms.nested.matryoshka_widths", [8, 64]), "reaches beyond d_sae"),
        (("arms.flat.architecture", "batchtop"), "'batchtop' is not registered.* batchtopk,"),
        (("arms.flat.training.lrr", 1), "arms.flat.training.lrr: unknown key. Did you mean 'lr'"),
        (("arms.flat.training.lr", 0), r"arms.flat.training.lr: .*greater than 0 \(given: 0\)"),
        (
            ("arms.flat.normalize_activations", "expected_average_only_in"),
            "arms.flat: normalize_activations='expected_average_only_in' scales by statistics",
        ),
        (
            ("lr_decay_steps", 16),
            "arms.flat: lr_warm_up_steps=0 and lr_decay_steps=16 do not fit into the run of 15",
        ),
        (("samples", 100), "100 samples do not fill a batch of 128"),
        (("arms.flat", {"architecture": "topk"}), "k is 2.5, but must be a whole number"),
        (("model", "min"), "neither a model nor a folder 'min'. Did you mean 'mini'"),
        (("model", "./nowhere"), "./nowhere holds no synthetic_model_config.json"),
    ],
)
def test_wrong_settings(tmp_path: Path, override: tuple[str, Any], message: str):
    given = settings(tmp_path, model="mini", k=2.5)
    with pytest.raises(ConfigError, match=message):
        validated(SyntheticConfig, given, "mine.yaml", [override])


def test_a_model_of_the_hub_is_left_to_saelens(tmp_path: Path):
    name = "decoderesearch/synth-sae-bench-16k-v1"
    assert validated(SyntheticConfig, settings(tmp_path, model=name)).model == name


class TestRecipe:
    def test_fills_in_the_sae_and_its_trainer(self, tmp_path: Path):
        arms = {"best": {"recipe": "best", "k_aux": 5, "training": {"dead_feature_window": 7}}}
        comparison = config(tmp_path, arms=arms)
        sae, trainer = comparison.sae_config("best", 16), comparison.trainer_config("best")
        assert isinstance(sae, MatryoshkaTrainingSAEConfig)
        assert (sae.latent_order, sae.k_aux) == ("frequency", 5)
        steps = trainer.total_training_steps
        assert sae.resample_until == steps * 4 // 5
        assert (trainer.lr_decay_steps, trainer.dead_feature_window) == (steps * 9 // 10, 7)

    def test_the_papers_leaves_the_data_as_they_are(self, tmp_path: Path):
        arms = {"paper": {"recipe": "paper", "training": {"lr_warm_up_steps": 1}}}
        sae = config(tmp_path, arms=arms).sae_config("paper", 16)
        assert (sae.normalize_activations, sae.decoder_init_norm) == ("none", 1.0)

    def test_errors_name_what_it_added(self, tmp_path: Path):
        with pytest.raises(
            ValueError, match=r"arms.paper: lr_warm_up_steps=1000.*recipe='paper' added"
        ):
            config(tmp_path, arms={"paper": {"recipe": "paper"}})

    def test_is_for_our_architecture_only(self, tmp_path: Path):
        with pytest.raises(ValueError, match="recipe=.best. is for architecture .matryoshka., not"):
            config(tmp_path, arms={"a": {"architecture": "batchtopk", "recipe": "best"}})
