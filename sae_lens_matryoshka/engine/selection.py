"""Which latents are active: found block by block, so that batch x d_sae never exists as a whole.

A block of the encoder's product is compared with bounds below which nothing can be active; only
the few entries that reach them are looked at again, with the numbers of `engine.dense`.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from sae_lens_matryoshka.engine import kernels

logger = logging.getLogger(__name__)

# Most entries of a block of the encoder's product, and of the weights copied for it: on a CPU
# 16 MiB in float32, about its cache; elsewhere enough to keep the device busy.
BLOCK_ELEMENTS = 2**22
DEVICE_BLOCK_ELEMENTS = 2**26

# Fractions of a guess that turned out too high, tried in turn before searching without a guess.
LOWER_GUESSES = 0.8, 0.5


@dataclass(frozen=True)
class Encoder:
    """What turns activations into pre-activations: (x @ W_enc + b_enc) * norm.

    Args:
        x: Activations of the model, (batch, d_in).
        W_enc: (d_in, d_sae).
        b_enc: (d_sae,).
        norm: Factor of each latent's pre-activation, (d_sae,), positive, or None for 1.
    """

    x: torch.Tensor
    W_enc: torch.Tensor
    b_enc: torch.Tensor
    norm: torch.Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """(batch, d_sae)"""
        return len(self.x), len(self.b_enc)

    @property
    def block_elements(self) -> int:
        """How many entries of x @ W_enc may exist at a time."""
        return BLOCK_ELEMENTS if self.x.device.type == "cpu" else DEVICE_BLOCK_ELEMENTS

    @property
    def latents_per_block(self) -> int:
        """Latents in a block, whose products with the whole batch exist at a time; at least one."""
        batch, d_sae = self.shape
        return max(1, min(d_sae, self.block_elements // max(1, batch, self.x.shape[-1])))

    def of(self, latents: torch.Tensor, per: torch.Tensor | None = None) -> "Encoder":
        """The encoder of some latents, given as a mask; pre-activations divided by `per`."""
        norm = None if self.norm is None else self.norm[latents]
        if per is not None:
            norm = per.reciprocal() if norm is None else norm / per
        return Encoder(self.x, self.W_enc[:, latents], self.b_enc[latents], norm)

    @property
    def matmul_dtype(self) -> torch.dtype:
        """The dtype that a matmul has here: under autocast not the tensors' own."""
        device_type = self.x.device.type
        if torch.is_autocast_enabled(device_type) and self.x.dtype != torch.float64:
            return torch.get_autocast_dtype(device_type)
        return self.x.dtype

    def latent_blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Blocks of (x @ W_enc).T, (latents, batch), each with its first latent; reused memory."""
        batch, d_sae = self.shape
        dtype, size = self.matmul_dtype, self.latents_per_block
        x = self.x.to(dtype).T
        buffer = x.new_empty(size, batch)
        for lo in range(0, d_sae, size):
            weights = self.W_enc[:, lo : lo + size].to(dtype).T
            yield lo, torch.mm(weights, x, out=buffer[: len(weights)])

    def products(self, lo: int, block: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        """Entries of x @ W_enc, given by their places in a latent block."""
        return block.view(-1)[found]

    def exact(self) -> "Encoder":
        """The encoder whose blocks hold the products themselves."""
        return self

    def token_blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Blocks of pre-activations, (tokens, d_sae), each with its first token; reused memory."""
        batch, d_sae = self.shape
        # W_enc is read once per block, so that few large blocks cost less than many small ones
        size = max(1, min(batch, 2 * self.block_elements // d_sae))
        x, W_enc = self.x.to(self.matmul_dtype), self.W_enc.to(self.matmul_dtype)
        buffer = x.new_empty(size, d_sae)
        for first in range(0, batch, size):
            block = x[first : first + size]
            product = torch.mm(block, W_enc, out=buffer[: len(block)])
            same = product.dtype == self.b_enc.dtype
            hidden_pre = product.add_(self.b_enc) if same else product + self.b_enc
            yield first, hidden_pre if self.norm is None else hidden_pre.mul_(self.norm)

    def bounds(self, least: torch.Tensor | float) -> torch.Tensor:
        """What x @ W_enc must reach for a pre-activation of `least`, (d_sae,), a little less.

        The difference pays for rounding here and in the pre-activation: four roundings of values
        no larger than the two terms.
        """
        wide = torch.promote_types(self.b_enc.dtype, torch.float32)
        unscaled = torch.zeros_like(self.b_enc, dtype=wide) + least
        if self.norm is not None:
            unscaled = unscaled / self.norm
        slack = 8 * torch.finfo(self.b_enc.dtype).eps * (unscaled.abs() + self.b_enc.abs())
        bounds = unscaled - self.b_enc - slack.nan_to_num(posinf=0.0)
        dtype = self.matmul_dtype
        if torch.finfo(dtype).eps > torch.finfo(bounds.dtype).eps:
            # round down
            bounds = bounds - torch.finfo(dtype).eps * bounds.abs().nan_to_num(posinf=0.0)
        return bounds.to(dtype)


@dataclass(frozen=True)
class Entries:
    """Entries of (batch, d_sae), ordered by latent, then by token.

    Args:
        latents: (entries,)
        tokens: (entries,)
        hidden_pre: Their pre-activations, times the norms, (entries,).
    """

    latents: torch.Tensor
    tokens: torch.Tensor
    hidden_pre: torch.Tensor

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, which: torch.Tensor) -> "Entries":
        return Entries(self.latents[which], self.tokens[which], self.hidden_pre[which])

    @staticmethod
    def none(encoder: Encoder) -> "Entries":
        """No entries, on the encoder's device."""
        index = torch.empty(0, dtype=torch.int64, device=encoder.x.device)
        return Entries(index, index, encoder.b_enc.detach().new_empty(0))

    @staticmethod
    def joined(parts: list["Entries"]) -> "Entries":
        """Parts in the order of their latents as one."""
        return Entries(
            torch.cat([part.latents for part in parts]),
            torch.cat([part.tokens for part in parts]),
            torch.cat([part.hidden_pre for part in parts]),
        )


def above(encoder: Encoder, thresholds: torch.Tensor | float, limit: int | None = None) -> Entries:
    """Entries whose pre-activation exceeds their latent's threshold.

    Args:
        encoder: Gives the pre-activations.
        thresholds: (d_sae,), or one for all.
        limit: Most entries wanted; None: no limit.

    Raises:
        TooManyEntriesError: There are more than `limit`.
    """
    bounds = encoder.bounds(thresholds)
    parts, found = [Entries.none(encoder)], 0
    for lo, block in encoder.latent_blocks():
        part = _entries(encoder, lo, block, bounds)
        least = thresholds
        if isinstance(least, torch.Tensor):
            least = least[part.latents]
        part = part[~(part.hidden_pre <= least)]  # NaN stays
        parts.append(part)
        found += len(part)
        if limit is not None and found > limit:
            raise TooManyEntriesError
    return Entries.joined(parts)


class TooManyEntriesError(Exception):
    """More entries are active than a sparse step is good for."""


def count_positive(encoder: Encoder) -> int:
    """How many pre-activations are positive."""
    bounds, count = encoder.bounds(0.0), 0
    for lo, block in encoder.latent_blocks():
        count += int((_entries(encoder, lo, block, bounds).hidden_pre > 0).sum())
    return count


def top(encoder: Encoder, n: int, guess: float = 0.0) -> Entries:
    """The n largest positive pre-activations of the whole batch, exactly.

    Args:
        encoder: Gives the pre-activations.
        n: How many; fewer are returned where fewer are positive.
        guess: Lower bound of the smallest winner, 0 if nothing is known. Only the time taken
            depends on it: with a guess that is too high the search starts over with a lower one.

    Returns:
        The entries; ties at the cut go to the earlier tokens, then to the smaller latents.
    """
    if guess > 0:
        for fraction in (1.0, *LOWER_GUESSES):
            winners = _search(encoder, n, fraction * guess)
            # otherwise winners may lie below the guess
            if len(winners) == n and not (winners.hidden_pre < fraction * guess).any():
                return winners
            logger.debug(
                "Only %d of %d entries reach the guess %g.", len(winners), n, fraction * guess
            )
            if not len(winners):  # far too high: a fraction of it is hardly better
                break
    return _search(encoder.exact(), n, 0.0)


def _search(encoder: Encoder, n: int, guess: float) -> Entries:
    """The n largest of the positive pre-activations that reach a guess, and of some that do not."""
    d_sae, cut = encoder.shape[1], guess
    bounds = encoder.bounds(cut)
    parts, found = [Entries.none(encoder)], 0
    for lo, block in encoder.latent_blocks():
        part = _entries(encoder, lo, block, bounds)
        parts.append(part)
        found += len(part)
        if found > 4 * n:
            parts = [largest(Entries.joined(parts), n, d_sae)]
            found = len(parts[0])
            if found == n > 0:
                cut = max(cut, parts[0].hidden_pre.min().item())
                bounds = encoder.bounds(cut)
    return largest(Entries.joined(parts), n, d_sae)


def token_top_k(encoder: Encoder, k: int) -> Entries:
    """The k largest pre-activations of each token, as far as they are positive.

    Args:
        encoder: Gives the pre-activations.
        k: Active latents per token.

    Returns:
        The entries; which of several equal ones is taken is not defined.
    """
    parts = [Entries.none(encoder)]
    for first, hidden_pre in encoder.token_blocks():
        best = hidden_pre.topk(k, dim=-1, sorted=False)
        row, place = (~(best.values <= 0)).nonzero(as_tuple=True)  # NaN stays
        parts.append(Entries(best.indices[row, place], first + row, best.values[row, place]))
    entries = Entries.joined(parts)  # ordered by token
    return entries[entries.latents.int().argsort(stable=True)]


def largest(entries: Entries, n: int, d_sae: int) -> Entries:
    """The n largest positive entries; ties go to earlier tokens, then to smaller latents."""
    if len(entries) <= n or n == 0:
        return entries[~(entries.hidden_pre <= 0) & (n > 0)]  # NaN stays
    rank = entries.hidden_pre.nan_to_num(nan=torch.inf, posinf=torch.inf)
    cut = rank.topk(n, sorted=False).values.min()
    keep = rank > cut
    ties = (rank == cut).nonzero().squeeze(1)
    places = n - int(keep.sum())
    if places < len(ties):
        order = entries.tokens[ties] * d_sae + entries.latents[ties]
        ties = ties[order.topk(places, largest=False, sorted=False).indices]
    keep[ties] = True
    return entries[keep & ~(entries.hidden_pre <= 0)]


def _entries(encoder: Encoder, lo: int, block: torch.Tensor, bounds: torch.Tensor) -> Entries:
    """The entries of a latent block that reach their bounds, with their pre-activations."""
    found = kernels.not_below(block, bounds[lo : lo + len(block)])
    latents = found // block.shape[1] + lo
    tokens = found % block.shape[1]
    hidden_pre = encoder.products(lo, block, found) + encoder.b_enc[latents]
    if encoder.norm is not None:
        hidden_pre = hidden_pre * encoder.norm[latents]
    return Entries(latents, tokens, hidden_pre)
