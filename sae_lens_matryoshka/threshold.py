"""The fixed threshold that replaces top-k selection at inference: exact, measured on activations.

In training a top-k picks the active latents; a saved SAE needs a threshold that fires as often
(paper, section 3). A running average of the batches' thresholds lags behind the weights; counting
on activations with the final weights does not.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import torch

# Enough tokens that the sampling error of the mean L0 stays well below 2 %.
N_CALIBRATION_TOKENS = 32_768

# Largest (tokens, d_sae) block that is encoded at once: 64 MiB in float32.
MAX_BLOCK_ELEMENTS = 2**24


class RecentActivations:
    """The last activations that an SAE was trained on, kept to calibrate its threshold at save."""

    def __init__(self) -> None:
        self._batches: deque[torch.Tensor] = deque()

    def __len__(self) -> int:
        """Number of tokens kept."""
        return sum(len(batch) for batch in self._batches)

    def add(self, batch: torch.Tensor) -> None:
        """Keep a copy of a batch, (batch, d_in); drop the oldest batches beyond what is needed."""
        # a copy: the store serves views, which would keep its whole buffer alive
        self._batches.append(batch.detach().clone())
        while len(self) - len(self._batches[0]) >= N_CALIBRATION_TOKENS:
            self._batches.popleft()

    def transform(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Apply a change of the activations' space to everything kept."""
        self._batches = deque(change(batch) for batch in self._batches)

    def blocks(self, d_sae: int) -> Iterator[torch.Tensor]:
        """Blocks of activations small enough to encode into d_sae latents."""
        for batch in self._batches:
            yield from row_blocks(batch, d_sae)


def row_blocks(x: torch.Tensor, d_sae: int) -> Iterator[torch.Tensor]:
    """Split rows into blocks whose (tokens, d_sae) encoding stays within MAX_BLOCK_ELEMENTS."""
    yield from x.split(max(1, MAX_BLOCK_ELEMENTS // d_sae))


def cut_for_count(blocks: Iterable[torch.Tensor], count: int) -> float:
    """The value that exactly `count` entries of the blocks exceed.

    Args:
        blocks: Tensors of any shape; only the largest count + 1 entries are kept at any time.
        count: How many entries shall be above the cut, at least 0.

    Returns:
        The middle between the count-th and the next largest entry (or that next entry, where no
        number lies between them); 0 when there are not more than `count` positive entries. Ties at
        the cut leave fewer above it.
    """
    largest: torch.Tensor | None = None
    for block in blocks:
        candidates = block.flatten()
        if largest is None:
            largest = candidates.new_zeros(count + 1)  # nothing at or below 0 ever fires
        candidates = candidates[candidates > largest[-1]]
        merged = torch.cat([largest, candidates])
        largest = merged.topk(count + 1, sorted=True).values
    if largest is None:
        return 0.0
    below = largest[-1]
    if count == 0:
        return below.item()
    middle = (largest[-2] + below) / 2
    return (middle if middle < largest[-2] else below).item()


class UnreachableL0Error(ValueError):
    """No scale of the thresholds lets as many latents fire as wanted."""

    def __init__(self, target_l0: float, lowest: float, highest: float):
        super().__init__(
            f"target_l0={target_l0:.4g} cannot be reached on these activations: thresholds reach "
            f"from {lowest:.4g} to {highest:.4g} active latents per token. Choose a target between "
            "them."
        )


def thresholds_for_l0(
    hidden_pre_blocks: Iterable[torch.Tensor],
    n_tokens: int,
    thresholds: torch.Tensor,
    target_l0: float,
) -> torch.Tensor:
    """Thresholds, scaled by one common factor, that exactly target_l0 latents per token exceed.

    Args:
        hidden_pre_blocks: Pre-activations, (tokens, d_sae) each.
        n_tokens: Number of tokens in all blocks.
        thresholds: Thresholds to scale, (d_sae,), none negative; if all are zero, one uniform
            threshold takes their place.
        target_l0: Active latents per token; times n_tokens it is rounded to a whole count.

    Returns:
        (d_sae,)

    Raises:
        UnreachableL0Error: Too few pre-activations are positive, or latents without a threshold
            alone fire more often than wanted.
    """
    unit = thresholds if thresholds.any() else torch.ones_like(thresholds)
    positive = always_on = 0

    def scores() -> Iterator[torch.Tensor]:
        # a latent fires where its pre-activation, in units of its threshold, exceeds the factor
        nonlocal positive, always_on
        for hidden_pre in hidden_pre_blocks:
            score = (hidden_pre.relu() / unit).nan_to_num(nan=0.0, posinf=torch.inf)
            positive += int((score > 0).sum())
            always_on += int(score.isinf().sum())
            yield score

    count = round(target_l0 * n_tokens)
    factor = cut_for_count(scores(), max(count, 0))
    if count < 1 or not always_on <= count <= positive:
        raise UnreachableL0Error(target_l0, always_on / n_tokens, positive / n_tokens)
    return unit * factor
