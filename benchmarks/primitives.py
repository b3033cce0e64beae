"""The pieces of the sparse step beside the alternatives that lost.

python -m benchmarks.primitives [--threads N] [--rounds N]
"""

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.shape import Shape
from benchmarks.timing import interleaved, machine, say, table
from sae_lens_matryoshka.engine import kernels

SHAPE = Shape()


def main() -> None:
    """Print one table per piece."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    say(f"{machine('cpu')}\n{SHAPE}; medians of {args.rounds} rounds\n")
    for title, arms in (
        ("The encoder's product", products()),
        ("Finding the candidates in it", searches()),
        ("Decoding all levels", decodes()),
        ("Gradient of the activations", activation_gradients()),
        ("Gradient of W_enc, (d_in, d_sae)", encoder_gradients()),
        ("Adam over both weights", adams()),
    ):
        times = interleaved(arms, args.rounds)
        say(f"### {title}\n")
        table(["", "ms"], [[name, f"{statistics.median(ms):.1f}"] for name, ms in times.items()])
        say()


Arms = dict[str, Callable[[], object]]


def products() -> Arms:
    """The whole product at once, or in blocks of latents that stay in the cache."""
    batch, d_in, d_sae = SHAPE.batch, SHAPE.d_in, SHAPE.d_sae
    x, W = torch.randn(batch, d_in), torch.randn(d_in, d_sae)
    whole = torch.empty(batch, d_sae)

    def blocks(size: int) -> Callable[[], None]:
        buffer = torch.empty(size, batch)

        def run() -> None:
            for lo in range(0, d_sae, size):
                torch.mm(W[:, lo : lo + size].T, x.T, out=buffer)

        return run

    return {
        "new memory": lambda: x @ W,
        "reused memory": lambda: torch.mm(x, W, out=whole),
        **{f"blocks of {size} latents": blocks(size) for size in (512, 2048, 4096)},
    }


def searches() -> Arms:
    """One entry in 400 reaches its bound."""
    blocks = torch.randn(SHAPE.d_sae // 2048, 2048, SHAPE.batch)
    bounds = torch.full((2048,), 2.81)

    def repeated(search: Callable[[torch.Tensor], object]) -> Callable[[], None]:
        def run() -> None:
            for block in blocks:
                search(block)

        return run

    return {
        "comparison alone": repeated(lambda block: block < bounds[:, None]),
        "nonzero of it": repeated(lambda block: (block >= bounds[:, None]).nonzero()),
        "eight entries at a time": repeated(lambda block: kernels.not_below(block, bounds)),
        "top-k of everything": lambda: blocks.flatten().topk(SHAPE.k * SHAPE.batch, sorted=False),
    }


def decodes() -> Arms:
    """A segment for every level and token."""
    _, columns, values, offsets = _entries(SHAPE.levels * SHAPE.batch, SHAPE.d_sae)
    W_dec = torch.randn(SHAPE.d_sae, SHAPE.d_in)
    csr = _csr(offsets, columns, values, SHAPE.d_sae)
    return {
        "embedding_bag": lambda: kernels.weighted_sums(W_dec, columns, values, offsets),
        "CSR product": lambda: csr @ W_dec,
    }


def activation_gradients() -> Arms:
    """An inner product per active entry."""
    rows, columns, _, offsets = _entries(SHAPE.levels * SHAPE.batch, SHAPE.d_sae)
    W_dec = torch.randn(SHAPE.d_sae, SHAPE.d_in)
    grad = torch.randn(SHAPE.levels * SHAPE.batch, SHAPE.d_in)
    return {
        "sampled_addmm": lambda: kernels.dots(grad, W_dec, columns, offsets),
        "gather both, multiply, sum": lambda: (grad[rows] * W_dec[columns]).sum(dim=-1),
    }


def encoder_gradients() -> Arms:
    """A segment for every latent; the result lies the other way round."""
    _, columns, values, offsets = _entries(SHAPE.d_sae, SHAPE.batch)
    x = torch.randn(SHAPE.batch, SHAPE.d_in)
    csr = _csr(offsets, columns, values, SHAPE.batch)
    by_dimension = x.T.contiguous().T

    def sums() -> torch.Tensor:
        return kernels.weighted_sums(x, columns, values, offsets)

    def in_blocks(size: int) -> torch.Tensor:
        result = torch.empty(SHAPE.d_in, SHAPE.d_sae)
        for lo in range(0, SHAPE.d_sae, size):
            block = offsets[lo : lo + size + 1]
            start, end = int(block[0]), int(block[-1])
            part = F.embedding_bag(
                columns[start:end],
                x,
                block - start,
                mode="sum",
                per_sample_weights=values[start:end],
                include_last_offset=True,
            )
            result[:, lo : lo + size] = part.T
        return result

    def by_columns() -> torch.Tensor:
        result = torch.empty(SHAPE.d_in, SHAPE.d_sae)
        return torch.addmm(result.T, csr, by_dimension, beta=0, out=result.T)

    return {
        "embedding_bag, not turned": sums,
        "embedding_bag, then turned": lambda: sums().T.contiguous(),
        "embedding_bag, turned by 256 latents": lambda: in_blocks(256),
        "CSR product into columns": by_columns,
    }


def adams() -> Arms:
    """The transposed weight is W_enc stored latent by latent, which would spare the turning."""

    def step(fused: bool, transposed: bool = False, silent: float = 0.0) -> Callable[[], object]:
        parameters = []
        for size in ((SHAPE.d_sae, SHAPE.d_in), (SHAPE.d_sae, SHAPE.d_in)):
            values, grad = torch.randn(size), torch.randn(size)
            if transposed and not parameters:
                values, grad = values.T, grad.T
            parameters.append(torch.nn.Parameter(values))
            parameters[-1].grad = grad
        optimizer = torch.optim.Adam(parameters, fused=fused)
        _silence(optimizer, silent)
        return optimizer.step

    return {
        "torch's default": step(fused=False),
        "torch's default, a fifth of the latents silent": step(fused=False, silent=0.2),
        "fused": step(fused=True),
        "fused, a fifth of the latents silent": step(fused=True, silent=0.2),
        "fused, W_enc stored transposed": step(fused=True, transposed=True),
    }


def _silence(optimizer: torch.optim.Adam, share: float) -> None:
    """Leave a share of the latents as they are when they have not fired for about 900 steps."""
    optimizer.step()
    for parameter, state in optimizer.state.items():
        silent = slice(int(share * len(parameter)))
        parameter.grad[silent] = 0.0  # type: ignore[index]
        state["exp_avg"][silent] = 1e-41


def _entries(n_segments: int, n_columns: int) -> tuple[torch.Tensor, ...]:
    """k * batch random entries: segments and columns, values, offsets."""
    rows = torch.randint(n_segments, (SHAPE.k * SHAPE.batch,)).sort().values
    columns = torch.randint(n_columns, rows.shape).int()
    offsets = torch.searchsorted(rows, torch.arange(n_segments + 1)).int()
    return rows, columns, torch.rand(len(rows)), offsets


def _csr(
    offsets: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, n_columns: int
) -> torch.Tensor:
    size = (len(offsets) - 1, n_columns)
    return torch.sparse_csr_tensor(offsets, columns, values, size, check_invariants=False)


if __name__ == "__main__":
    main()
