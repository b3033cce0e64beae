"""The Triton kernels against torch: on a GPU where there is one, else through Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engine_problems import Problem, assert_same_numbers, problems
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_matryoshka.engine import kernels

pytest.importorskip("triton")

from sae_lens_matryoshka.engine import triton  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # conftest.py turns the interpreter on


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def segments(n_segments: int, n_entries: int, n_rows: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Random entries in random segments, some of them empty: rows, offsets."""
    generator = torch.Generator().manual_seed(seed)
    owner = torch.randint(n_segments, (n_entries,), generator=generator)
    counts = torch.bincount(owner, minlength=n_segments)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
    rows = torch.randint(n_rows, (n_entries,), generator=generator).int()
    return rows.to(DEVICE), offsets.to(DEVICE)


def reached(block: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    return (block >= bounds[:, None]).flatten().nonzero().squeeze(1)


# sizes around what one program takes, and not divisible by it
ENTRIES = st.sampled_from([0, 1, 15, 16, 17, 100])
DIMENSIONS = st.sampled_from([1, 3, 16, 255, 257, 600])


class TestNotBelow:
    @settings(deadline=None, max_examples=25)
    @given(st.integers(1, 40), st.sampled_from([1, 7, 200, 4096]), st.integers(0, 99))
    def test_finds_what_torch_finds(self, rows, columns, seed):
        block, bounds = randn(rows, columns, seed=seed), randn(rows, seed=seed + 1)
        assert torch.equal(triton.not_below(block, bounds), reached(block, bounds))

    @pytest.mark.parametrize("bound", [-torch.inf, torch.inf])
    def test_all_and_none(self, bound):
        found = triton.not_below(randn(5, 7), torch.full((5,), bound, device=DEVICE))
        assert found.tolist() == (list(range(35)) if bound < 0 else [])

    def test_nan_and_equality_reach_their_bound(self):
        block = torch.tensor([[1.0, torch.nan, 0.5], [2.0, 3.0, torch.inf]], device=DEVICE)
        found = triton.not_below(block, torch.tensor([1.0, 3.0], device=DEVICE))
        assert found.tolist() == [0, 1, 4, 5]

    def test_bfloat16(self):
        block, bounds = randn(9, 100, dtype=torch.bfloat16), randn(9, dtype=torch.bfloat16)
        assert torch.equal(triton.not_below(block, bounds), reached(block, bounds))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 1e-2)]
)
class TestProducts:
    @settings(deadline=None, max_examples=15)
    @given(ENTRIES, DIMENSIONS, st.integers(1, 30), st.integers(0, 99))
    def test_weighted_sums(self, dtype, tolerance, n_entries, d, n_segments, seed):
        table = randn(20, d, seed=seed, dtype=dtype)
        index, offsets = segments(n_segments, n_entries, 20, seed)
        weights = randn(n_entries, seed=seed + 1, dtype=dtype)
        actual = triton.weighted_sums(table, index, weights, offsets)
        expected = torch.zeros(n_segments, d, dtype=torch.double, device=DEVICE)
        owner = torch.arange(n_segments, device=DEVICE).repeat_interleave(offsets.diff())
        expected.index_add_(0, owner, table.double()[index] * weights.double()[:, None])
        assert actual.dtype == dtype
        assert (actual.double() - expected).norm() <= tolerance * expected.norm()

    @settings(deadline=None, max_examples=15)
    @given(ENTRIES, DIMENSIONS, st.integers(1, 30), st.integers(0, 99))
    def test_dots(self, dtype, tolerance, n_entries, d, n_segments, seed):
        a, b = (
            randn(n_segments, d, seed=seed, dtype=dtype),
            randn(20, d, seed=seed + 1, dtype=dtype),
        )
        columns, offsets = segments(n_segments, n_entries, 20, seed)
        actual = triton.dots(a, b, columns, offsets)
        owner = torch.arange(n_segments, device=DEVICE).repeat_interleave(offsets.diff())
        expected = (a.double()[owner] * b.double()[columns]).sum(dim=-1)
        scale = a.double()[owner].norm(dim=-1) * b.double()[columns].norm(dim=-1)
        assert actual.dtype == dtype
        assert (actual.double() - expected).norm() <= tolerance * scale.norm()

    def test_rows_that_are_not_contiguous(self, dtype, tolerance):
        table = randn(6, 20, dtype=dtype).T
        index, offsets = segments(4, 10, 20, 0)
        weights = randn(10, dtype=dtype)
        assert torch.equal(
            triton.weighted_sums(table, index, weights, offsets),
            triton.weighted_sums(table.contiguous(), index, weights, offsets),
        )


@pytest.fixture
def taken_over(monkeypatch) -> None:
    """The engine uses the Triton kernels, on whatever device."""
    monkeypatch.setattr(kernels, "_triton_takes_over", lambda _: True)


@pytest.mark.usefixtures("taken_over")
@pytest.mark.parametrize("activation", ["batchtopk", "topk", "relu", "refined"])
class TestStep:
    def test_every_output_and_gradient(self, activation):
        problem = Problem.random(batch=33, d_in=37, d_sae=90, k=5, widths=[7, 30, 90]).to(DEVICE)
        sparse, dense = (problem.step(path, activation) for path in ("sparse", "dense"))
        assert_same_numbers(sparse, dense)

    @settings(deadline=None, max_examples=10)
    @given(problem=problems())
    def test_any_shape(self, activation, problem):
        problem.k = max(1, problem.k)
        problem = problem.to(DEVICE)
        sparse, dense = (problem.step(path, activation) for path in ("sparse", "dense"))
        assert_same_numbers(sparse, dense)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_a_gpu(capability):
    """Down to machine code, which needs no GPU; in a process without the interpreter."""
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_kernels.py")
    subprocess.run([sys.executable, str(script), str(capability)], check=True, env=environment)
