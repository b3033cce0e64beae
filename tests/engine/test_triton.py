"""The Triton kernels against torch: on a GPU where there is one, else through Triton's interpreter."""

import os
import runpy
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
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []  # -m gpu is all that a GPU should run


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

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_other_dtypes(self, dtype):
        block, bounds = randn(9, 100, dtype=dtype), randn(9, dtype=dtype)
        assert torch.equal(triton.not_below(block, bounds), reached(block, bounds))

    def test_float64_is_compared_in_float64(self):
        block = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64, device=DEVICE)
        assert triton.not_below(block, block[0, 1:]).tolist() == [1]


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float32, 1e-5),
        (torch.float64, 1e-12),
        (torch.bfloat16, 1e-2),
        (torch.float16, 1e-3),
    ],
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


def expanded(tensor: torch.Tensor) -> torch.Tensor:
    """Equal numbers, or rows, that share their memory: what `.sum()` gives backwards."""
    return tensor[:1].expand(tensor.shape)


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """With other numbers between its own."""
    return torch.stack([tensor, torch.full_like(tensor, 7)], dim=-1)[..., 0]


def transposed(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.T.contiguous().T if tensor.dim() == 2 else tensor.flip(0).flip(0)[:]


def of_another_column_order(tensor: torch.Tensor) -> torch.Tensor:
    """A slice of a wider matrix."""
    return torch.cat([tensor, tensor], dim=-1)[..., : tensor.shape[-1]]


LAYOUTS = [expanded, strided, transposed, of_another_column_order]

INDEX = torch.tensor([3, 1, 1, 0, 2, 3, 0], dtype=torch.int32, device=DEVICE)
OFFSETS = torch.tensor([0, 2, 2, 7], dtype=torch.int32, device=DEVICE)
ARGUMENTS = {
    "not_below": (randn(4, 6), randn(4, seed=1)),
    "weighted_sums": (randn(4, 5), INDEX, randn(7, seed=1), OFFSETS),
    "dots": (randn(3, 5), randn(4, 5, seed=1), INDEX, OFFSETS),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("name", "position"),
    [(name, i) for name, arguments in ARGUMENTS.items() for i in range(len(arguments))],
)
class TestLayouts:
    """No argument of any primitive needs to be contiguous."""

    def arguments(self, name, position, layout) -> list[torch.Tensor]:
        arguments = list(ARGUMENTS[name])
        if layout is expanded and arguments[position] is OFFSETS:
            arguments[position] = torch.zeros(4, dtype=torch.int32, device=DEVICE)  # all empty
            if name == "dots":
                arguments[2] = INDEX[:0]
        arguments[position] = layout(arguments[position])
        return arguments

    @pytest.mark.parametrize("primitives", [triton, kernels], ids=["triton", "torch"])
    def test_same_numbers_as_contiguous(self, primitives, name, position, layout):
        arguments = self.arguments(name, position, layout)
        expected = getattr(triton, name)(*(argument.clone().contiguous() for argument in arguments))
        torch.testing.assert_close(getattr(primitives, name)(*arguments), expected)


@pytest.fixture
def taken_over(monkeypatch) -> None:
    """The engine uses the Triton kernels, on whatever device."""
    monkeypatch.setattr(kernels, "_triton_takes_over", lambda _: True)


@pytest.mark.usefixtures("taken_over")
@pytest.mark.parametrize("with_norm", [True, False])
def test_gradients_that_share_their_memory(with_norm):
    """A plain sum of the activations gives an expanded gradient."""

    def gradient() -> torch.Tensor:
        problem = Problem.random(k=3, with_norm=with_norm).to(DEVICE)
        problem.W_enc.requires_grad_()
        problem.sparse_code().acts.sum().backward()
        assert problem.W_enc.grad is not None
        return problem.W_enc.grad

    by_triton = gradient()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_triton_takes_over", lambda _: False)
        torch.testing.assert_close(by_triton, gradient())


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


class TestWorks:
    """Triton takes over where every kernel gives the right numbers in the dtype at hand."""

    @pytest.fixture(autouse=True)
    def nothing_known(self, monkeypatch):
        monkeypatch.setattr(kernels, "_triton_worked", {})

    @pytest.mark.parametrize(
        "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
    )
    def test_in_every_dtype(self, dtype):
        assert kernels._triton_works(torch.device(DEVICE), dtype)

    @pytest.mark.parametrize("name", ["not_below", "weighted_sums", "dots"])
    @pytest.mark.parametrize("fails", ["by an error", "by wrong numbers"])
    def test_each_kernel_is_tried_in_the_dtype(self, monkeypatch, caplog, name, fails):
        primitive = getattr(triton, name)

        def broken(first, *others):
            if first.dtype != torch.bfloat16:
                return primitive(first, *others)
            if fails == "by an error":
                raise RuntimeError("ptxas does not know bf16")
            return primitive(first, *others) + 1

        monkeypatch.setattr(triton, name, broken)
        assert kernels._triton_works(torch.device(DEVICE), torch.float32)
        assert not kernels._triton_works(torch.device(DEVICE), torch.bfloat16)
        assert "bfloat16" in caplog.text

    def test_nothing_is_learnt_while_a_graph_is_captured(self, monkeypatch):
        device = torch.device("cuda:0")
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        monkeypatch.setattr(kernels, "_kernels_give_right_numbers", lambda *_: True)
        assert not kernels._triton_works(device, torch.float32)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        assert kernels._triton_works(device, torch.float32)


@pytest.mark.parametrize("name", ["test_triton.py", "test_device.py"])
def test_a_gpu_runs_this_with_m_gpu(monkeypatch, name):
    """What runs without a GPU in another way runs on one with all other tests of GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_: self)  # there is none
    monkeypatch.setattr(torch, "tensor", lambda *_, **__: torch.zeros(4))
    module = runpy.run_path(str(Path(__file__).with_name(name)))
    assert "gpu" in [mark.name for mark in module["pytestmark"]]


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_kernels_compile_for_a_gpu(capability):
    """Down to machine code, which needs no GPU; in a process without the interpreter."""
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_kernels.py")
    subprocess.run([sys.executable, str(script), str(capability)], check=True, env=environment)
