"""Certified screening: the encoder's product in bfloat16, float32's selection and values.

The bfloat16 product is a bound, not an answer. With inputs rounded to 8 bits and sums of d terms in
float32,

    |x @ w - product| <= (2^-7 (1 + 2^-9) + d 2^-22) |x| |w|

by Cauchy-Schwarz. One more column of x, |x|, against one more row of W_enc, that factor times |w|,
makes the product itself an upper bound of x @ w. Entries whose upper bound stays below the cut are
out for certain. All others are computed again in float32, and only those numbers decide. If the
smallest winner lies below the cut, the proof fails and the search starts over (`selection.top`).

All sums must be in float32. To fill a GPU, cuBLAS may split the inner dimension into s parts and
add their sums in the dtype of the result; PyTorch allows it by default, in a process-wide setting
(`torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction`). In bfloat16 each of these s
roundings and s - 1 additions loses up to 2^-8 |x| |w|. cuBLAS chooses s, up to about d / 32. For
s = 8 the factor would already grow by more than 2^-5, about the size of the cut itself: of random
products, one in a thousand exceeds 3 |x| |w| / sqrt(d). A bound that covers any s would exclude
nothing. On CUDA the result is therefore in float32. Then d 2^-22 covers partial sums in any order,
and the setting, which other threads rely on, is never changed. CPUs accumulate in float32, so there
the result is in bfloat16; rounding it keeps the order.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from typing_extensions import override

from sae_lens_matryoshka.engine import kernels
from sae_lens_matryoshka.engine.selection import Encoder

logger = logging.getLogger(__name__)

# Norms outside of these could meet bfloat16's denormals or overflow, where the bound does not hold.
SAFE_NORMS = 2.0**-50, 2.0**50

# Processors multiply matrices of inner dimensions divisible by this at full speed.
INNER_MULTIPLE = 32


def screened(encoder: Encoder) -> Encoder:
    """The same encoder with screening; itself, where the bound could not be certified.

    Args:
        encoder: In float32.
    """
    x_norm = encoder.x.norm(dim=-1)  # (batch,)
    w_norm = encoder.W_enc.norm(dim=0)  # (d_sae,)
    low, high = SAFE_NORMS
    for norms, rows in ((x_norm, encoder.x), (w_norm, encoder.W_enc.T)):
        safe = (norms >= low) & (norms <= high)
        if not safe.all() and (rows[~safe] != 0).any():  # NaN is not 0 either
            return encoder
    return ScreenedEncoder(
        encoder.x, encoder.W_enc, encoder.b_enc, encoder.norm, encoder, x_norm, w_norm
    )


def pays(encoder: Encoder) -> bool:
    """Whether float32 was asked for on a GPU that multiplies bfloat16 faster.

    A CPU with units for it gains nothing (docs/results/step.md): the exact products of what is left cost as much.
    """
    return (
        encoder.matmul_dtype == torch.float32
        and encoder.x.device.type == "cuda"
        and float32_is_exact()
        and not torch.cuda.is_current_stream_capturing()  # what is tried now cannot be read
        and _multiplies_into_float32(encoder.x.device)
    )


def float32_is_exact() -> bool:
    """Whether CUDA multiplies float32 as float32, not as TF32."""
    setting = getattr(torch.backends.cuda.matmul, "fp32_precision", None)  # torch 2.9
    return not torch.backends.cuda.matmul.allow_tf32 if setting is None else setting != "tf32"


@cache
def _multiplies_into_float32(device: torch.device) -> bool:
    """Whether a GPU has units for bfloat16, and torch a product of it in float32 (from 2.8 on)."""
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    ones = torch.ones(INNER_MULTIPLE, INNER_MULTIPLE, dtype=torch.bfloat16, device=device)
    try:
        product = _product(ones, ones, out=torch.empty_like(ones, dtype=torch.float32))
        return bool((product == INNER_MULTIPLE).all())
    except (TypeError, RuntimeError) as error:  # torch has no such product
        logger.info("No screening on %s: torch %s. %s", device, torch.__version__, error)
        return False


def _product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """The product of two matrices in bfloat16, added in float32, in out's dtype."""
    if out.dtype == torch.bfloat16:
        return torch.mm(a, b, out=out)
    return torch.mm(a, b, out_dtype=out.dtype, out=out)


@dataclass(frozen=True)
class ScreenedEncoder(Encoder):
    """An encoder whose blocks are upper bounds of its products.

    Args:
        plain: The encoder in float32.
        x_norm: Norms of x's rows, (batch,).
        w_norm: Norms of W_enc's columns, (d_sae,).
    """

    plain: Encoder
    x_norm: torch.Tensor
    w_norm: torch.Tensor

    @property
    def bound_dtype(self) -> torch.dtype:
        """What the upper bounds are in."""
        return torch.bfloat16 if self.x.device.type == "cpu" else torch.float32

    @override
    def latent_blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        batch, d_sae = self.shape
        d_in = self.x.shape[1]
        factor = 2**-7 * (1 + 2**-9) + d_in * 2**-22
        inner = -(-(d_in + 1) // INNER_MULTIPLE) * INNER_MULTIPLE
        x = torch.zeros(inner, batch, dtype=torch.bfloat16, device=self.x.device)
        x[:d_in] = self.x.T
        x[d_in] = _rounded_up(self.x_norm)
        allowance = _rounded_up(factor * self.w_norm)  # (d_sae,)
        size = self.latents_per_block
        weights = x.new_zeros(size, inner)
        buffer = x.new_empty(size, batch, dtype=self.bound_dtype)
        for lo in range(0, d_sae, size):
            block = weights[: min(size, d_sae - lo)]
            block[:, :d_in] = self.W_enc[:, lo : lo + size].T
            block[:, d_in] = allowance[lo : lo + size]
            yield lo, _product(block, x, out=buffer[: len(block)])

    @override
    def bounds(self, least: torch.Tensor | float) -> torch.Tensor:
        # rounding to nearest keeps the order: what was at least the bound stays so
        return self.plain.bounds(least).to(self.bound_dtype)

    @override
    def products(self, lo: int, block: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        weights = self.W_enc[:, lo : lo + len(block)].T.contiguous()  # (latents, d_in)
        starts = torch.arange(len(block) + 1, device=found.device) * block.shape[1]
        offsets = torch.searchsorted(found, starts).int()
        return kernels.dots(weights, self.x, (found % block.shape[1]).int(), offsets)

    @override
    def exact(self) -> Encoder:
        return self.plain


def _rounded_up(values: torch.Tensor) -> torch.Tensor:
    """In bfloat16 and no smaller, with room for the rounding of a norm in float32."""
    return (values * (1 + 2**-7)).to(torch.bfloat16)
