"""Screening in bfloat16 selects what float32 selects, or says that it cannot prove it."""

from unittest.mock import patch

import pytest
import torch
from engine_problems import Problem, problems
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_matryoshka import engine
from sae_lens_matryoshka.engine import screening, selection
from sae_lens_matryoshka.engine.screening import ScreenedEncoder, screened


def upper_bounds(encoder: engine.Encoder) -> torch.Tensor:
    """What the screening holds of x @ W_enc, (batch, d_sae)."""
    return torch.cat([block.clone() for _, block in encoder.latent_blocks()]).T


def assert_same_entries(actual: selection.Entries, expected: selection.Entries) -> None:
    assert torch.equal(actual.latents, expected.latents)
    assert torch.equal(actual.tokens, expected.tokens)
    error = (actual.hidden_pre - expected.hidden_pre).norm()
    assert error <= 1e-5 * expected.hidden_pre.norm()


class TestSelection:
    @settings(deadline=None, max_examples=200)
    @given(problem=problems(), block=st.sampled_from([1, 60, 2**22]))
    def test_same_as_without(self, problem, block):
        n = int(problem.k * len(problem.x))
        expected = selection.top(problem.encoder, n)
        cut = expected.hidden_pre.min().item() if len(expected) else 0.0
        encoder = screened(problem.encoder)
        assert isinstance(encoder, ScreenedEncoder)
        with patch.object(selection, "BLOCK_ELEMENTS", block):
            for guess in (0.0, 0.97 * cut):
                assert_same_entries(selection.top(encoder, n, guess), expected)

    def test_thresholds_per_latent(self):
        problem = Problem.random()
        thresholds = torch.rand(24) * 3 - 0.5
        assert_same_entries(
            selection.above(screened(problem.encoder), thresholds),
            selection.above(problem.encoder, thresholds),
        )

    def test_values_and_gradients_are_float32s(self, monkeypatch):
        problem = Problem.random(batch=64, d_in=40, d_sae=300, k=5, widths=[100, 300])
        memory = engine.Engine()
        monkeypatch.setattr(screening, "pays", lambda _: True)
        seen = []
        monkeypatch.setattr(
            selection,
            "top",
            lambda *args, _top=selection.top, **kw: seen.append(args[0]) or _top(*args, **kw),
        )
        with engine.using("sparse"):
            memory.batch_top_k(problem.encoder, problem.k)  # learns a cut
            code = memory.batch_top_k(problem.encoder, problem.k)
        assert [type(encoder) for encoder in seen] == [engine.Encoder, ScreenedEncoder]
        assert code is not None
        assert code.acts.dtype == torch.float32
        torch.testing.assert_close(
            code.tensors()[0].to_dense(), problem.dense_code().acts, rtol=1e-6, atol=1e-6
        )


class TestCertificate:
    @pytest.mark.parametrize("d_in", [1, 7, 64, 512])
    def test_holds_for_random_inputs_and_is_not_idle(self, d_in):
        problem = Problem.random(batch=200, d_in=d_in, d_sae=300, widths=[300], k=2)
        exact = problem.x.double() @ problem.W_enc.double()
        bounds = upper_bounds(screened(problem.encoder)).double()
        assert (bounds >= exact.bfloat16()).all()
        norms = problem.x.norm(dim=-1)[:, None] * problem.W_enc.norm(dim=0)
        assert ((bounds - exact) <= 0.035 * norms).all()

    def test_holds_for_inputs_that_round_as_badly_as_they_can(self):
        """Every entry just below the middle of two bfloat16 numbers: all errors add up."""
        d_in = 500  # sums near the top of a binade, where rounding forgives least
        worst = 1 + 2**-8 - 2**-20  # rounds down to 1
        problem = Problem.random(batch=4, d_in=d_in, d_sae=6, widths=[6], with_norm=False)
        problem.x = torch.full((4, d_in), worst)
        problem.W_enc = torch.full((d_in, 6), worst)
        exact = d_in * worst**2
        rounded = (problem.x.bfloat16() @ problem.W_enc.bfloat16()).float()
        lost = (exact - rounded) / (problem.x.norm(dim=-1)[:, None] * problem.W_enc.norm(dim=0))
        assert (lost > 0.9 * 2**-7).all()  # the plain product is off by nearly the whole allowance
        bound = torch.tensor(exact, dtype=torch.double).bfloat16()
        assert (upper_bounds(screened(problem.encoder)) >= bound).all()

    @pytest.mark.parametrize("scale", [1e-15, 1e-6, 1e6, 1e15])
    def test_any_scale(self, scale):
        problem = Problem.random(batch=30, d_in=16, d_sae=60, widths=[60], k=4)
        problem.x *= scale
        n = 4 * 30
        expected = selection.top(problem.encoder, n)
        guess = 0.97 * expected.hidden_pre.min().item()
        assert_same_entries(selection.top(screened(problem.encoder), n, guess), expected)

    def test_one_token_of_huge_norm_among_ordinary_ones(self):
        problem = Problem.random(batch=30, d_in=16, d_sae=60, widths=[60], k=4)
        problem.x[3] *= 1e4
        expected = selection.top(problem.encoder, 120)
        guess = 0.97 * expected.hidden_pre.min().item()
        assert_same_entries(selection.top(screened(problem.encoder), 120, guess), expected)

    def test_near_ties_within_the_error_of_bfloat16(self):
        """Latents that bfloat16 cannot tell apart, in float32's order."""
        problem = Problem.random(batch=10, d_in=32, d_sae=64, widths=[64], k=3, with_norm=False)
        problem.W_enc = problem.W_enc[:, :1] * (1 + 1e-5 * torch.randperm(64))
        problem.b_enc[:] = 0
        assert (problem.W_enc.bfloat16()[:, :1] == problem.W_enc.bfloat16()).float().mean() > 0.8
        expected = selection.top(problem.encoder, 30)
        guess = 0.97 * expected.hidden_pre.min().item()
        actual = selection.top(screened(problem.encoder), 30, guess)
        torch.testing.assert_close(
            actual.hidden_pre.sort().values, expected.hidden_pre.sort().values, rtol=1e-6, atol=0
        )

    def test_a_cut_above_the_winners_fails_the_proof_and_falls_back(self):
        problem = Problem.random(batch=30, d_in=16, d_sae=60, widths=[60], k=4)
        encoder, fallbacks = screened(problem.encoder), []

        class Spy(ScreenedEncoder):
            def exact(self):
                fallbacks.append(self)
                return super().exact()

        spy = Spy(**vars(encoder))
        expected = selection.top(problem.encoder, 120)
        cut = expected.hidden_pre.min().item()
        for too_high in (0.97, 1.05, 1.2, 1.9):  # a lower guess is screened as well
            assert_same_entries(selection.top(spy, 120, too_high * cut), expected)
            assert not fallbacks
        for far_too_high in (2.1, 100):
            assert_same_entries(selection.top(spy, 120, far_too_high * cut), expected)
        assert len(fallbacks) == 2

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e-30, 1e30])
    @pytest.mark.parametrize("name", ["x", "W_enc"])
    def test_numbers_that_the_bound_does_not_cover_are_not_screened(self, bad, name):
        problem = Problem.random()
        tensor = getattr(problem, name)
        tensor[0] = bad if name == "x" else tensor[0]
        if name == "W_enc":
            tensor[:, 3] = bad
        assert type(screened(problem.encoder)) is engine.Encoder

    def test_zeros_are_screened(self):
        problem = Problem.random()
        problem.x[0], problem.W_enc[:, 3] = 0, 0
        expected = selection.top(problem.encoder, 20)
        assert_same_entries(selection.top(screened(problem.encoder), 20, 1e-3), expected)

    def test_denormals_within_ordinary_rows(self):
        problem = Problem.random(d_in=12)
        problem.x[:, ::2] = 1e-40
        problem.W_enc[::3] = 1e-39
        expected = selection.top(problem.encoder, 20)
        guess = 0.97 * expected.hidden_pre.min().item()
        assert_same_entries(selection.top(screened(problem.encoder), 20, guess), expected)


def test_not_on_cpus():
    assert not screening.pays(Problem.random().encoder)
