"""Activations that are NaN or infinite: skipped and counted, up to a limit."""

import torch
from sae_lens import logger

# Share of the activations that may be skipped, unless the configuration says otherwise.
MAX_NONFINITE_FRACTION = 0.01

# The share counts from this many training batches on: one bad text must not end a short run.
_LEAST_BATCHES = 100


class FiniteRows:
    """
    Drops activations that are not finite, or too large for their squared norm to be.

    Args:
        max_fraction: Largest share of the activations that may be dropped; 0: none.
        batch_size: Tokens per training batch. One batch may always be dropped, unless max_fraction
            is below its default.
    """

    def __init__(self, max_fraction: float, batch_size: int):
        self.max_fraction = max_fraction
        self.n_least = _LEAST_BATCHES * batch_size
        self.n_seen = 0
        self.n_skipped = 0

    def keep(self, rows: torch.Tensor) -> torch.Tensor:
        """
        Return the finite ones of some activations, (tokens, d_in).

        Raises:
            ValueError: Too many are not finite; the counts stay as they were.
        """
        norm_dtype = torch.promote_types(rows.dtype, torch.float32)
        is_finite = torch.linalg.vector_norm(rows, dim=-1, dtype=norm_dtype).isfinite()  # (tokens,)
        n_seen = self.n_seen + len(rows)
        n_skipped = self.n_skipped + len(rows) - int(is_finite.sum())
        if n_skipped > self.max_fraction * max(n_seen, self.n_least):
            raise ValueError(
                f"{n_skipped} of {n_seen} activations are NaN or infinite, more than "
                f"max_nonfinite_fraction={self.max_fraction:g} allows. Check the model's dtype "
                "(float16 overflows) and the dataset, or raise max_nonfinite_fraction."
            )
        if n_skipped and not self.n_skipped:
            logger.warning(
                f"{n_skipped} of {len(rows)} activations of a batch of text are NaN or infinite. "
                "They are skipped, as later ones will be, and counted."
            )
        found_some = n_skipped > self.n_skipped
        self.n_seen, self.n_skipped = n_seen, n_skipped
        return rows[is_finite] if found_some else rows
