"""Samples of a synthetic model, drawn once and given out again and again."""

from collections.abc import Iterator

import torch
from sae_lens.synthetic import SyntheticModel


class StoredDraw:
    """
    Activations of the true features; only those that are on are kept.

    Args:
        model: Draws them, from torch's global generator.
        n_samples: How many.
        batch_size: At a time.
    """

    def __init__(self, model: SyntheticModel, n_samples: int, batch_size: int):
        self.n_samples = n_samples
        self.n_features = model.cfg.num_features
        counts, columns, values = [], [], []
        for start in range(0, n_samples, batch_size):
            acts = model.activation_generator.sample(min(batch_size, n_samples - start))
            on = acts != 0
            counts.append(on.sum(dim=1))
            columns.append(on.nonzero()[:, 1].int())
            values.append(acts[on])
        self._ends = torch.cat(counts).cumsum(dim=0)  # (samples,): where each one's entries end
        self._columns, self._values = torch.cat(columns), torch.cat(values)  # (entries,)

    def samples(self, start: int, stop: int) -> torch.Tensor:
        """Some of the samples, (samples, features)."""
        ends = self._ends[start:stop]
        first = int(self._ends[start - 1]) if start else 0
        entries = slice(first, int(ends[-1]))
        rows = torch.arange(len(ends)).repeat_interleave(
            torch.diff(ends, prepend=torch.tensor([first]))
        )
        dense = torch.zeros(len(ends), self.n_features, dtype=self._values.dtype)
        dense[rows, self._columns[entries]] = self._values[entries]
        return dense

    def batches(self, size: int) -> Iterator[torch.Tensor]:
        """All of them, (batch, features) at a time."""
        for start in range(0, self.n_samples, size):
            yield self.samples(start, min(start + size, self.n_samples))


class Replay:
    """What SAELens's evaluation draws from: the stored samples, each once, in order."""

    def __init__(self, draw: StoredDraw):
        self._draw = draw
        self._given = 0

    def sample(self, batch_size: int) -> torch.Tensor:
        """The next samples, (batch, features)."""
        start, self._given = self._given, self._given + batch_size
        return self._draw.samples(start, self._given)
