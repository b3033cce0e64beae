"""The same numbers as `engine.dense` from the active latents alone.

With k active latents of d_sae, the nested decode and every gradient touch k * batch rows of the
weights; only the encoder's product, which decides what is active, is dense.

Level i's latents stand in the reconstructions i..n, so the gradient that they see is the sum of
those levels' gradients: one cumulative sum over the levels serves all of them.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from typing_extensions import override

from sae_lens_matryoshka.engine import kernels
from sae_lens_matryoshka.engine.compiling import not_compiled
from sae_lens_matryoshka.engine.dense import in_float32
from sae_lens_matryoshka.engine.selection import Encoder, Entries

# Latents whose gradients are transposed at a time, so that they stay in the processor's cache.
TRANSPOSED_LATENTS = 256


class SparseCode:
    """Activations of a batch as a list of entries; the counterpart of `DenseCode`.

    Args:
        entries: Where pre-activations were looked at, ordered by latent, then by token.
        hidden_pre: Their pre-activations with their graph, (entries,).
        encoder: Where they come from.
    """

    def __init__(self, entries: Entries, hidden_pre: torch.Tensor, encoder: Encoder):
        self.entries = entries
        self._shape = encoder.shape
        self._norm = encoder.norm
        self.hidden_pre = hidden_pre  # (entries,)
        self.acts = hidden_pre  # (entries,)

    def at(self, per_latent: torch.Tensor) -> torch.Tensor:
        """A value per latent, (d_sae,), as one per entry, (entries,)."""
        return _AtEntries.apply(per_latent, self.entries.latents)

    @not_compiled
    def token_sums(self, per_entry: torch.Tensor) -> torch.Tensor:
        """Values of the entries, (entries,), summed per token, (batch,)."""
        values = in_float32(per_entry)
        sums = values.new_zeros(self._shape[0]).index_add(0, self.entries.tokens, values)
        return sums.to(per_entry.dtype)

    @not_compiled
    def latent_sums(self) -> torch.Tensor:
        """Activations without the norms' factor, summed over the batch, (d_sae,)."""
        return _LatentSums.apply(self._without_norm(), self.entries.latents, self._shape[1])

    @not_compiled
    def nested_decode(
        self,
        W_dec: torch.Tensor,
        b_dec: torch.Tensor,
        widths: Sequence[int],
        order: torch.Tensor | None = None,
        detach_inner: bool = False,
    ) -> torch.Tensor:
        """As `DenseCode.nested_decode`."""
        batch, d_sae = self._shape
        assert widths[-1] == d_sae
        plan = _DecodePlan(self.entries, batch, d_sae, widths, order, detach_inner)
        return _NestedDecode.apply(self._without_norm(), W_dec, b_dec, plan)

    def _without_norm(self) -> torch.Tensor:
        if self._norm is None:
            return self.acts
        return self.acts / self.at(self._norm)

    @cached_property
    @not_compiled
    def firing_counts(self) -> torch.Tensor:
        """On how many tokens of the batch each latent is active, (d_sae,)."""
        fired = (self.acts.detach() > 0).float()
        return fired.new_zeros(self._shape[1]).index_add(0, self.entries.latents, fired)

    @not_compiled
    def square_sums(self) -> torch.Tensor:
        """Squared activations summed over the batch, (d_sae,)."""
        squares = in_float32(self.acts.detach()).square()
        return _sums(squares, offsets(self.entries.latents, self._shape[1]))

    def smallest_active(self) -> torch.Tensor:
        """The smallest positive activation; infinity if there is none."""
        acts = self.acts.detach()
        return (
            torch.where(acts > 0, acts, torch.inf).min()
            if len(acts)
            else acts.new_tensor(torch.inf)
        )

    @not_compiled
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Activations and pre-activations, sparse COO of (batch, d_sae), without their graphs."""
        by_token = self.entries.tokens.int().argsort(stable=True)
        indices = torch.stack([self.entries.tokens, self.entries.latents])[:, by_token]

        def as_tensor(values: torch.Tensor) -> torch.Tensor:
            return torch.sparse_coo_tensor(
                indices,
                values.detach()[by_token],
                self._shape,
                is_coalesced=True,
                check_invariants=False,
            )

        acts = as_tensor(self.acts)
        return acts, acts if self.acts is self.hidden_pre else as_tensor(self.hidden_pre)


def encode(encoder: Encoder, entries: Entries) -> SparseCode:
    """The code of selected entries, with the graph to W_enc and b_enc (not to x).

    Activations are the pre-activations, as a top-k leaves them; another activation function
    replaces `acts`.
    """
    hidden_pre = PreActivations.apply(encoder.W_enc, encoder.b_enc, encoder, entries)
    return SparseCode(entries, hidden_pre, encoder)


class _DecodePlan:
    """The entries ordered for the decode: a segment for every (level, token), tokens fastest."""

    def __init__(
        self,
        entries: Entries,
        batch: int,
        d_sae: int,
        widths: Sequence[int],
        order: torch.Tensor | None,
        detach_inner: bool,
    ):
        self.detach_inner = detach_inner
        edges = torch.tensor(widths, device=entries.latents.device)
        places = entries.latents if order is None else order.argsort()[entries.latents]
        level = torch.searchsorted(edges, places, right=True)
        segments = level * batch + entries.tokens
        self.shape = len(widths), batch
        self.segments = segments.int()  # of each entry, in the entries' order
        self.order = self.segments.argsort(stable=True)
        self.segment_offsets = offsets(segments, len(widths) * batch)
        self.latents = entries.latents[self.order].int()
        self.latent_offsets = offsets(entries.latents, d_sae)


def offsets(segment: torch.Tensor, n_segments: int) -> torch.Tensor:
    """Where each segment starts once entries are ordered by segment, (n_segments + 1,), int32."""
    counts = torch.bincount(segment, minlength=n_segments)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()


def _sums(values: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Values of entries, ordered by latent, summed per latent, (d_sae,); repeatable on any device.

    Args:
        values: (entries,)
        starts: Where each latent's entries start, (d_sae + 1,), as `offsets` gives them.
    """
    index = torch.arange(len(values), dtype=torch.int32, device=values.device)
    return kernels.weighted_sums(values[:, None], index, torch.ones_like(values), starts)[:, 0]


class _LatentSums(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, values: torch.Tensor, latents: torch.Tensor, d_sae: int) -> torch.Tensor:
        ctx.latents = latents
        return _sums(values, offsets(latents, d_sae))

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        return grads[0][ctx.latents], None, None


class _AtEntries(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, per_latent: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        ctx.latents, ctx.d_sae = latents, len(per_latent)
        return per_latent[latents]

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        return _sums(grads[0].contiguous(), offsets(ctx.latents, ctx.d_sae)), None


class _NestedDecode(torch.autograd.Function):
    @staticmethod
    @override
    def forward(
        ctx: Any, values: torch.Tensor, W_dec: torch.Tensor, b_dec: torch.Tensor, plan: _DecodePlan
    ) -> torch.Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.plan = plan
        weights = values.to(W_dec.dtype)[plan.order]
        per_level = kernels.weighted_sums(W_dec, plan.latents, weights, plan.segment_offsets)
        recons = per_level.view(*plan.shape, -1)  # (levels, batch, d_in)
        recons[0] += b_dec
        for inner, outer in zip(recons, recons[1:]):
            outer += inner
        return recons

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        values, W_dec = ctx.saved_tensors
        plan = ctx.plan
        of_levels = grads[0].to(W_dec.dtype)  # (levels, batch, d_in)
        if plan.detach_inner:
            grad = _sums_with_the_outermost(of_levels)
        else:
            grad = _sums_from_each_level_on(of_levels)
        flat = grad.flatten(0, 1)
        grad_values = grad_W_dec = grad_b_dec = None
        if ctx.needs_input_grad[0]:
            ordered = kernels.dots(flat, W_dec, plan.latents, plan.segment_offsets)
            grad_values = torch.empty_like(values)
            grad_values[plan.order] = ordered.to(values.dtype)
        if ctx.needs_input_grad[1]:
            grad_W_dec = kernels.weighted_sums(
                flat, plan.segments, values.to(W_dec.dtype), plan.latent_offsets
            )
        if ctx.needs_input_grad[2]:
            grad_b_dec = grad[0].sum(dim=0)
        return grad_values, grad_W_dec, grad_b_dec, None


def _sums_from_each_level_on(grads: torch.Tensor) -> torch.Tensor:
    """Reversed cumulative sum over the levels: what the latents of each level see."""
    if len(grads) == 1:
        return grads.contiguous()
    sums = torch.empty(grads.shape, dtype=grads.dtype, device=grads.device)
    sums[-1] = grads[-1]
    for level in reversed(range(len(grads) - 1)):
        torch.add(grads[level], sums[level + 1], out=sums[level])
    return sums


def _sums_with_the_outermost(grads: torch.Tensor) -> torch.Tensor:
    """What the latents of each level see where inner levels are detached."""
    sums = grads.clone(memory_format=torch.contiguous_format)
    sums[:-1] += grads[-1]
    return sums


class PreActivations(torch.autograd.Function):
    """Hands out the selected pre-activations; its backward is the encoder's."""

    @staticmethod
    @override
    def forward(
        ctx: Any, W_enc: torch.Tensor, b_enc: torch.Tensor, encoder: Encoder, entries: Entries
    ) -> torch.Tensor:
        ctx.encoder, ctx.entries = encoder, entries
        return entries.hidden_pre.clone()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        encoder, entries = ctx.encoder, ctx.entries
        grad = grads[0] if encoder.norm is None else grads[0] * encoder.norm[entries.latents]
        starts = offsets(entries.latents, encoder.shape[1])
        grad_W_enc = grad_b_enc = None
        if ctx.needs_input_grad[0]:
            grad_W_enc = _encoder_gradient(encoder, entries, grad, starts)
        if ctx.needs_input_grad[1]:
            grad_b_enc = _sums(grad.to(encoder.b_enc.dtype), starts)
        return grad_W_enc, grad_b_enc, None, None


def _encoder_gradient(
    encoder: Encoder, entries: Entries, grad: torch.Tensor, starts: torch.Tensor
) -> torch.Tensor:
    """x.T @ grad for the entries' gradients, (d_in, d_sae)."""
    x, d_sae = encoder.x, encoder.shape[1]
    result = torch.empty_like(encoder.W_enc)
    tokens, weights = entries.tokens.int(), grad.to(x.dtype)
    size = TRANSPOSED_LATENTS if x.device.type == "cpu" else d_sae
    edges = [*starts[:-1:size].tolist(), len(entries)]
    for lo, start, end in zip(range(0, d_sae, size), edges, edges[1:]):
        block = starts[lo : lo + size + 1]
        sums = kernels.weighted_sums(x, tokens[start:end], weights[start:end], block - start)
        result[:, lo : lo + len(sums)] = sums.T  # sums: (latents, d_in)
    return result
