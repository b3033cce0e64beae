"""The definition of the numbers: top-k selections and the nested decode."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_matryoshka import engine


@st.composite
def nested_problems(draw):
    batch, d_in, d_sae = draw(st.integers(1, 6)), draw(st.integers(1, 5)), draw(st.integers(1, 12))
    inner = draw(st.sets(st.integers(1, d_sae), max_size=4))
    seed = draw(st.integers(0, 2**20))
    generator = torch.Generator().manual_seed(seed)
    acts = torch.rand(batch, d_sae, generator=generator).double()
    W_dec = torch.randn(d_sae, d_in, generator=generator).double()
    b_dec = torch.randn(d_in, generator=generator).double()
    return acts, W_dec, b_dec, sorted(inner | {d_sae})


class TestNestedDecode:
    @settings(deadline=None)
    @given(nested_problems())
    def test_the_last_level_is_the_plain_decode(self, problem):
        acts, W_dec, b_dec, widths = problem
        recons = engine.nested_decode(acts, W_dec, b_dec, widths)
        assert recons.shape == (len(widths), len(acts), len(b_dec))
        torch.testing.assert_close(recons[-1], acts @ W_dec + b_dec)

    @settings(deadline=None)
    @given(nested_problems())
    def test_a_level_depends_on_no_latent_beyond_its_width(self, problem):
        acts, W_dec, b_dec, widths = problem
        recons = engine.nested_decode(acts, W_dec, b_dec, widths)
        for level, width in enumerate(widths):
            other_acts, other_W_dec = acts.clone(), W_dec.clone()
            other_acts[:, width:], other_W_dec[width:] = torch.pi, torch.e
            other = engine.nested_decode(other_acts, other_W_dec, b_dec, widths)
            torch.testing.assert_close(other[: level + 1], recons[: level + 1])

    @settings(deadline=None, max_examples=15)
    @given(nested_problems())
    def test_gradients_by_finite_differences(self, problem):
        acts, W_dec, b_dec, widths = problem
        inputs = tuple(t.requires_grad_() for t in (acts, W_dec, b_dec))
        assert torch.autograd.gradcheck(
            lambda *tensors: engine.nested_decode(*tensors, widths), inputs
        )

    @settings(deadline=None)
    @given(nested_problems())
    def test_detached_levels_reach_their_own_latents_only(self, problem):
        acts, W_dec, b_dec, widths = problem
        recons = engine.nested_decode(acts, W_dec, b_dec, widths)
        detached = engine.nested_decode(acts, W_dec.requires_grad_(), b_dec, widths, True)
        torch.testing.assert_close(detached, recons)
        for level, (lo, hi) in enumerate(zip([0, *widths], widths)):
            (grad,) = torch.autograd.grad(detached[level].sum(), W_dec, retain_graph=True)
            trained = (grad != 0).any(dim=-1).nonzero().squeeze(1).tolist()
            outermost = level == len(widths) - 1
            assert trained == list(range(0 if outermost else lo, hi))


class TestBatchTopK:
    @settings(deadline=None)
    @given(st.integers(0, 2**20), st.floats(0.1, 5))
    def test_keeps_the_largest_of_the_whole_batch(self, seed, k):
        hidden_pre = torch.randn(7, 11, generator=torch.Generator().manual_seed(seed))
        n = min(int(k * 7), int((hidden_pre > 0).sum()))
        expected = sorted(hidden_pre.flatten().tolist(), reverse=True)[:n]
        acts = engine.batch_top_k(hidden_pre, k)
        kept = sorted(acts[acts > 0].tolist(), reverse=True)
        assert kept == expected
        assert torch.equal(acts[acts > 0], hidden_pre[acts > 0])

    def test_never_negative_when_too_few_are_positive(self):
        hidden_pre = -torch.rand(3, 5)
        hidden_pre[1, 2] = 0.5
        acts = engine.batch_top_k(hidden_pre, 4)
        assert acts.nonzero().tolist() == [[1, 2]]

    def test_counts_tokens_over_all_leading_dimensions(self):
        acts = engine.batch_top_k(torch.rand(2, 3, 10) + 1, 2)
        assert acts.count_nonzero() == 12


class TestTokenTopK:
    def test_keeps_the_largest_of_each_token(self):
        hidden_pre = torch.tensor([[1.0, 3.0, 2.0], [-1.0, -2.0, 5.0]])
        expected = torch.tensor([[0.0, 3.0, 2.0], [0.0, 0.0, 5.0]])
        assert torch.equal(engine.token_top_k(hidden_pre, 2), expected)
