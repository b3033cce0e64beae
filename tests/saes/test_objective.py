"""The objective's pure functions against formulas written by hand."""

import pytest
import torch
from scipy import stats

from sae_lens_matryoshka.saes import objective


def test_level_weights():
    assert objective.level_weights(3) == [1, 1, 1]
    assert objective.level_weights(3, weights=[1, 2, 3]) == [1, 2, 3]
    assert objective.level_weights(3, mu=0.5) == [0.25, 0.5, 1]
    assert objective.level_weights(3, mu=0) == [0, 0, 1]  # a flat SAE
    assert objective.level_weights(3, mu=1) == [1, 1, 1]


class TestDrawPrefixes:
    def test_increasing_distinct_and_ending_with_d_sae(self):
        for seed in range(200):
            widths = objective.draw_prefixes(32, 10, 0.5, seed)
            assert len(widths) == 10
            assert widths == sorted(set(widths))
            assert widths[0] >= 1
            assert widths[-1] == 32

    def test_all_widths_when_as_many_as_latents(self):
        assert objective.draw_prefixes(6, 6, 0.5, 0) == [1, 2, 3, 4, 5, 6]
        assert objective.draw_prefixes(6, 1, 0.5, 0) == [6]

    @pytest.mark.parametrize("power", [0.5, 1.0])
    def test_law_by_kolmogorov_smirnov(self, power):
        # one width beside d_sae: a single draw from the law
        d_sae = 16_384
        draws = [objective.draw_prefixes(d_sae, 2, power, seed)[0] for seed in range(2000)]
        test = stats.kstest(draws, lambda w: (w / d_sae) ** power)
        assert test.pvalue > 0.01

    def test_the_law_is_not_a_true_pareto(self):
        # the paper's words would give far shorter prefixes than the authors' code
        draws = [objective.draw_prefixes(4096, 2, 0.5, seed)[0] for seed in range(2000)]
        assert torch.tensor(draws).float().mean() == pytest.approx(1366, rel=0.06)
        quantiles = torch.tensor(draws).float().quantile(torch.tensor([0.25, 0.5, 0.75]))
        assert quantiles.tolist() == pytest.approx([256, 1024, 2304], rel=0.15)

    def test_follows_the_seed_and_leaves_torchs_generator_alone(self):
        before = torch.get_rng_state()
        first = objective.draw_prefixes(4096, 10, 0.5, seed=3)
        assert objective.draw_prefixes(4096, 10, 0.5, seed=3) == first
        assert objective.draw_prefixes(4096, 10, 0.5, seed=4) != first
        assert torch.equal(torch.get_rng_state(), before)


def test_nested_squared_error():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    recons = torch.stack([torch.zeros(2, 2), x, x + 1])
    # (1 + 4 + 9 + 16) / 2 rows; nothing; two dimensions off by one
    expected = torch.tensor([15.0, 0.0, 2.0])
    torch.testing.assert_close(objective.nested_squared_error(x, recons), expected)


def test_fraction_of_variance_unexplained():
    x = torch.randn(64, 5) + 3
    recons = torch.stack([x, x.mean(dim=0).expand_as(x), x + 1])
    fvu = objective.fraction_of_variance_unexplained(x, recons)
    assert fvu[0] == 0
    assert fvu[1] == pytest.approx(1, abs=1e-5)
    assert fvu[2] == pytest.approx(5 / x.var(dim=0, unbiased=False).sum().item(), rel=1e-4)


def test_nested_l1_counts_a_latent_in_every_level_that_holds_it():
    acts = torch.rand(7, 6)
    expected = sum(
        weight * acts[:, :width].sum() for width, weight in zip([1, 4, 6], [0.5, 2.0, 1.0])
    )
    actual = objective.nested_l1(acts.sum(dim=0), [1, 4, 6], [0.5, 2.0, 1.0])
    torch.testing.assert_close(actual, expected)


def test_nested_l1_of_detached_levels_goes_where_their_errors_go():
    sums = torch.tensor([1.0, 10, 10, 10, 100, 100])
    actual = objective.nested_l1(sums, [1, 4, 6], [0.5, 2.0, 1.0], detach_inner=True)
    # each level's own latents, and all of them for the outermost level
    assert actual == pytest.approx(0.5 * 1 + 2 * 30 + 1 * 231)


class TestNestedSquaredError:
    def test_against_the_definition(self):
        x, recons = torch.randn(7, 3), torch.randn(2, 7, 3)
        expected = [((recons[level] - x) ** 2).sum().item() / 7 for level in range(2)]
        assert objective.nested_squared_error(x, recons).tolist() == pytest.approx(expected)

    def test_gradients_by_finite_differences(self):
        x = torch.randn(4, 3, dtype=torch.double, requires_grad=True)
        recons = torch.randn(2, 4, 3, dtype=torch.double, requires_grad=True)
        assert torch.autograd.gradcheck(objective.nested_squared_error, (x, recons))

    def test_a_perfect_reconstruction_has_gradient_zero(self):
        recons = torch.ones(1, 4, 3, requires_grad=True)
        objective.nested_squared_error(torch.ones(4, 3), recons).sum().backward()
        assert recons.grad is not None and not recons.grad.any()


class TestRowNorms:
    def test_gradients_by_finite_differences(self):
        matrix = torch.randn(4, 3, dtype=torch.double, requires_grad=True)
        assert torch.autograd.gradcheck(objective.row_norms, (matrix,))

    def test_a_row_of_zeros(self):
        matrix = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
        norms = objective.row_norms(matrix)
        norms.sum().backward()
        assert norms.tolist() == [5, 0]
        assert matrix.grad is not None
        torch.testing.assert_close(matrix.grad, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


class TestDeadLatentLoss:
    @pytest.mark.parametrize("with_norm", [False, True])
    def test_against_a_loop(self, with_norm):
        torch.manual_seed(0)
        hidden_pre, W_dec, residual = torch.randn(5, 4), torch.randn(4, 3), torch.randn(5, 3)
        norm = torch.rand(4) + 0.1
        expected = 0.0
        for row in range(5):
            score = hidden_pre[row] * norm if with_norm else hidden_pre[row]
            ranked = sorted(range(4), key=lambda j: -score[j])
            recon = sum(hidden_pre[row, j] * W_dec[j] for j in ranked[:2])
            expected += (recon - residual[row]).pow(2).sum() / 5
        actual = objective.dead_latent_loss(
            hidden_pre, W_dec, residual, k_aux=2, norm=norm if with_norm else None
        )
        torch.testing.assert_close(actual, expected)

    def test_shrinks_when_fewer_than_k_aux_are_dead(self):
        hidden_pre, W_dec = torch.randn(5, 1), torch.randn(1, 3)
        few = objective.dead_latent_loss(hidden_pre, W_dec, torch.ones(5, 3), k_aux=4)
        one = objective.dead_latent_loss(hidden_pre, W_dec, torch.ones(5, 3), k_aux=1)
        torch.testing.assert_close(few, one / 4)

    def test_snapped_is_the_mean_norm(self):
        """In the units of the snapped error that it is added to."""
        hidden_pre, W_dec, residual = torch.randn(5, 2), torch.randn(2, 3), torch.randn(5, 3)
        actual = objective.dead_latent_loss(hidden_pre, W_dec, residual, k_aux=4, snapped=True)
        expected = (hidden_pre @ W_dec - residual).norm(dim=-1).mean() / 2
        torch.testing.assert_close(actual, expected)

    def test_gradient_reaches_encoder_and_decoder_but_not_the_residual(self):
        hidden_pre = torch.tensor([[3.0, -1.0, 2.0], [0.0, 5.0, 1.0]], requires_grad=True)
        W_dec = torch.randn(3, 3, requires_grad=True)
        residual = torch.randn(2, 3, requires_grad=True)
        objective.dead_latent_loss(hidden_pre, W_dec, residual, k_aux=2).backward()
        assert residual.grad is None
        assert W_dec.grad is not None and W_dec.grad.abs().sum() > 0
        assert hidden_pre.grad is not None
        assert (hidden_pre.grad != 0).tolist() == [[True, False, True], [False, True, True]]

    def test_row_scale_maps_back_before_the_residual(self):
        hidden_pre, W_dec = torch.randn(5, 8), torch.randn(8, 3)
        scale = torch.rand(5, 1) + 0.5
        residual = (hidden_pre @ W_dec) * scale
        loss = objective.dead_latent_loss(hidden_pre, W_dec, residual, 8, row_scale=scale)
        assert loss < 1e-10


class TestGeometricMedian:
    def test_resists_outliers_unlike_the_mean(self):
        x = torch.cat([torch.randn(99, 4) * 0.1 + 2, torch.full((1, 4), 1e4)])
        assert (objective.geometric_median(x) - 2).abs().max() < 0.1
        assert x.mean(dim=0).min() > 50

    def test_minimises_the_summed_distance(self):
        torch.manual_seed(0)
        x = torch.randn(200, 3).exp()
        median = objective.geometric_median(x, n_iterations=1000, tolerance=0)
        best = (x - median).norm(dim=-1).sum()
        for direction in torch.randn(20, 3):
            assert (x - median - 0.01 * direction).norm(dim=-1).sum() >= best

    def test_a_point_of_the_data_does_not_divide_by_zero(self):
        assert objective.geometric_median(torch.ones(4, 2)).tolist() == [1, 1]


@pytest.mark.parametrize("mode", ["layer_norm", "constant_norm_rescale"])
def test_row_scale_is_what_saelens_undoes(mode):
    # pins SAELens's normalization: out(in(x) + e) - x = e * row_scale
    from sae_lens import StandardSAE, StandardSAEConfig

    sae = StandardSAE(StandardSAEConfig(d_in=6, d_sae=3, normalize_activations=mode))
    x, error = torch.randn(4, 6), torch.randn(4, 6)
    normalized = sae.run_time_activation_norm_fn_in(x)
    restored = sae.run_time_activation_norm_fn_out(normalized + error)
    scale = objective.row_scale(x, mode)
    torch.testing.assert_close(restored - x, error * scale, rtol=1e-3, atol=1e-3)


def test_row_scale_of_raw_activations_is_none():
    for mode in ("none", "expected_average_only_in", "covariance_whitening"):
        assert objective.row_scale(torch.randn(4, 6), mode) is None


class TestNestedError:
    """The options that change what is asked of a level."""

    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()
    recons = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(1)).double()

    def error(self, recons: torch.Tensor, **options) -> torch.Tensor:
        return objective.nested_error(objective.token_squared_errors(self.x, recons), **options)

    def test_tilting_has_the_gradient_of_the_tilted_risk(self):
        """log(mean(exp(tilt * error / mean))) / tilt * mean, its mean held fixed (TERM)."""
        tilt = 0.7
        ours, term = (self.recons.clone().requires_grad_() for _ in range(2))
        self.error(ours, tilt=tilt).sum().backward()
        errors = (term - self.x).pow(2).sum(dim=-1)
        mean = errors.detach().mean(dim=-1, keepdim=True)
        risk = (tilt * errors / mean).exp().mean(dim=-1).log() / tilt * mean[:, 0]
        risk.sum().backward()
        torch.testing.assert_close(ours.grad, term.grad)

    def test_a_small_tilt_is_none(self):
        torch.testing.assert_close(
            self.error(self.recons, tilt=1e-9),
            objective.nested_squared_error(self.x, self.recons),
        )

    def test_tilting_a_perfect_batch(self):
        errors = self.error(self.x[None], tilt=0.5)
        assert errors.tolist() == [0.0]

    def test_snapped_is_the_mean_norm(self):
        expected = (self.recons - self.x).norm(dim=-1).mean(dim=-1)
        actual = self.error(self.recons, snapped=True)
        torch.testing.assert_close(actual, expected)

    def test_snapped_where_a_token_is_perfect(self):
        recons = self.recons.clone()
        recons[:, 2] = self.x[2]
        recons.requires_grad_()
        self.error(recons, snapped=True).sum().backward()
        assert recons.grad is not None
        assert recons.grad.isfinite().all()
        assert (recons.grad[:, 2] == 0).all()


def test_k_goes_linearly_and_stays():
    at = [objective.annealed_k(step, 4.0, 12.0, 8) for step in (0, 2, 8, 9, 1000)]
    assert at == [12.0, 10.0, 4.0, 4.0, 4.0]
    assert objective.annealed_k(8, 0.1, 1.0, 8) == 0.1  # to the last bit: it is multiplied and cut
    assert objective.annealed_k(3, 4.0, None, None) == 4.0
    assert objective.annealed_k(3, None, None, None) is None
