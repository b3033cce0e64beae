"""Thresholds that hit their target exactly, on copies."""

import copy

import numpy as np
import pytest
import torch
from sae_lens import (
    SAE,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig
from sae_lens.saes.sae import SAEMetadata

from sae_lens_matryoshka import (
    MatryoshkaSAE,
    MatryoshkaTrainingSAE,
    MatryoshkaTrainingSAEConfig,
    calibrate_threshold,
)
from sae_lens_matryoshka.levels import calibration

D_IN, D_SAE, N = 10, 50, 400


def activations() -> torch.Tensor:
    return torch.randn(N, D_IN, generator=torch.Generator().manual_seed(1))


def randomized(sae):
    generator = torch.Generator().manual_seed(2)
    for parameter in sae.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return sae


def jumprelu(zero: bool = False, **options) -> JumpReLUSAE:
    sae = randomized(JumpReLUSAE(JumpReLUSAEConfig(d_in=D_IN, d_sae=D_SAE, **options)))
    sae.threshold.data = torch.zeros(D_SAE) if zero else sae.threshold.data.abs() + 0.1
    return sae


def l0(sae: SAE, x: torch.Tensor) -> float:
    return sae.encode(x).count_nonzero().item() / len(x)


class TestJumpReLU:
    @pytest.mark.parametrize("target", [0.5, 3, 7.25, 15])
    @pytest.mark.parametrize("zero", [False, True])
    @pytest.mark.parametrize("normalize", ["none", "layer_norm"])
    def test_hits_the_target_exactly(self, target, zero, normalize):
        sae = jumprelu(zero, normalize_activations=normalize)
        assert l0(calibrate_threshold(sae, activations(), target), activations()) == target

    def test_scales_all_thresholds_by_one_factor(self):
        sae = jumprelu()
        folded = sae.threshold * sae.W_dec.norm(dim=-1)
        ratio = calibrate_threshold(sae, activations(), 4).threshold / folded
        torch.testing.assert_close(ratio, ratio[0].expand_as(ratio))
        assert not torch.isclose(ratio[0], torch.tensor(1.0), atol=1e-3)

    def test_negative_thresholds_let_all_that_is_positive_through(self):
        sae = jumprelu()
        sae.threshold.data[:5] = -0.5
        calibrated = calibrate_threshold(sae, activations(), 8)
        assert l0(calibrated, activations()) == 8
        assert (calibrated.threshold[:5] == 0).all()

    def test_zero_thresholds_become_one_uniform_value(self):
        uniform = calibrate_threshold(jumprelu(zero=True), activations(), 4).threshold
        assert uniform.unique().numel() == 1

    def test_decoder_norms_are_folded(self):
        calibrated = calibrate_threshold(jumprelu(), activations(), 4)
        torch.testing.assert_close(calibrated.W_dec.norm(dim=-1), torch.ones(D_SAE))

    def test_at_the_present_l0_nothing_changes_but_the_units(self):
        sae = jumprelu()
        same = calibrate_threshold(sae, activations(), l0(sae, activations()))
        torch.testing.assert_close(same(activations()), sae(activations()))

    def test_the_input_is_left_alone(self):
        sae = jumprelu()
        before, cfg = copy.deepcopy(sae.state_dict()), copy.deepcopy(sae.cfg.to_dict())
        calibrate_threshold(sae, activations(), 4)
        for name, tensor in sae.state_dict().items():
            assert torch.equal(tensor, before[name])
        assert sae.cfg.to_dict() == cfg

    def test_any_leading_dimensions(self):
        sae, x = jumprelu(), activations()
        flat = calibrate_threshold(sae, x, 4).threshold
        in_texts = calibrate_threshold(sae, x.view(20, N // 20, D_IN), 4).threshold
        torch.testing.assert_close(in_texts, flat)
        heads = jumprelu(
            reshape_activations="hook_z", metadata=SAEMetadata(hook_name="blocks.0.attn.hook_z")
        )
        z = x.view(20, N // 20, 2, D_IN // 2)
        torch.testing.assert_close(calibrate_threshold(heads, z, 4).threshold, flat)

    @pytest.mark.parametrize("bad", [torch.zeros(0, D_IN), torch.full((3, D_IN), torch.nan)])
    def test_useless_activations(self, bad):
        with pytest.raises(ValueError, match="at least one token and only finite"):
            calibrate_threshold(jumprelu(), bad, 4)

    @pytest.mark.parametrize(
        "given",
        [
            activations().numpy(),
            activations().numpy().astype("float64"),
            activations().tolist(),
            list(activations().numpy()),
            [
                activations()[:100],
                activations()[100:200],
                activations()[200:300],
                activations()[300:],
            ],
            activations().double(),
            activations().requires_grad_(),
        ],
    )
    def test_what_holds_activations(self, given):
        calibrated = calibrate_threshold(jumprelu(), given, 4)
        assert l0(calibrated, activations()) == 4

    @pytest.mark.parametrize(
        "bad",
        [
            "text",
            None,
            [activations(), None],
            [[1.0], [1.0, 2.0]],
            activations() * 1j,
            activations() > 0,
        ],
    )
    def test_what_holds_none(self, bad):
        with pytest.raises(TypeError, match="activations of"):
            calibrate_threshold(jumprelu(), bad, 4)

    @pytest.mark.parametrize("shape", [(), (7,), (D_IN, 3), (5, D_IN + 1), (5, 2, D_IN // 2)])
    def test_activations_of_another_size(self, shape):
        with pytest.raises(ValueError, match=f"activations of shape.*d_in={D_IN}"):
            calibrate_threshold(jumprelu(), torch.ones(shape), 4)

    @pytest.mark.parametrize("target", [4, np.float32(4), np.int64(4), torch.tensor(4)])
    def test_targets_of_other_types(self, target, tmp_path):
        calibrated = calibrate_threshold(jumprelu(), activations(), target)
        assert l0(calibrated, activations()) == 4
        calibrated.save_model(tmp_path)  # as JSON

    @pytest.mark.parametrize("target", [np.nan, np.inf, -np.inf, torch.tensor(torch.nan)])
    def test_targets_that_are_not_finite(self, target):
        with pytest.raises(ValueError, match="target_l0=.*finite number"):
            calibrate_threshold(jumprelu(), activations(), target)

    @pytest.mark.parametrize("target", ["4", True, None, [4]])
    def test_targets_that_are_no_numbers(self, target):
        with pytest.raises(TypeError, match="target_l0=.*must be a number"):
            calibrate_threshold(jumprelu(), activations(), target)

    def test_metadata_says_the_new_l0(self):
        sae = jumprelu(metadata=SAEMetadata(l0=9.0, num_dead_features=3))
        metadata = calibrate_threshold(sae, activations(), 4).cfg.metadata
        assert (metadata.l0, metadata.num_dead_features) == (4, None)
        assert sae.cfg.metadata.l0 == 9

    def test_in_blocks_as_in_one(self, monkeypatch):
        whole = calibrate_threshold(jumprelu(), activations(), 4).threshold
        monkeypatch.setattr(calibration, "TOKENS_AT_A_TIME", 7)
        torch.testing.assert_close(
            calibrate_threshold(jumprelu(), activations(), 4).threshold, whole
        )

    @pytest.mark.parametrize("target", [-1, 0, D_SAE])
    def test_out_of_reach(self, target):
        with pytest.raises(ValueError, match="cannot be reached.*Choose a target between"):
            calibrate_threshold(jumprelu(), activations(), target)

    def test_latents_without_a_threshold_always_fire(self):
        sae = jumprelu()
        sae.threshold.data[:20] = 0
        with pytest.raises(ValueError, match="cannot be reached"):
            calibrate_threshold(sae, activations(), 1)

    def test_matryoshka_in_matryoshka_out(self):
        calibrated = calibrate_threshold(MatryoshkaSAE(jumprelu(), [5]), activations(), 4)
        assert isinstance(calibrated, MatryoshkaSAE)
        assert calibrated.widths == (5, 50)
        assert l0(calibrated.sae, activations()) == 4


class TestTopK:
    @pytest.mark.parametrize("rescale", [True, False])
    def test_becomes_a_jumprelu_of_the_same_ranking(self, rescale):
        cfg = TopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=4, rescale_acts_by_decoder_norm=rescale)
        sae = randomized(TopKSAE(cfg))
        calibrated = calibrate_threshold(sae, activations(), 4, as_jumprelu=True)
        assert isinstance(calibrated, JumpReLUSAE)
        assert l0(calibrated, activations()) == 4
        torch.testing.assert_close(calibrated.W_dec.norm(dim=-1), torch.ones(D_SAE))
        # one cut through what the top-k ranks by: everything above it fires, nothing below
        ranked = (activations() - sae.b_dec) @ sae.W_enc + sae.b_enc
        if rescale:
            ranked = ranked * sae.W_dec.norm(dim=-1)
        fires = calibrated.encode(activations()) > 0
        assert ranked[fires].min() > ranked[~fires].max()

    def test_only_when_asked(self):
        sae = TopKSAE(TopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=4))
        with pytest.raises(ValueError, match="as_jumprelu=True"):
            calibrate_threshold(sae, activations(), 4)


def test_an_sae_in_training():
    cfg = MatryoshkaTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=4)
    with pytest.raises(ValueError, match=r"in training.*MatryoshkaSAE\.from_sae"):
        calibrate_threshold(MatryoshkaTrainingSAE(cfg), activations(), 4)


def test_options_and_architectures_that_do_not_apply():
    with pytest.raises(ValueError, match="JumpReLU SAE already"):
        calibrate_threshold(jumprelu(), activations(), 4, as_jumprelu=True)
    with pytest.raises(ValueError, match="StandardSAE has no threshold"):
        standard = StandardSAE(StandardSAEConfig(d_in=D_IN, d_sae=D_SAE))
        calibrate_threshold(standard, activations(), 4)
    with pytest.raises(ValueError, match="AbsTopKSAE has no threshold"):
        signed = AbsTopKSAE(AbsTopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=4))
        calibrate_threshold(signed, activations(), 4, as_jumprelu=True)
