"""Certified screening: the encoder's product in bfloat16, float32's selection and values.

The bfloat16 product is a bound, not an answer. With inputs rounded to 8 bits and sums of d terms in
float32,

    |x @ w - product| <= (2^-7 (1 + 2^-9) + d 2^-22) |x| |w|

by Cauchy-Schwarz. One more column of x, |x|, against one more row of W_enc, that factor times |w|,
makes the product itself an upper bound of x @ w; rounding it to bfloat16 keeps the order. Entries
whose upper bound stays below the cut are out for certain. All others are computed again in float32,
and only those numbers decide. If the smallest winner lies below the cut, the proof fails and the
search is made in float32 (`selection.top`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from typing_extensions import override

from sae_lens_matryoshka.engine import kernels
from sae_lens_matryoshka.engine.selection import Encoder

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
        and _float32_is_exact()
        and torch.cuda.get_device_capability(encoder.x.device) >= (8, 0)
    )


def _float32_is_exact() -> bool:
    """Whether CUDA multiplies float32 as float32, not as TF32."""
    setting = getattr(torch.backends.cuda.matmul, "fp32_precision", None)  # torch 2.9
    return not torch.backends.cuda.matmul.allow_tf32 if setting is None else setting != "tf32"


@contextmanager
def _sums_in_float32() -> Iterator[None]:
    """Keep cuBLAS from adding partial sums in bfloat16, which the bound does not cover."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_bf16_reduced_precision_reduction
    matmul.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        matmul.allow_bf16_reduced_precision_reduction = before


@dataclass(frozen=True)
class ScreenedEncoder(Encoder):
    """An encoder whose blocks are upper bounds of its products, in bfloat16.

    Args:
        plain: The encoder in float32.
        x_norm: Norms of x's rows, (batch,).
        w_norm: Norms of W_enc's columns, (d_sae,).
    """

    plain: Encoder
    x_norm: torch.Tensor
    w_norm: torch.Tensor

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
        weights, buffer = x.new_zeros(size, inner), x.new_empty(size, batch)
        for lo in range(0, d_sae, size):
            block = weights[: min(size, d_sae - lo)]
            block[:, :d_in] = self.W_enc[:, lo : lo + size].T
            block[:, d_in] = allowance[lo : lo + size]
            with _sums_in_float32():
                bounds = torch.mm(block, x, out=buffer[: len(block)])
            yield lo, bounds

    @override
    def bounds(self, least: torch.Tensor | float) -> torch.Tensor:
        # rounding to nearest keeps the order: what was at least the bound stays so
        return self.plain.bounds(least).to(torch.bfloat16)

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
