"""The sparse step's three primitives, in torch: on the CPU and on any device.

Each touches active entries only. `engine.triton` has the same three for CUDA and takes over there.
"""

import logging
import warnings
from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F

logger = logging.getLogger(__name__)

# Eight booleans read as one integer, all of them true.
_EIGHT_TRUE = 0x0101010101010101


def are_fast_on(tensor: torch.Tensor) -> bool:
    """Whether the primitives are made for the tensor's device: a CPU, or CUDA with Triton."""
    return tensor.device.type == "cpu" or _triton_takes_over(tensor)


def not_below(block: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """Where a block reaches its bounds; NaN does, so that it is never lost.

    Args:
        block: (rows, columns), contiguous.
        bounds: One bound per row, (rows,).

    Returns:
        Indices into block.flatten(), increasing, int64.
    """
    if _triton_takes_over(block):
        from sae_lens_matryoshka.engine import triton

        return triton.not_below(block, bounds)
    n = block.numel()
    below = torch.empty(-(-n // 8) * 8, dtype=torch.bool, device=block.device)
    below[n:] = True  # fill the last group of eight
    torch.lt(block, bounds[:, None], out=below[:n].view(block.shape))
    # few groups hold an entry at all: looking at eight at once spares most of the search
    groups = (below.view(torch.int64) != _EIGHT_TRUE).nonzero().squeeze(1)
    inside = (~below.view(-1, 8)[groups]).nonzero()  # (found, 2): group, place in it
    return groups[inside[:, 0]] * 8 + inside[:, 1]


def weighted_sums(
    table: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """Weighted sum of a table's rows, for every segment of the index.

    Args:
        table: (n, d).
        index: Rows of the table, (entries,), int32.
        weights: Weight of each entry, (entries,), in the table's dtype.
        offsets: Where each segment starts, and the end of the last one, (segments + 1,), int32.

    Returns:
        (segments, d); zeros for an empty segment.
    """
    if _triton_takes_over(table):
        from sae_lens_matryoshka.engine import triton

        return triton.weighted_sums(table, index, weights, offsets)
    return F.embedding_bag(
        index, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


def dots(
    a: torch.Tensor, b: torch.Tensor, columns: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """Inner products of chosen pairs of rows: a[segment] with b[column].

    Args:
        a: One row per segment, (segments, d).
        b: (n, d).
        columns: Row of b for each entry, (entries,), int32.
        offsets: Where each segment starts, and the end of the last one, (segments + 1,), int32.

    Returns:
        (entries,), in a's dtype.
    """
    if _triton_takes_over(a):
        from sae_lens_matryoshka.engine import triton

        return triton.dots(a, b, columns, offsets)
    _accept_csr()
    # only these two have a kernel
    dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
    pattern = torch.sparse_csr_tensor(
        offsets,
        columns,
        torch.zeros(len(columns), dtype=dtype, device=a.device),
        (len(a), len(b)),
        check_invariants=False,
    )
    product = torch.sparse.sampled_addmm(pattern, a.to(dtype), b.to(dtype).T, beta=0.0)
    return product.values().to(a.dtype)


def _triton_takes_over(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda and _triton_works(tensor.device)


@cache
def _triton_works(device: torch.device) -> bool:
    """Whether a kernel runs: triton may lack a C compiler, or not know the GPU."""
    if find_spec("triton") is None:
        return False
    from sae_lens_matryoshka.engine import triton

    try:
        found = triton.not_below(torch.ones(1, 1, device=device), torch.ones(1, device=device))
        return found.tolist() == [0]
    except Exception as error:  # whatever its compiler or the driver raises
        logger.warning(
            "Triton does not work on %s: training takes the dense path. %s", device, error
        )
        return False


@cache
def _accept_csr() -> None:
    # torch says once per process that its CSR tensors are in beta; that is no news to users of ours
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.zeros(1, 1).to_sparse_csr()
