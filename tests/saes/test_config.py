"""The configuration: defaults as documented, and an error for everything that cannot be."""

import dataclasses
import inspect
import json
import math

import numpy as np
import pytest
import torch
from driver_helpers import D_IN, D_SAE, DRIVERS
from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.saes.sae import SAEMetadata, TrainingSAEConfig

from sae_lens_matryoshka import MatryoshkaSAETrainingRunner, MatryoshkaTrainingSAEConfig
from sae_lens_matryoshka.saes.config_rules import check_lengths


def config(**options) -> MatryoshkaTrainingSAEConfig:
    return MatryoshkaTrainingSAEConfig(**{"d_in": 8, "d_sae": 64, **options})


class TestWidths:
    def test_none_gives_the_papers_widths(self):
        widths = config(d_sae=65_536).matryoshka_widths
        assert widths == [2048, 6144, 14336, 30720, 65536]

    def test_fractions_are_rounded_down_at_least_1_and_unique(self):
        assert config(d_sae=20, k=4).matryoshka_widths == [1, 4, 9, 20]
        assert config(d_sae=1, k=1).matryoshka_widths == [1]

    def test_d_sae_is_appended_to_a_copy(self):
        given = [4, 16]
        assert config(matryoshka_widths=given, k=4).matryoshka_widths == [4, 16, 64]
        assert given == [4, 16]

    def test_a_complete_list_is_copied_too(self):
        given = [4, 64]
        resolved = config(matryoshka_widths=given, k=4).matryoshka_widths
        assert resolved == given
        assert resolved is not given

    @pytest.mark.parametrize("widths", [np.array([4, 16]), torch.tensor([4, 16])])
    def test_arrays(self, widths):
        assert config(matryoshka_widths=widths, k=4).matryoshka_widths == [4, 16, 64]

    @pytest.mark.parametrize(
        ("widths", "message"),
        [
            ([16, 4], "strictly increasing"),
            ([4, 4, 64], "strictly increasing"),
            ([0, 64], "positive"),
            ([-3, 64], "positive"),
            ([2.5, 64], "whole"),
            ([4, 65], "beyond d_sae"),
            ([], "names no level"),
            (64, "a list"),
        ],
    )
    def test_impossible_widths(self, widths, message):
        with pytest.raises(ValueError, match=message) as error:
            config(matryoshka_widths=widths, k=4)
        assert str(widths) in str(error.value)


class TestActivationOptions:
    def test_defaults_of_each_activation(self):
        assert config(d_sae=128).k == 100
        assert config(d_sae=128).aux_loss == "global"
        assert config(d_sae=128, activation="topk").aux_loss == "global"
        relu = config(activation="relu")
        assert (relu.k, relu.aux_loss) == (None, "none")
        assert (relu.l1_coefficient, relu.l1_warm_up_steps) == (1.0, 0)
        jumprelu = config(activation="jumprelu")
        assert jumprelu.jumprelu_bandwidth == 0.05
        assert jumprelu.jumprelu_init_threshold == 0.01
        assert (jumprelu.l0_coefficient, jumprelu.l0_warm_up_steps) == (1.0, 0)
        assert jumprelu.target_l0 is None

    @pytest.mark.parametrize(
        ("activation", "option"),
        [
            ("relu", {"k": 4}),
            ("jumprelu", {"k": 4}),
            ("batchtopk", {"l1_coefficient": 0.1}),
            ("topk", {"l1_warm_up_steps": 5}),
            ("batchtopk", {"target_l0": 5}),
            ("jumprelu", {"l1_coefficient": 0.1}),
            ("relu", {"jumprelu_bandwidth": 0.1}),
            ("relu", {"jumprelu_init_threshold": 0.1}),
            ("batchtopk", {"l0_coefficient": 0.1}),
            ("topk", {"l0_warm_up_steps": 3}),
            ("relu", {"k_start": 20.0}),
            ("jumprelu", {"k_anneal_steps": 20}),
            ("topk", {"refinement_step": 0.3}),
            ("relu", {"refinement_step": 0.3}),
        ],
    )
    def test_an_option_of_another_activation(self, activation, option):
        top_k = {"k": 4} if activation in ("batchtopk", "topk") else {}
        with pytest.raises(ValueError, match="has no effect") as error:
            config(activation=activation, **top_k, **option)
        assert next(iter(option)) in str(error.value)
        assert repr(activation) in str(error.value)

    @pytest.mark.parametrize("k", [0, -1, 65, math.nan, math.inf, "4", True])
    def test_impossible_k(self, k):
        with pytest.raises(
            ValueError, match=r"k=.*greater than 0 and at most d_sae \(64\); the default is 100"
        ):
            config(k=k)

    def test_fractional_k_is_for_batchtopk_only(self):
        assert config(k=3.5).k == 3.5
        with pytest.raises(ValueError, match="whole number.*batchtopk"):
            config(k=3.5, activation="topk")

    def test_topk_stores_an_int(self):
        k = config(k=4.0, activation="topk").k
        assert k == 4
        assert isinstance(k, int)

    @pytest.mark.parametrize(
        ("name", "value", "others"),
        [
            ("activation", "gelu", {}),
            ("prefix_sampling", "pareto", {"k": 4}),
            ("aux_loss", "local", {"k": 4}),
            ("b_dec_init", "mean", {"k": 4}),
            ("latent_order", "size", {"k": 4}),
            ("k_start", 65, {"k": 4, "k_anneal_steps": 5}),
            ("k_anneal_steps", 0, {"k": 4, "k_start": 8}),
            ("tilt", 0, {"k": 4}),
            ("refinement_step", 0, {"k": 4}),
            ("refinement_step", math.nan, {"k": 4}),
            ("refine_until", 0, {"k": 4, "refinement_step": 0.3}),
            ("refine_until", 5, {"k": 4}),
            ("snap_after_steps", -1, {"k": 4}),
            ("snap_after_steps", 0.9, {"k": 4}),
            ("resample_every", 2.5, {"k": 4}),
            ("k_anneal_steps", 1.9, {"k": 4, "k_start": 8}),
            ("l1_warm_up_steps", 0.2, {"activation": "relu"}),
            ("resample_every", 0, {"k": 4}),
            ("resample_until", 9, {"k": 4, "resample_every": 10}),
            ("l1_coefficient", -1, {"activation": "relu"}),
            ("target_l0", 65, {"activation": "relu"}),
            ("target_l0", 0, {"activation": "jumprelu"}),
            ("jumprelu_bandwidth", 0, {"activation": "jumprelu"}),
            ("l0_warm_up_steps", -1, {"activation": "jumprelu"}),
            ("decoder_init_norm", 0, {"k": 4}),
            ("k_aux", 0, {"k": 4}),
            ("aux_loss_coefficient", -1, {"k": 4}),
            ("d_in", 0, {"k": 4}),
            ("d_sae", 0, {}),
        ],
    )
    def test_impossible_values_are_named(self, name, value, others):
        with pytest.raises(ValueError) as error:
            config(**others, **{name: value})
        assert f"{name}={value!r}" in str(error.value)

    def test_whole_floats_and_numpy_integers_become_int(self):
        cfg = config(
            d_in=8.0,
            d_sae=np.int64(64),
            k=4,
            matryoshka_widths=[8.0, np.int64(16)],
            prefix_sampling="random",
            n_prefixes=5.0,
            k_aux=2.0,
        )
        values = [cfg.d_in, cfg.d_sae, *cfg.widths, cfg.n_prefixes, cfg.k_aux]
        assert values == [8, 64, 8, 16, 64, 5, 2]
        assert all(type(value) is int for value in values)


class TestLevelWeights:
    def test_wrong_length_counts_d_sae(self):
        with pytest.raises(ValueError, match=r"2 entries for the 3 levels \[4, 16, 64\]"):
            config(matryoshka_widths=[4, 16], level_weights=[1, 1], k=4)

    @pytest.mark.parametrize("bad", [[1, -1, 1], [1, math.nan, 1], [1, math.inf, 1], [1, "1", 1]])
    def test_negative_or_not_finite(self, bad):
        with pytest.raises(ValueError, match="finite numbers, at least 0"):
            config(matryoshka_widths=[4, 16, 64], level_weights=bad, k=4)

    def test_all_zero(self):
        with pytest.raises(ValueError, match="leaves every level out"):
            config(matryoshka_widths=[4, 64], level_weights=[0, 0], k=4)

    def test_list_and_mu_exclude_each_other(self):
        with pytest.raises(ValueError, match="Give one"):
            config(matryoshka_widths=[64], level_weights=[1], level_weight_mu=0.5, k=4)

    def test_negative_mu(self):
        with pytest.raises(ValueError, match="level_weight_mu=-0.5"):
            config(level_weight_mu=-0.5, k=4)


class TestPrefixes:
    @pytest.mark.parametrize("option", [{"n_prefixes": 5}, {"pareto_power": 0.7}])
    def test_random_options_with_fixed_widths(self, option):
        with pytest.raises(ValueError, match="prefix_sampling='random'"):
            config(k=4, **option)

    def test_the_default_does_not_count_as_given(self):
        assert config(k=4, n_prefixes=10, pareto_power=0.5).prefix_sampling == "fixed"

    @pytest.mark.parametrize("n", [0, 65, 2.5, "5"])
    def test_impossible_numbers_of_prefixes(self, n):
        with pytest.raises(ValueError, match=r"from 1 to d_sae \(64\)"):
            config(k=4, prefix_sampling="random", n_prefixes=n)

    def test_a_list_of_weights_needs_fixed_levels(self):
        with pytest.raises(ValueError, match="Use level_weight_mu"):
            config(
                k=4,
                prefix_sampling="random",
                matryoshka_widths=[64],
                level_weights=[1],
            )
        assert config(k=4, prefix_sampling="random", level_weight_mu=0.5)

    def test_per_level_aux_needs_fixed_levels(self):
        with pytest.raises(ValueError, match="aux_loss='global'"):
            config(k=4, prefix_sampling="random", aux_loss="per_level")


class TestAuxLoss:
    @pytest.mark.parametrize("option", [{"aux_loss_coefficient": 0.5}, {"k_aux": 3}])
    def test_options_without_the_loss(self, option):
        with pytest.raises(ValueError, match="has no effect with aux_loss='none'"):
            config(k=4, aux_loss="none", **option)
        with pytest.raises(ValueError, match="the default of relu"):
            config(activation="relu", **option)

    def test_other_activations_can_ask_for_it(self):
        assert config(activation="relu", aux_loss="global", k_aux=3).k_aux == 3


class TestOptionsThatNeedOthers:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"k_start": 20}, "k_start=20 and k_anneal_steps=None belong together"),
            ({"k_anneal_steps": 20}, "k_start=None and k_anneal_steps=20 belong together"),
            ({"resample_until": 20}, "resample_until=20 has no effect without resample_every"),
            (
                {"detach_inner_levels": True, "matryoshka_widths": [8]},
                r"no effect with the levels \[8, 64\]",
            ),
            (
                {"detach_inner_levels": True, "prefix_sampling": "random"},
                "needs fixed levels",
            ),
            ({"k_start": 4, "k_anneal_steps": 9}, "k_start=4 is k: there is nothing to anneal"),
            (
                {"activation": "topk", "k_start": 0.5, "k_anneal_steps": 9},
                "k_start=0.5 must be at least 1 with activation='topk'",
            ),
            (
                {"detach_inner_levels": True, "level_weight_mu": 0},
                "every level between the innermost and the outermost has weight 0",
            ),
            (
                {"latent_order": "frequency", "matryoshka_widths": [64]},
                "latent_order='frequency' has no effect with one level",
            ),
            (
                {"level_weight_mu": 0.5, "matryoshka_widths": [64]},
                "level_weight_mu=0.5 has no effect with one level",
            ),
        ],
    )
    def test_are_refused_without_them(self, options, message):
        with pytest.raises(ValueError, match=message):
            config(k=4, **options)


@pytest.mark.parametrize("activation", ["relu", "jumprelu"])
def test_snapping_is_for_the_top_k(activation):
    """The penalty would outweigh an error that is a norm and no square: few latents would be left."""
    with pytest.raises(ValueError, match="snap_after_steps=5 with activation=.*keeps its weight"):
        config(activation=activation, snap_after_steps=5)


def test_a_controller_needs_something_to_control():
    with pytest.raises(ValueError, match="target_l0=3 has no effect with l1_coefficient=0"):
        config(activation="relu", target_l0=3, l1_coefficient=0)
    # its thresholds are set when it is saved
    config(activation="jumprelu", target_l0=3, l0_coefficient=0)


def test_numbers_of_numpy_can_be_saved():
    cfg = config(
        k=np.float32(4),
        tilt=np.float32(0.5),
        level_weights=[np.float32(1), np.int64(2), 1],
        matryoshka_widths=[np.int64(4), 16, 64],
        resample_every=np.int64(8),
    )
    assert json.loads(json.dumps(cfg.to_dict()))["level_weights"] == [1, 2, 1]
    assert (cfg.k, cfg.tilt, cfg.resample_every) == (4, 0.5, 8)


def test_a_controller_needs_time():
    cfg = config(activation="relu", target_l0=3, l1_warm_up_steps=100)
    check_lengths(cfg, n_steps=101, dead_feature_window=30)
    with pytest.raises(ValueError, match="target_l0=3 has no effect: its controller begins after"):
        check_lengths(cfg, n_steps=100, dead_feature_window=30)


def test_lists_are_not_shared_with_the_caller():
    widths, weights = [4, 16, 64], [1.0, 1.0, 1.0]
    cfg = config(matryoshka_widths=widths, level_weights=weights, k=4)
    widths[0], weights[0] = 8, -5.0
    assert (cfg.matryoshka_widths, cfg.level_weights) == ([4, 16, 64], [1, 1, 1])


class TestLengths:
    """Options that count steps, in a run of 100 steps whose latents are dead after 30."""

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"k_start": 8, "k_anneal_steps": 100},
            {"snap_after_steps": 99},
            {"resample_every": 50, "resample_until": 60},
        ],
    )
    def test_fitting(self, options):
        check_lengths(config(k=4, **options), n_steps=100, dead_feature_window=30)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"k_start": 8, "k_anneal_steps": 101},
                "k_anneal_steps=101 is longer than the run of 100",
            ),
            ({"snap_after_steps": 100}, "snap_after_steps=100 has no effect"),
            ({"refinement_step": 0.3, "refine_until": 100}, "refine_until=100 is not reached"),
            ({"resample_every": 100}, "the last step to resample at is 0"),
            ({"resample_every": 25, "resample_until": 100}, "resample_until=100 has no effect"),
            ({"resample_every": 25, "resample_until": 49}, "the last step to resample at is 25"),
            ({"resample_every": 10, "resample_until": 30}, "dead after dead_feature_window=30"),
        ],
    )
    def test_without_effect(self, options, message):
        with pytest.raises(ValueError, match=message):
            check_lengths(config(k=4, **options), n_steps=100, dead_feature_window=30)

    @pytest.mark.parametrize("driver", DRIVERS)
    @pytest.mark.parametrize(
        "options", [{"k_start": 8, "k_anneal_steps": 10_000}, {"snap_after_steps": 500}], ids=str
    )
    def test_no_driver_trains_without_them(self, tmp_path, driver, options):
        cfg = MatryoshkaTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=4, **options)
        with pytest.raises(ValueError, match="the run of 30 steps|a run of 30 steps"):
            DRIVERS[driver](cfg, tmp_path, steps=30)

    def test_our_runner_checks_a_stock_configuration(self, tmp_path):
        given = {"k_start": 8, "k_anneal_steps": 10_000}
        sae = MatryoshkaTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=4, **given)
        stock = LanguageModelSAERunnerConfig(
            sae=sae, model_name="no/such-model", n_batches_in_buffer=64
        )
        stock.training_tokens = 30 * stock.train_batch_size_tokens
        with pytest.raises(ValueError, match="longer than the run of 30 steps"):
            MatryoshkaSAETrainingRunner(stock)


class TestSAELensContract:
    def test_every_field_is_documented(self):
        doc = inspect.getdoc(MatryoshkaTrainingSAEConfig) or ""
        for field in dataclasses.fields(MatryoshkaTrainingSAEConfig):
            assert f"\n    {field.name} (" in doc, field.name

    @pytest.mark.parametrize(
        "options",
        [
            {"k": 3.5, "matryoshka_widths": [4], "level_weights": [1, 2]},
            {"k": 4, "activation": "topk", "level_weight_mu": 0.5, "aux_loss": "none"},
            {"activation": "relu", "target_l0": 3, "prefix_sampling": "random"},
            {"activation": "jumprelu", "target_l0": 3, "b_dec_init": "geometric_median"},
        ],
    )
    def test_to_dict_and_back_through_saelens(self, options):
        cfg = config(**options)
        again = TrainingSAEConfig.from_dict(cfg.to_dict())
        assert type(again) is MatryoshkaTrainingSAEConfig
        assert again.to_dict() == cfg.to_dict()

    def test_replace_keeps_everything_valid(self):
        cfg = config(activation="topk", k=4)
        again = dataclasses.replace(cfg, metadata=SAEMetadata(hook_name="h"))
        assert (again.k, again.metadata.hook_name) == (4, "h")

    def test_levels_travel_in_saelens_metadata(self):
        details = config(k=4).get_inference_sae_cfg_dict()["metadata"]
        details = details["training_architecture_details"]
        assert details["matryoshka_widths"] == [2, 6, 14, 30, 64]

    @pytest.mark.parametrize(
        ("activation", "architecture"),
        [
            ("batchtopk", "jumprelu"),
            ("jumprelu", "jumprelu"),
            ("topk", "topk"),
            ("relu", "standard"),
        ],
    )
    def test_saved_as_a_stock_architecture(self, activation, architecture):
        top_k = {"k": 4} if activation in ("batchtopk", "topk") else {}
        saved = config(activation=activation, **top_k).get_inference_sae_cfg_dict()
        assert saved["architecture"] == architecture
