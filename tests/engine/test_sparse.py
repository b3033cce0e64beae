"""The sparse path gives the dense path's numbers: loss, activations, every gradient."""

from unittest.mock import patch

import pytest
import torch
from engine_problems import LargestTensor, Problem, assert_same_numbers, problems
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_matryoshka import engine
from sae_lens_matryoshka.engine import selection

ACTIVATIONS = ["batchtopk", "topk", "relu"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
class TestAgainstDense:
    @settings(deadline=None, max_examples=150)
    @given(problem=problems(), block=st.sampled_from([1, 50, 2**22]))
    def test_any_shape(self, activation, problem, block):
        if activation == "topk" and problem.k < 1:
            problem.k = 1
        with patch.object(selection, "BLOCK_ELEMENTS", block):
            sparse = problem.step("sparse", activation)
        assert_same_numbers(sparse, problem.step("dense", activation))

    @settings(deadline=None, max_examples=25)
    @given(problem=problems())
    def test_double_precision(self, activation, problem):
        problem.k = max(1, problem.k)
        problem = problem.to(torch.double)
        sparse, dense = (problem.step(path, activation) for path in ("sparse", "dense"))
        assert_same_numbers(sparse, dense, tolerance=1e-13)

    def test_bfloat16_within_its_own_rounding(self, activation):
        problem = Problem.random(batch=64, d_in=32, d_sae=256, k=8, widths=[64, 256])
        low, high = problem.to(torch.bfloat16), problem.step("dense", activation)
        sparse, dense = low.step("sparse", activation), low.step("dense", activation)
        for name in ("loss", "recons", "d W_enc", "d b_enc", "d W_dec", "d b_dec"):
            # no further from the exact numbers than bfloat16's dense path is, give or take its eps
            errors = [(out[name].float() - high[name]).norm() for out in (sparse, dense)]
            assert errors[0] <= 1.5 * errors[1] + 2**-7 * high[name].norm(), name

    def test_bfloat16_sums_of_squares_do_not_stop_growing(self, activation):
        problem = Problem.random(batch=2048, d_in=4, d_sae=6, k=5, widths=[6])
        low, exact = problem.to(torch.bfloat16), problem.step("dense", activation)["square_sums"]
        for path in ("sparse", "dense"):
            torch.testing.assert_close(
                low.step(path, activation)["square_sums"], exact, rtol=0.05, atol=1.0
            )

    def test_non_contiguous_inputs(self, activation):
        problem = Problem.random(batch=8, d_in=6, d_sae=30, k=2, widths=[10, 30])
        expected = problem.step("dense", activation)
        problem.x = torch.stack([problem.x, problem.x], dim=-1)[..., 0]
        problem.W_dec = problem.W_dec.T.contiguous().T
        assert not problem.x.is_contiguous() and not problem.W_dec.is_contiguous()
        assert_same_numbers(problem.step("sparse", activation), expected)

    def test_no_latent_is_active_at_all(self, activation):
        problem = Problem.random()
        problem.b_enc -= 100
        actual = problem.step("sparse", activation)
        assert_same_numbers(actual, problem.step("dense", activation))
        assert not actual["acts"].any() and not actual["d W_enc"].any()
        assert actual["d b_dec"].any()

    def test_tokens_and_levels_without_an_active_latent(self, activation):
        problem = Problem.random(batch=12, widths=(4, 10, 24), k=2)
        problem.x[[0, 5, 11]] = 0
        problem.b_enc[:] = -0.1
        problem.b_enc[4:10] = -100
        actual = problem.step("sparse", activation)
        assert_same_numbers(actual, problem.step("dense", activation))
        assert (actual["acts"].sum(dim=-1) == 0).sum() >= 3
        assert torch.equal(actual["recons"][1], actual["recons"][0])  # the empty level adds nothing
        assert not actual["d W_dec"][4:10].any()

    def test_the_same_twice(self, activation):
        problem = Problem.random(batch=300, d_in=20, d_sae=500, k=7, widths=[100, 500])
        first, second = (problem.step("sparse", activation) for _ in range(2))
        for name, value in first.items():
            assert torch.equal(value, second[name]), name


def test_bfloat16_counts_per_token_do_not_stop_growing():
    problem = Problem.random(batch=3, d_in=4, d_sae=600, k=5, widths=[600]).to(torch.bfloat16)
    problem.b_enc += 100  # all fire
    with engine.using("sparse"):
        code = engine.Engine().above(problem.encoder, 0.0)
    assert code is not None
    counts = code.token_sums(torch.ones_like(code.hidden_pre))
    assert counts.tolist() == [600] * 3  # 256 + 1 is 256 there


class TestTopK:
    @pytest.mark.parametrize("activation", ["batchtopk", "topk"])
    @pytest.mark.parametrize("k", [1, 24])
    @pytest.mark.parametrize("batch", [1, 9])
    def test_one_and_all_latents(self, activation, k, batch):
        problem = Problem.random(batch=batch, k=k)
        actual = problem.step("sparse", activation)
        assert_same_numbers(actual, problem.step("dense", activation))
        assert actual["firing_counts"].sum() <= k * batch

    @pytest.mark.parametrize("block", [1, 2**22])
    def test_fewer_positive_pre_activations_than_places(self, monkeypatch, block):
        monkeypatch.setattr(selection, "BLOCK_ELEMENTS", block)
        problem = Problem.random(k=20)
        problem.b_enc -= 2
        actual = problem.step("sparse")
        assert 0 < actual["firing_counts"].sum() < 20 * 9
        assert_same_numbers(actual, problem.step("dense"))
        # no gradient through a selection that ended at zero
        silent = actual["firing_counts"] == 0
        assert silent.any()
        for name in ("d b_enc", "d W_dec"):
            assert not actual[name][silent].any()
        assert not actual["d W_enc"][:, silent].any()

    @pytest.mark.parametrize("block", [1, 30, 2**22])
    @pytest.mark.parametrize("k", [0.5, 1, 3, 7.7])
    def test_ties_at_the_cut(self, monkeypatch, block, k):
        """Whole numbers tie often and carry no rounding."""
        monkeypatch.setattr(selection, "BLOCK_ELEMENTS", block)
        problem = Problem.random(batch=20, d_sae=40, k=k, widths=[10, 40], with_norm=False)
        for tensor in (problem.x, problem.W_enc, problem.b_enc):
            tensor.round_()
        acts = problem.dense_code().acts
        assert (acts == acts[acts > 0].min()).sum() > 1
        assert_same_numbers(problem.step("sparse"), problem.step("dense"))

    def test_all_entries_tie(self):
        problem = Problem.random(k=2)
        problem.W_enc[:], problem.b_enc[:], problem.norm = 0, 1, None
        actual = problem.step("sparse")
        assert_same_numbers(actual, problem.step("dense"))
        assert (
            actual["acts"].nonzero()[:, 0].tolist() == [0] * 18
        )  # the earliest token's come first

    @settings(deadline=None)
    @given(problem=problems(), guess=st.floats(0, 50), block=st.sampled_from([1, 60, 2**22]))
    def test_a_guess_changes_nothing(self, problem, guess, block):
        n = int(problem.k * len(problem.x))
        with patch.object(selection, "BLOCK_ELEMENTS", block):
            known = selection.top(problem.encoder, n, guess)
        unknown = selection.top(problem.encoder, n)
        assert torch.equal(known.latents, unknown.latents)
        assert torch.equal(known.tokens, unknown.tokens)

    @pytest.mark.parametrize(
        ("too_high", "n_searches"), [(0.9, 1), (1.2, 2), (1.9, 3), (3.0, 4), (1e6, 2)]
    )
    def test_a_guess_that_is_too_high_is_lowered_by_degrees(
        self, monkeypatch, caplog, too_high, n_searches
    ):
        problem, guesses = Problem.random(batch=100, d_sae=60, widths=[60], k=3), []
        expected = selection.top(problem.encoder, 300)

        def search(encoder, n, guess, _search=selection._search):
            guesses.append(guess)
            return _search(encoder, n, guess)

        monkeypatch.setattr(selection, "_search", search)
        caplog.set_level("DEBUG", logger="sae_lens_matryoshka")
        actual = selection.top(problem.encoder, 300, too_high * expected.hidden_pre.min().item())
        assert torch.equal(actual.latents, expected.latents)
        assert torch.equal(actual.tokens, expected.tokens)
        assert len(guesses) == n_searches
        assert len(caplog.records) == n_searches - 1  # whoever wants to count them can

    def test_what_one_batch_taught_serves_any_next_one(self):
        """Guesses from ordinary, huge, tiny and silent batches before."""
        memory, k = engine.Engine(), 3
        for seed, scale in enumerate([1, 1, 1000, 1000, 1e-3, 1e-3, 0, 1]):
            problem = Problem.random(seed=seed, k=k)
            problem.x *= scale
            with engine.using("sparse"):
                code = memory.batch_top_k(problem.encoder, k)
            assert code is not None
            torch.testing.assert_close(code.tensors()[0].to_dense(), problem.dense_code().acts)

    def test_a_bad_batch_teaches_nothing(self):
        memory, bad, good = engine.Engine(), Problem.random(k=3), Problem.random(k=3)
        bad.x[0] = torch.nan
        silent = Problem.random(k=20)
        silent.b_enc -= 3
        for problem in (bad, silent):
            with engine.using("sparse"):
                memory.batch_top_k(problem.encoder, problem.k)
            assert memory._cut == 0
        with engine.using("sparse"):
            code = memory.batch_top_k(good.encoder, good.k)
        assert code is not None
        torch.testing.assert_close(code.tensors()[0].to_dense(), good.dense_code().acts)

    def test_nan_is_selected_so_that_the_loss_shows_it(self):
        for name in ("W_enc", "b_enc"):
            problem = Problem.random()
            getattr(problem, name).view(-1)[3] = torch.nan
            assert problem.step("sparse")["loss"].isnan(), name


class TestAbove:
    @pytest.mark.parametrize("cut", [1.004, 0.5, 3.0])
    def test_bfloat16_biases_with_float32_thresholds(self, cut):
        problem = Problem.random(batch=200, d_in=8, d_sae=64, with_norm=False, widths=[64])
        problem.b_enc += 0.9
        low = problem.to(torch.bfloat16)
        entries = selection.above(low.encoder, torch.full((64,), cut))
        expected = (low.x @ low.W_enc + low.b_enc) > cut
        found = torch.zeros_like(expected)
        found[entries.tokens, entries.latents] = True
        # the product may round differently in blocks, by one unit
        near = ((low.x @ low.W_enc + low.b_enc).float() - cut).abs() < 2**-6 * cut
        assert torch.equal(found | near, expected | near)

    def test_thresholds_per_latent(self):
        problem = Problem.random(with_norm=True)
        thresholds = torch.rand(24) * 3 - 0.5  # also negative ones
        entries = selection.above(problem.encoder, thresholds)
        hidden_pre = problem.dense_code("relu").hidden_pre
        expected = (hidden_pre > thresholds).T.nonzero()
        assert torch.equal(torch.stack([entries.latents, entries.tokens], dim=1), expected)
        torch.testing.assert_close(entries.hidden_pre, hidden_pre[entries.tokens, entries.latents])

    def test_gives_up_beyond_the_limit(self):
        problem = Problem.random()
        n = len(selection.above(problem.encoder, 0.0))
        assert len(selection.above(problem.encoder, 0.0, limit=n)) == n
        with pytest.raises(selection.TooManyEntriesError):
            selection.above(problem.encoder, 0.0, limit=n - 1)

    def test_counts_without_keeping(self):
        problem = Problem.random()
        hidden_pre = problem.dense_code("relu").hidden_pre
        assert selection.count_positive(problem.encoder) == (hidden_pre > 0).sum()


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "refined"])
def test_never_holds_a_batch_of_all_latents_nor_one_of_k_rows(monkeypatch, activation):
    monkeypatch.setattr(selection, "BLOCK_ELEMENTS", 2**12)
    problem = Problem.random(batch=128, d_in=16, d_sae=1024, k=16, widths=[256, 1024])
    problem.b_enc -= 8  # few enough for relu
    with LargestTensor() as dense:
        problem.dense_code(activation)
    assert dense.numel >= 128 * 1024
    for leaf in (problem.W_enc, problem.b_enc, problem.W_dec, problem.b_dec):
        leaf.requires_grad_()
    with LargestTensor() as sparse:
        code = problem.sparse_code(activation)
        code.nested_decode(problem.W_dec, problem.b_dec, problem.widths).pow(2).sum().backward()
    assert problem.W_enc.grad is not None and (code.acts > 0).any()
    # the weights' gradients are the largest thing left
    assert sparse.numel <= 16 * 1024 < 128 * 16 * 16
