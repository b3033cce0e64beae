"""The numerical heart: pick the batch's active latents, decode them nested, differentiate.

Knows tensors, not SAELens. `dense` is the definition of the numbers, `sparse` computes the same
ones from the active latents alone. `Engine` takes the faster of the two.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from sae_lens_matryoshka.engine import screening, selection, sparse
from sae_lens_matryoshka.engine.bias import shifted_bias
from sae_lens_matryoshka.engine.crossover import crossover_of, sparse_pays
from sae_lens_matryoshka.engine.dense import (
    DenseCode,
    batch_top_k,
    nested_decode,
    token_top_k,
)
from sae_lens_matryoshka.engine.refinement import refined
from sae_lens_matryoshka.engine.selection import Encoder, Entries
from sae_lens_matryoshka.engine.sparse import SparseCode

__all__ = [
    "Code",
    "DenseCode",
    "Encoder",
    "Engine",
    "Path",
    "SparseCode",
    "batch_top_k",
    "nested_decode",
    "refined",
    "shifted_bias",
    "token_top_k",
    "using",
]

Code = DenseCode | SparseCode
Path = Literal["auto", "sparse", "dense"]

# First guess of a batch's cut, as a fraction of the previous batch's cut: high enough to leave few
# candidates, low enough that it is rarely too high, which costs another search.
GUESS = 0.95

_path: Path = "auto"


@contextmanager
def using(path: Path) -> Iterator[None]:
    """Take one path for all steps inside the `with`, whatever their shape; to compare them."""
    global _path
    before, _path = _path, path
    try:
        yield
    finally:
        _path = before


class Engine:
    """Encodes batches by the faster path.

    Remembers what the last batch showed. That decides how long the next one takes, and of its numbers
    no more than their rounding.
    """

    def __init__(self) -> None:
        self._cut = 0.0
        self._density = 0.0

    @property
    def memory(self) -> tuple[float, float]:
        """What it remembers, for a run that is resumed to the last digit."""
        return self._cut, self._density

    @memory.setter
    def memory(self, remembered: tuple[float, float]) -> None:
        self._cut, self._density = remembered

    def batch_top_k(self, encoder: Encoder, k: float) -> SparseCode | None:
        """The sparse code of the batch's top k; None where the dense path is to be taken."""
        if not _takes_sparse(encoder, k / encoder.shape[1]):
            return None
        with torch.no_grad():
            entries, self._cut = _top(encoder, int(k * encoder.shape[0]), self._cut)
        return sparse.encode(encoder, entries)

    def token_top_k(self, encoder: Encoder, k: int) -> SparseCode | None:
        """The sparse code of each token's top k; None where the dense path is to be taken."""
        if not _takes_sparse(encoder, k / encoder.shape[1]):
            return None
        with torch.no_grad():
            entries = selection.token_top_k(encoder, k)
        return sparse.encode(encoder, entries)

    def above(self, encoder: Encoder, thresholds: torch.Tensor | float) -> SparseCode | None:
        """The sparse code of all that exceeds thresholds; None where the dense path is to be taken.

        Tell `observe` how many entries the dense path found, so that this is tried again.
        """
        if not _takes_sparse(encoder, self._density):
            return None
        n = encoder.shape[0] * encoder.shape[1]
        limit = None if _path == "sparse" else int(crossover_of(encoder).density * n)
        try:
            with torch.no_grad():
                entries = selection.above(encoder, thresholds, limit)
        except selection.TooManyEntriesError:
            return None
        self._density = len(entries) / n
        return sparse.encode(encoder, entries)

    def observe(self, density: float) -> None:
        """Remember which share of the entries exceeded the thresholds."""
        self._density = density


def _top(encoder: Encoder, n: int, last_cut: float) -> tuple[Entries, float]:
    """The n largest pre-activations, and their smallest; fast if last_cut is close to that."""
    guess = GUESS * last_cut
    if guess > 0 and screening.pays(encoder):
        entries = selection.top(screening.screened(encoder), n, guess)
    else:
        entries = selection.top(encoder, n, guess)
    # a cut says nothing where fewer than n were positive, or where one was NaN
    cut = entries.hidden_pre.min().item() if len(entries) == n > 0 else 0.0
    return entries, cut if math.isfinite(cut) else 0.0


def _takes_sparse(encoder: Encoder, density: float) -> bool:
    if _path != "auto":
        return _path == "sparse"
    return sparse_pays(encoder, density)
