# pyright: basic, reportMissingImports=false, reportGeneralTypeIssues=false, reportArgumentType=false
"""The three primitives of `engine.kernels` for CUDA, in Triton.

No atomics: every output element is written by one program, in a fixed order of additions. Sums
and comparisons are in float32 (in float64 for float64). Offsets are 64 bit wide throughout.

Kernels read memory by pointer and know no strides, so each wrapper makes its arguments contiguous.
Numbers that change from step to step are not specialized on, which would compile kernels again in
the middle of training.
"""

import torch
import triton
import triton.language as tl

# Entries of a block that one program compares, entries that one program multiplies at a time, and
# dimensions per step; from the shapes of a large language model's SAE, powers of two.
TILE = 4096
ENTRIES = 16
DIMENSIONS = 256


def not_below(block: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """As `kernels.not_below`: counts per tile first, so that each tile knows where to write."""
    block, bounds = block.contiguous(), bounds.contiguous()
    n, columns = block.numel(), block.shape[1]
    n_tiles = -(-n // TILE)
    counts = torch.empty(n_tiles, dtype=torch.int64, device=block.device)
    grid = (n_tiles,)
    with torch.cuda.device_of(block):
        _count[grid](block, bounds, counts, n, columns, TILE=TILE, WIDE=_wide(block))
    ends = counts.cumsum(0)
    n_found = int(ends[-1]) if len(ends) else 0
    found = counts.new_empty(n_found)
    if len(found):
        with torch.cuda.device_of(block):
            _write[grid](
                block, bounds, ends - counts, found, n, columns, TILE=TILE, WIDE=_wide(block)
            )
    return found


def weighted_sums(
    table: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """As `kernels.weighted_sums`."""
    table, index = table.contiguous(), index.contiguous()
    weights, offsets = weights.contiguous(), offsets.contiguous()
    n_segments, d = len(offsets) - 1, table.shape[1]
    sums = torch.empty(n_segments, d, dtype=table.dtype, device=table.device)
    dimensions = min(DIMENSIONS, triton.next_power_of_2(d))
    grid = (n_segments, triton.cdiv(d, dimensions))
    with torch.cuda.device_of(table):
        _weighted_sums[grid](
            table, index, weights, offsets, sums, d,
            ENTRIES=ENTRIES, DIMENSIONS=dimensions, WIDE=_wide(table),
        )  # fmt: skip
    return sums


def dots(
    a: torch.Tensor, b: torch.Tensor, columns: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """As `kernels.dots`."""
    a, b, columns = a.contiguous(), b.contiguous(), columns.contiguous()
    segments = torch.arange(len(a), device=a.device).repeat_interleave(
        offsets.diff(), output_size=len(columns)
    )
    products = torch.empty(len(columns), dtype=a.dtype, device=a.device)
    d = a.shape[1]
    dimensions = min(DIMENSIONS, triton.next_power_of_2(d))
    grid = (triton.cdiv(len(columns), ENTRIES),)
    with torch.cuda.device_of(a):
        _dots[grid](
            a, b, segments, columns, products, len(columns), d,
            ENTRIES=ENTRIES, DIMENSIONS=dimensions, WIDE=_wide(a),
        )  # fmt: skip
    return products


def _wide(tensor: torch.Tensor) -> tl.dtype:
    """What numbers are compared and added in."""
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32


@triton.jit
def _reaches(block, bounds, n, columns, TILE: tl.constexpr, WIDE: tl.constexpr):
    """Of this program's tile: the entries' places, and whether they are not below their bounds."""
    place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = place < n
    value = tl.load(block + place, mask=inside, other=0.0).to(WIDE)
    bound = tl.load(bounds + place // columns, mask=inside, other=0.0).to(WIDE)
    below = value < bound  # false for NaN
    return place, inside & (below == 0)


@triton.jit(do_not_specialize=["n"])
def _count(block, bounds, counts, n, columns, TILE: tl.constexpr, WIDE: tl.constexpr):
    _, reached = _reaches(block, bounds, n, columns, TILE, WIDE)
    tl.store(counts + tl.program_id(0), tl.sum(reached.to(tl.int64), axis=0))


@triton.jit(do_not_specialize=["n"])
def _write(block, bounds, starts, found, n, columns, TILE: tl.constexpr, WIDE: tl.constexpr):
    place, reached = _reaches(block, bounds, n, columns, TILE, WIDE)
    rank = tl.cumsum(reached.to(tl.int64), axis=0) - 1  # among the tile's
    start = tl.load(starts + tl.program_id(0))
    tl.store(found + start + rank, place, mask=reached)


@triton.jit
def _weighted_sums(
    table, index, weights, offsets, sums, d,
    ENTRIES: tl.constexpr, DIMENSIONS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    segment = tl.program_id(0).to(tl.int64)
    dimension = tl.program_id(1) * DIMENSIONS + tl.arange(0, DIMENSIONS)
    start = tl.load(offsets + segment)
    end = tl.load(offsets + segment + 1)
    total = tl.zeros((DIMENSIONS,), dtype=WIDE)
    for first in range(start, end, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        inside = entry < end
        row = tl.load(index + entry, mask=inside, other=0).to(tl.int64)
        weight = tl.load(weights + entry, mask=inside, other=0.0).to(WIDE)
        values = tl.load(
            table + row[:, None] * d + dimension[None, :],
            mask=inside[:, None] & (dimension < d)[None, :],
            other=0.0,
        ).to(WIDE)  # (ENTRIES, DIMENSIONS)
        total += tl.sum(values * weight[:, None], axis=0)
    tl.store(sums + segment * d + dimension, total, mask=dimension < d)


@triton.jit(do_not_specialize=["n"])
def _dots(
    a, b, rows, columns, products, n, d,
    ENTRIES: tl.constexpr, DIMENSIONS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    entry = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    inside = entry < n
    row = tl.load(rows + entry, mask=inside, other=0).to(tl.int64)
    column = tl.load(columns + entry, mask=inside, other=0).to(tl.int64)
    total = tl.zeros((ENTRIES,), dtype=WIDE)
    for first in range(0, d, DIMENSIONS):
        dimension = first + tl.arange(0, DIMENSIONS)
        mask = inside[:, None] & (dimension < d)[None, :]
        left = tl.load(a + row[:, None] * d + dimension[None, :], mask=mask, other=0.0)
        right = tl.load(b + column[:, None] * d + dimension[None, :], mask=mask, other=0.0)
        total += tl.sum(left.to(WIDE) * right.to(WIDE), axis=1)
    tl.store(products + entry, total, mask=inside)
