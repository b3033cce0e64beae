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


def work_on(device: torch.device, *dtypes: torch.dtype) -> bool:
    """Whether the device is a CPU, or a GPU on which the Triton kernels work in all dtypes."""
    if device.type == "cuda":
        return all(_triton_works(device, dtype) for dtype in dtypes)
    return device.type == "cpu"


def not_below(block: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """Where a block reaches its bounds; NaN does, so that it is never lost.

    Args:
        block: (rows, columns).
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
    return tensor.is_cuda and _triton_works(tensor.device, tensor.dtype)


# Results of earlier tries, by device and dtype.
_triton_worked: dict[tuple[torch.device, torch.dtype], bool] = {}


def _triton_works(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether every kernel runs: Triton may lack a C compiler or support for the GPU or dtype."""
    known = device, dtype
    if known not in _triton_worked:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return False  # results cannot be read during a graph capture: try again after it
        _triton_worked[known] = _kernels_give_right_numbers(device, dtype)
    return _triton_worked[known]


def _kernels_give_right_numbers(device: torch.device, dtype: torch.dtype) -> bool:
    if find_spec("triton") is None:
        return False
    from sae_lens_matryoshka.engine import triton

    ones = torch.ones(2, 3, dtype=dtype, device=device)
    index = torch.tensor([0, 1, 1], dtype=torch.int32, device=device)
    starts = torch.tensor([0, 1, 3], dtype=torch.int32, device=device)
    try:
        found = triton.not_below(ones, torch.tensor([1.0, 2.0], dtype=dtype, device=device))
        sums = triton.weighted_sums(ones, index, ones.view(-1)[:3], starts)
        products = triton.dots(ones, ones, index, starts)
        numbers = [found.tolist(), sums.tolist(), products.tolist()]
    except Exception as error:  # whatever its compiler or the driver raises
        reason = str(error)
    else:
        if numbers == [[0, 1, 2], [[1.0] * 3, [2.0] * 3], [3.0] * 3]:
            return True
        reason = f"Its kernels gave wrong numbers: {numbers}."
    logger.warning(
        "Triton does not work on %s in %s: training takes the dense path. %s", device, dtype, reason
    )
    return False


@cache
def _accept_csr() -> None:
    # torch says once per process that its CSR tensors are in beta; that is no news to users of ours
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.zeros(1, 1).to_sparse_csr()
