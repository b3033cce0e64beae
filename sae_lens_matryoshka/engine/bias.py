"""The decoder's bias where the encoder subtracts it from its input, without a product of the batch's size."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from typing_extensions import override


def shifted_bias(b_enc: torch.Tensor, b_dec: torch.Tensor, W_enc: torch.Tensor) -> torch.Tensor:
    """b_enc, as (x - b_dec) @ W_enc + b_enc sees it when x - b_dec is held fixed.

    The shift moves every pre-activation of a latent alike, so b_dec's gradient through the encoder
    is -W_enc @ (gradient of b_enc): no product of the batch's size.
    """
    return _ShiftedBias.apply(b_enc, b_dec, W_enc)


class _ShiftedBias(torch.autograd.Function):
    @staticmethod
    @override
    def forward(
        ctx: Any, b_enc: torch.Tensor, b_dec: torch.Tensor, W_enc: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(W_enc)
        return b_enc.clone()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        (W_enc,) = ctx.saved_tensors
        return grads[0], -(W_enc @ grads[0].to(W_enc.dtype)), None
