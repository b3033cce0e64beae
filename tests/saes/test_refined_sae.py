"""What an SAE with refinement_step is saved as: against its formula, and through every fold, cut and driver."""

import json

import pytest
import torch
from driver_helpers import BATCH, DRIVERS, activations
from driver_helpers import D_IN as DRIVEN_D_IN
from driver_helpers import D_SAE as DRIVEN_D_SAE
from sae_lens import SAE, TrainingSAE
from sae_lens.saes.sae import TrainStepInput

from sae_lens_matryoshka import (
    MatryoshkaSAE,
    MatryoshkaTrainingSAE,
    MatryoshkaTrainingSAEConfig,
    calibrate_threshold,
    engine,
)
from sae_lens_matryoshka.saes.inference_sae import copy_of, inference_form
from sae_lens_matryoshka.saes.refined_sae import RefinedSAE, RefinedSAEConfig

D_IN, D_SAE, K, STEP, WIDTHS = 12, 40, 5, 2.0, [4, 15, 40]


@pytest.fixture(autouse=True, params=["dense", "sparse"])
def path(request):
    """Thresholds are counted, and training SAEs encode, on either of the engine's paths."""
    with engine.using(request.param):
        yield request.param


def data(n: int = 300, seed: int = 3) -> torch.Tensor:
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed)) + 0.2


def trained(**options) -> MatryoshkaTrainingSAE:
    """As after training: random weights, and batches seen to set the thresholds by."""
    torch.manual_seed(0)
    options = {"k": K, "refinement_step": STEP, "matryoshka_widths": WIDTHS, **options}
    sae = MatryoshkaTrainingSAE(MatryoshkaTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, **options))
    for parameter in sae.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    see(sae, data())
    return sae


def see(sae: MatryoshkaTrainingSAE, x: torch.Tensor) -> None:
    sae.training_forward_pass(TrainStepInput(x.to(sae.dtype), {}, None, 0, False))


def untrained(**options) -> RefinedSAE:
    torch.manual_seed(0)
    sae = RefinedSAE(RefinedSAEConfig(d_in=D_IN, d_sae=D_SAE, refinement_step=0.5, **options))
    for name, parameter in sae.named_parameters():
        parameter.data += torch.randn_like(parameter) * 0.3
        if "threshold" in name:
            parameter.data.abs_()
    return sae


def formula(sae: RefinedSAE, x: torch.Tensor) -> torch.Tensor:
    """The activations, token by token and latent by latent."""
    b_in = sae.b_dec if sae.cfg.apply_b_dec_to_input else torch.zeros(D_IN)
    rows = []
    for token in x:
        first = []
        for j in range(sae.cfg.d_sae):
            pre = (token - b_in) @ sae.W_enc[:, j] + sae.b_enc[j]
            first.append(pre if pre > sae.start_threshold[j] else pre * 0)
        left = token - sae.b_dec - sum(a * sae.W_dec[j] for j, a in enumerate(first))
        refined = [
            (token - b_in + sae.cfg.refinement_step * left) @ sae.W_enc[:, j] + sae.b_enc[j]
            for j in range(sae.cfg.d_sae)
        ]
        rows.append([r if r > sae.threshold[j] else r * 0 for j, r in enumerate(refined)])
    return torch.tensor(rows)


@torch.no_grad()
def assert_same_function(actual: SAE, expected: SAE, x: torch.Tensor, unit: float = 1.0) -> None:
    """Reconstructions agree up to rounding, and the same latents fire."""
    torch.testing.assert_close(actual(x), expected(x), rtol=1e-4, atol=1e-4 * unit)
    assert torch.equal(actual.encode(x) > 0, expected.encode(x) > 0)


class TestEncode:
    @pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
    def test_against_the_formula(self, apply_b_dec_to_input):
        sae, x = untrained(apply_b_dec_to_input=apply_b_dec_to_input), data(10)
        acts = sae.encode(x)
        torch.testing.assert_close(acts, formula(sae, x))
        assert ((acts > 0) != (sae.first_pass(sae.process_sae_in(x)) > 0)).any()
        torch.testing.assert_close(sae(x), formula(sae, x) @ sae.W_dec + sae.b_dec)
        torch.testing.assert_close(sae.encode(x.view(2, 5, -1)), acts.view(2, 5, -1))

    def test_hooks_are_where_jumprelu_has_them(self):
        sae, x = untrained(), data(10)
        _, cache = sae.run_with_cache(x)
        acts, hidden_pre = cache["hook_sae_acts_post"], cache["hook_sae_acts_pre"]
        assert torch.equal(acts, sae.encode(x))
        assert torch.equal(acts, hidden_pre * (hidden_pre > sae.threshold))
        silence = ("hook_sae_acts_post", lambda acts, hook: torch.zeros_like(acts))  # noqa: ARG005
        silenced = sae.run_with_hooks(x, fwd_hooks=[silence])
        assert torch.equal(silenced, sae.b_dec.expand_as(x))

    def test_the_step_must_be_given(self):
        with pytest.raises(TypeError, match="refinement_step"):
            RefinedSAEConfig(d_in=D_IN, d_sae=D_SAE)  # type: ignore[call-arg]


class TestFolds:
    """None changes the function."""

    def test_decoder_norms(self):
        sae = untrained()
        folded = copy_of(sae)
        folded.fold_W_dec_norm()
        torch.testing.assert_close(folded.W_dec.norm(dim=-1), torch.ones(D_SAE))
        assert_same_function(folded, sae, data())

    def test_scale_of_the_input(self):
        sae = untrained(normalize_activations="expected_average_only_in")
        folded = copy_of(sae)
        folded.fold_activation_norm_scaling_factor(5.0)
        torch.testing.assert_close(5 * folded(data() / 5), sae(data()), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
    def test_whitening(self, apply_b_dec_to_input):
        sae = untrained(apply_b_dec_to_input=apply_b_dec_to_input)
        folded, (mean, matrix, inverse) = copy_of(sae), whitening()
        folded.fold_activation_whitening(mean, matrix, inverse)
        z = (data() - mean) @ matrix
        torch.testing.assert_close(folded(data()), sae(z) @ inverse + mean, rtol=1e-3, atol=1e-3)


def whitening() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    matrix = torch.eye(D_IN) + 0.1 * torch.randn(D_IN, D_IN, generator=generator)
    return torch.randn(D_IN, generator=generator), matrix, torch.linalg.inv(matrix)


class TestSavedForm:
    @pytest.mark.parametrize("rescale", [True, False])
    @pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
    @pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
    def test_loads_as_what_was_trained(self, tmp_path, rescale, apply_b_dec_to_input, normalize):
        sae = trained(
            rescale_acts_by_decoder_norm=rescale,
            apply_b_dec_to_input=apply_b_dec_to_input,
            normalize_activations=normalize,
        )
        before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
        sae.save_inference_model(tmp_path)
        saved = SAE.load_from_disk(tmp_path)
        # on the very batch that the thresholds were counted on: the same latents fire, in both passes
        assert_same_function(saved, sae, data())
        assert_same_function(inference_form(sae), saved, data())
        for name, tensor in sae.state_dict().items():
            assert torch.equal(tensor, before[name]), name

    def test_what_is_written(self, tmp_path):
        trained().save_inference_model(tmp_path)
        cfg = json.loads((tmp_path / "cfg.json").read_text())
        assert (cfg["architecture"], cfg["refinement_step"]) == ("matryoshka_refined", STEP)
        assert cfg["metadata"]["training_architecture_details"]["matryoshka_widths"] == WIDTHS
        saved = SAE.load_from_disk(tmp_path)
        assert isinstance(saved, RefinedSAE)
        assert {name: tuple(p.shape) for name, p in saved.named_parameters()} == {
            "W_enc": (D_IN, D_SAE),
            "b_enc": (D_SAE,),
            "W_dec": (D_SAE, D_IN),
            "b_dec": (D_IN,),
            "start_threshold": (D_SAE,),
            "threshold": (D_SAE,),
        }
        torch.testing.assert_close(saved.W_dec.norm(dim=-1), torch.ones(D_SAE))

    def test_thresholds_are_counted_on_all_recent_batches(self):
        sae = trained()
        for seed in range(10, 15):
            see(sae, data(seed=seed))
        saved = inference_form(sae)
        x = torch.cat([data(), *(data(seed=seed) for seed in range(10, 15))])
        first = saved.first_pass(saved.process_sae_in(x))
        for acts in (first, saved.encode(x)):
            assert (acts > 0).sum() == K * len(x)

    def test_bfloat16(self, tmp_path):
        sae = trained(dtype="bfloat16")
        sae.save_inference_model(tmp_path)
        saved = SAE.load_from_disk(tmp_path)
        assert saved.start_threshold.dtype == torch.bfloat16
        l0 = (saved.encode(data().bfloat16()) > 0).sum(dim=-1).float().mean()
        assert l0.item() == pytest.approx(K, rel=0.03)

    def test_folded_decoder_norms(self):
        sae = trained()
        expected = inference_form(sae)
        sae.fold_W_dec_norm()
        assert_same_function(inference_form(sae), expected, data())

    @pytest.mark.parametrize("rescale", [True, False])
    @pytest.mark.parametrize("forgotten", [False, True])
    def test_folded_scale_of_the_input(self, rescale, forgotten):
        sae = trained(
            rescale_acts_by_decoder_norm=rescale, normalize_activations="expected_average_only_in"
        )
        if forgotten:
            see(sae, data(seed=4))
            sae.recent_activations.transform(lambda x: x[:0])  # the running thresholds stand in
        expected = inference_form(sae)
        sae.fold_activation_norm_scaling_factor(5.0)
        actual = inference_form(sae)
        x = data()
        torch.testing.assert_close(5 * actual(x / 5), expected(x), rtol=1e-4, atol=1e-4)
        assert (expected.encode(x) > 0).sum().item() == pytest.approx(K * len(x), rel=0.02)

    @pytest.mark.parametrize("rescale", [True, False])
    @pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
    def test_folded_whitening(self, rescale, apply_b_dec_to_input):
        sae = trained(
            rescale_acts_by_decoder_norm=rescale,
            apply_b_dec_to_input=apply_b_dec_to_input,
            normalize_activations="covariance_whitening",
        )
        expected, (mean, matrix, inverse) = inference_form(sae), whitening()
        sae.fold_activation_whitening(mean, matrix, inverse)
        raw = data() @ inverse + mean  # what is whitened to the batch that was seen
        torch.testing.assert_close(
            inference_form(sae)(raw), expected(data()) @ inverse + mean, rtol=1e-3, atol=1e-3
        )

    def test_latents_are_sorted_with_both_thresholds(self):
        torch.manual_seed(1)
        sae, plain = trained(latent_order="frequency"), trained()
        sae.latent_scores.copy_(torch.rand(D_SAE))
        order = sae.latent_scores.argsort(descending=True)
        saved, expected = inference_form(sae), inference_form(plain)
        torch.testing.assert_close(saved.W_dec, expected.W_dec[order])
        torch.testing.assert_close(saved.encode(data()), expected.encode(data())[:, order])

    def test_from_a_checkpoint_without_recent_activations(self, tmp_path):
        sae = trained()
        for seed in range(40):
            see(sae, data(seed=seed))
        sae.save_model(tmp_path)
        loaded = TrainingSAE.load_from_disk(tmp_path)
        saved, x = inference_form(loaded), data(2000, seed=99)
        assert len(loaded.recent_activations) == 0
        first = saved.first_pass(saved.process_sae_in(x))
        for acts in (first, saved.encode(x)):
            assert (acts > 0).sum().item() == pytest.approx(K * len(x), rel=0.1)


class TestLevels:
    @pytest.mark.parametrize("normalize", ["none", "layer_norm"])
    @pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
    def test_reconstructions_are_those_of_the_levels_alone(self, normalize, apply_b_dec_to_input):
        sae = trained(normalize_activations=normalize, apply_b_dec_to_input=apply_b_dec_to_input)
        matryoshka, x = MatryoshkaSAE.from_sae(sae), data()
        recons = matryoshka.reconstructions(x)
        assert recons.shape == (3, len(x), D_IN)
        for index in range(3):
            torch.testing.assert_close(recons[index], matryoshka.level(index)(x))
        # as the docstrings say: not what the first latents of the whole reconstruct
        whole = matryoshka.sae.encode(x)[:, : WIDTHS[0]]
        assert not torch.allclose(matryoshka.level(0).encode(x), whole)

    def test_a_level_refines_by_its_own_residual(self):
        level = MatryoshkaSAE.from_sae(trained()).level(1)
        assert isinstance(level, RefinedSAE)
        assert level.start_threshold.shape == level.threshold.shape == (15,)
        torch.testing.assert_close(level.encode(data(10)), formula(level, data(10)))

    def test_saved_and_opened(self, tmp_path):
        matryoshka = MatryoshkaSAE.from_sae(trained())
        matryoshka.save(tmp_path / "whole")
        again = MatryoshkaSAE.load_from_disk(tmp_path / "whole")
        assert again.widths == tuple(WIDTHS)
        assert torch.equal(again.sae(data()), matryoshka.sae(data()))
        matryoshka.truncate(20).save_model(tmp_path / "cut")
        cut = MatryoshkaSAE.from_pretrained(str(tmp_path / "cut"))
        assert cut.widths == (4, 15, 20)
        assert torch.equal(cut.sae(data()), matryoshka.truncate(20)(data()))

    def test_hook_z(self):
        sae = trained(reshape_activations="hook_z")
        sae.cfg.metadata.hook_name = "blocks.0.attn.hook_z"
        matryoshka, z = MatryoshkaSAE.from_sae(sae), data().view(-1, 3, 4)
        assert matryoshka.level(0)(z).shape == z.shape
        torch.testing.assert_close(matryoshka.reconstructions(z)[-1], matryoshka.sae(z))

    def test_its_thresholds_are_not_calibrated_again(self):
        matryoshka = MatryoshkaSAE.from_sae(trained())
        for sae in (matryoshka, matryoshka.sae):
            with pytest.raises(ValueError, match="two thresholds.*Train it with the k"):
                calibrate_threshold(sae, data(), 3)


@pytest.mark.parametrize("driver", DRIVERS)
def test_every_driver_trains_and_saves_it(tmp_path, driver):
    cfg = MatryoshkaTrainingSAEConfig(
        d_in=DRIVEN_D_IN,
        d_sae=DRIVEN_D_SAE,
        k=4,
        matryoshka_widths=[6, 18],
        refinement_step=0.3,
        latent_order="frequency",
        k_start=8,
        k_anneal_steps=40,
    )
    run = DRIVERS[driver](cfg, tmp_path, steps=80)
    opened = MatryoshkaSAE.load_from_disk(run.output)
    assert isinstance(opened.sae, RefinedSAE)
    assert opened.widths == (6, 18, DRIVEN_D_SAE)
    acts = opened.sae.encode(run.activations)
    assert acts.count_nonzero().item() / len(acts) == pytest.approx(4, rel=0.2)
    residual = run.activations - opened.sae(run.activations)
    centered = run.activations - run.activations.mean(dim=0)
    assert residual.square().sum() < 0.7 * centered.square().sum()


class TestRefineUntil:
    """A second look while training only: the SAE is a stock one in the end."""

    def test_looks_twice_before_and_once_from_then_on(self):
        options = {"k": K, "matryoshka_widths": WIDTHS}
        until, twice, once = (
            trained(**options, refinement_step=STEP, refine_until=7),
            trained(**options, refinement_step=STEP),
            trained(**options, refinement_step=None),
        )
        for step, expected in ((6, twice), (7, once)):
            found, wanted = (
                sae.training_forward_pass(TrainStepInput(data(), {}, None, step, False))
                for sae in (until, expected)
            )
            torch.testing.assert_close(found.loss, wanted.loss)
            torch.testing.assert_close(until.encode(data()), expected.encode(data()))

    def test_is_saved_as_one_that_looks_once(self, tmp_path):
        trained(refine_until=7).save_inference_model(tmp_path / "until")
        trained(refinement_step=None).save_inference_model(tmp_path / "once")
        saved, once = (SAE.load_from_disk(tmp_path / name) for name in ("until", "once"))
        assert saved.cfg.architecture() == "jumprelu"
        assert torch.equal(saved.encode(data()), once.encode(data()))

    @pytest.mark.parametrize("driver", DRIVERS)
    def test_every_driver(self, tmp_path, driver):
        cfg = MatryoshkaTrainingSAEConfig(
            d_in=DRIVEN_D_IN, d_sae=DRIVEN_D_SAE, k=4, refinement_step=0.3, refine_until=40
        )
        run = DRIVERS[driver](cfg, tmp_path, steps=80)
        opened = SAE.load_from_disk(run.output)
        assert opened.cfg.architecture() == "jumprelu"
        fired = opened.encode(run.activations).count_nonzero().item()
        assert fired / len(run.activations) == pytest.approx(4, rel=0.2)


@pytest.mark.parametrize("steps", [40, 150])
@pytest.mark.parametrize(
    "normalize", ["none", "expected_average_only_in", "layer_norm", "covariance_whitening"]
)
def test_l0_on_held_out_activations_within_2_percent(tmp_path, steps, normalize):
    cfg = MatryoshkaTrainingSAEConfig(
        d_in=DRIVEN_D_IN,
        d_sae=DRIVEN_D_SAE,
        k=4,
        refinement_step=0.3,
        normalize_activations=normalize,
    )
    DRIVERS["bare trainer"](cfg, tmp_path, steps, n_batches_for_norm_estimate=20)
    x = next(activations(40_000, seed=99))
    fired = SAE.load_from_disk(tmp_path).encode(x).count_nonzero().item()
    assert fired / len(x) == pytest.approx(4, rel=0.02)
    assert BATCH * steps > 4000  # enough to count on
