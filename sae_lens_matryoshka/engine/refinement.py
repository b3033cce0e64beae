"""One step of ISTA (Gregor & LeCun 2010) on an encoding: what its reconstruction leaves is encoded and added.

With the activations a of a first pass and the residual r = x - decode(a), the refined pre-activations are
a + step * (r @ W_enc) * norm. The residual counts as constant.

Where the first pass is active, few entries, they are computed one by one. Elsewhere they are the product
alone, and an entry of the refined top n that lies there is among the n largest of the product: what
exceeds it in the product exceeds it in the sum, too, since a is positive.
"""

from dataclasses import dataclass

import torch

from sae_lens_matryoshka.engine import kernels, selection
from sae_lens_matryoshka.engine.dense import DenseCode
from sae_lens_matryoshka.engine.selection import Encoder, Entries
from sae_lens_matryoshka.engine.sparse import (
    TRANSPOSED_LATENTS,
    PreActivations,
    SparseCode,
    offsets,
)


@torch.no_grad()
def residual_of(
    encoder: Encoder, code: DenseCode | SparseCode, W_dec: torch.Tensor, b_dec: torch.Tensor | None
) -> torch.Tensor:
    """What a code leaves of the input that it encodes, (..., d_in), without a gradient.

    Args:
        encoder: Where the code comes from.
        code: The first pass.
        W_dec: The decoder as it is trained, (d_sae, d_in).
        b_dec: (d_in,); None where the encoder's input is without it already.
    """
    bias = W_dec.new_zeros(W_dec.shape[1]) if b_dec is None else b_dec
    return encoder.x - code.nested_decode(W_dec, bias, [len(W_dec)])[0]


def refined(
    encoder: Encoder, acts: torch.Tensor, residual: torch.Tensor, step: float
) -> torch.Tensor:
    """The definition: refined pre-activations, times the norms, (..., d_sae).

    Args:
        encoder: Its W_enc and norms.
        acts: Activations of the first pass, times the norms, (..., d_sae).
        residual: What they leave of the input, (..., d_in).
        step: Length of the step.
    """
    product = residual @ encoder.W_enc
    if encoder.norm is not None:
        product = product * encoder.norm
    return acts + step * product


@dataclass(frozen=True)
class RefinedPass:
    """The refined pre-activations of a batch, of which few are ever looked at.

    Args:
        product: Gives step * (residual @ W_enc) * norm.
        active: The first pass's active entries with their refined pre-activations.
    """

    product: Encoder
    active: Entries

    @staticmethod
    @torch.no_grad()
    def of(encoder: Encoder, first: Entries, residual: torch.Tensor, step: float) -> "RefinedPass":
        """
        Args:
            encoder: The first pass's.
            first: Its active entries.
            residual: What they leave of the input, (batch, d_in).
            step: Length of the step.
        """
        no_bias = torch.zeros_like(encoder.b_enc)
        product = Encoder(step * residual, encoder.W_enc, no_bias, encoder.norm)
        values = first.hidden_pre + _at(product, first)
        return RefinedPass(product, Entries(first.latents, first.tokens, values))

    def joined(self, others: Entries) -> Entries:
        """The active entries and those of the product's that the first pass left out, in order."""
        _, is_active = self.places(others)
        latents, tokens, values = (
            torch.cat([getattr(self.active, name), getattr(others, name)[~is_active]])
            for name in ("latents", "tokens", "hidden_pre")
        )
        entries = Entries(latents, tokens, values)
        return entries[self._keys(entries).argsort()]

    def top(self, n: int) -> Entries:
        """As `selection.top`."""
        candidates = self.joined(selection.top(self.product, n))
        return selection.largest(candidates, n, self.product.shape[1])

    def above(self, threshold: float) -> Entries:
        """As `selection.above`."""
        candidates = self.joined(selection.above(self.product, threshold))
        return candidates[~(candidates.hidden_pre <= threshold)]  # NaN stays

    def places(self, entries: Entries) -> tuple[torch.Tensor, torch.Tensor]:
        """Where entries stand among the active ones, (entries,), and whether they do."""
        keys, active = self._keys(entries), self._keys(self.active)
        if len(active) == 0:
            return torch.zeros_like(keys), torch.zeros_like(keys, dtype=torch.bool)
        places = torch.searchsorted(active, keys).clamp(max=len(active) - 1)
        return places, active[places] == keys

    def _keys(self, entries: Entries) -> torch.Tensor:
        return entries.latents * self.product.shape[0] + entries.tokens


def encode(first: SparseCode, refined: RefinedPass, entries: Entries) -> SparseCode:
    """The code of selected refined entries, with the graph to W_enc and to the first pass."""
    product = refined.product
    hidden_pre = PreActivations.apply(product.W_enc, product.b_enc, product, entries)
    places, is_active = refined.places(entries)
    acts = first.acts[places[is_active]]
    # the entries' values hold these already: what is added is their gradient
    hidden_pre = hidden_pre.index_add(0, is_active.nonzero().squeeze(1), acts - acts.detach())
    return SparseCode(entries, hidden_pre, product)


def _at(encoder: Encoder, entries: Entries) -> torch.Tensor:
    """Pre-activations of an encoder without bias at given entries, (entries,)."""
    d_sae, starts = encoder.shape[1], offsets(entries.latents, encoder.shape[1])
    tokens, parts = entries.tokens.int(), [encoder.x.new_empty(0)]
    # as for the encoder's gradient: few latents are transposed at a time
    size = TRANSPOSED_LATENTS if encoder.x.device.type == "cpu" else d_sae
    edges = [*starts[:-1:size].tolist(), len(entries)]
    for lo, start, end in zip(range(0, d_sae, size), edges, edges[1:]):
        if start < end:
            weights = encoder.W_enc[:, lo : lo + size].T.contiguous()  # (latents, d_in)
            block = starts[lo : lo + size + 1] - start
            parts.append(kernels.dots(weights, encoder.x, tokens[start:end], block))
    values = torch.cat(parts).to(entries.hidden_pre.dtype)
    return values if encoder.norm is None else values * encoder.norm[entries.latents]
