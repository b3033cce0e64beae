"""The fixed threshold that replaces top-k selection at inference: exact, measured on activations.

In training a top-k picks the active latents; a saved SAE needs a threshold that fires as often
(paper, section 3). A running average of the batches' thresholds lags behind the weights; counting
on activations with the final weights does not.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from sae_lens_matryoshka.engine import Encoder, selection

# Enough tokens that the sampling error of the mean L0 stays well below 2 %.
N_CALIBRATION_TOKENS = 32_768

# Share of the newest batch in the running threshold that is logged and kept in checkpoints.
NEWEST_SHARE = 0.1


COUNTED_THRESHOLD = "matryoshka_counted_threshold"
"""The key, in the metadata of a saved training SAE, of the threshold that it would have for inference."""


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

    def batches(self) -> Sequence[torch.Tensor]:
        """What is kept, (tokens, d_in) each, oldest first."""
        return tuple(self._batches)


def follow_cut(running: torch.Tensor, smallest: torch.Tensor) -> None:
    """Move a running threshold, a scalar, towards the smallest activation that a batch's top k kept."""
    cut = smallest.double()
    if cut < torch.inf:
        old = running if running > 0 else cut
        running.copy_(old + NEWEST_SHARE * (cut - old))


def cut_for_count(encoders: Iterable[Encoder], count: int) -> float:
    """The value that exactly `count` pre-activations exceed.

    Args:
        encoders: Give the pre-activations, batch by batch; only the largest are kept at any time.
        count: How many shall be above the cut, at least 0.

    Returns:
        The middle between the count-th and the next largest (or that next one, where no number lies
        between them); 0 when there are not more than `count` positive ones. Ties at the cut leave
        fewer above it.
    """
    largest = _largest(encoders, count + 1)
    if len(largest) <= count:
        return 0.0
    below = largest[-1]
    if count == 0:
        return below.item()
    middle = (largest[-2] + below) / 2
    return (middle if middle < largest[-2] else below).item()


def _largest(encoders: Iterable[Encoder], n: int) -> torch.Tensor:
    """The n largest positive pre-activations, or all if there are fewer, in descending order."""
    largest = torch.empty(0)
    for encoder in encoders:
        if len(largest) < n:
            found = selection.top(encoder, n).hidden_pre
        else:
            found = selection.above(encoder, largest[-1].item()).hidden_pre
        merged = torch.cat([largest.to(found), found])
        largest = merged.topk(min(n, len(merged)), sorted=True).values
    return largest


class UnreachableL0Error(ValueError):
    """No scale of the thresholds lets as many latents fire as wanted."""

    def __init__(self, target_l0: float, lowest: float, highest: float):
        super().__init__(
            f"target_l0={target_l0:.4g} cannot be reached on these activations: thresholds reach "
            f"from {lowest:.4g} to {highest:.4g} active latents per token. Choose a target between "
            "them."
        )


def thresholds_for_l0(
    encoders: Callable[[], Iterable[Encoder]], thresholds: torch.Tensor, target_l0: float
) -> torch.Tensor:
    """Thresholds, scaled by one common factor, that exactly target_l0 latents per token exceed.

    Args:
        encoders: Called for each pass over the pre-activations, which it gives batch by batch.
        thresholds: Thresholds to scale, (d_sae,), none negative; if all are zero, one uniform
            threshold takes their place.
        target_l0: Active latents per token; times the number of tokens it is rounded to a whole
            count.

    Returns:
        (d_sae,)

    Raises:
        UnreachableL0Error: Too few pre-activations are positive, or latents without a threshold
            alone fire more often than wanted.
    """
    unit = thresholds if thresholds.any() else torch.ones_like(thresholds)
    scaled, unscaled = unit > 0, unit == 0

    def scores() -> Iterator[Encoder]:
        # in units of its threshold, a latent fires where its pre-activation exceeds the factor
        return (encoder.of(scaled, per=unit[scaled]) for encoder in encoders())

    n_tokens = always_on = 0
    for encoder in encoders():
        n_tokens += encoder.shape[0]
        always_on += selection.count_positive(encoder.of(unscaled))
    count = round(target_l0 * n_tokens)
    factor = cut_for_count(scores(), max(count - always_on, 0))
    if count < 1 or count < always_on or factor == 0:
        positive = always_on + sum(map(selection.count_positive, scores()))
        if count < 1 or not always_on <= count <= positive:
            raise UnreachableL0Error(target_l0, always_on / n_tokens, positive / n_tokens)
    return unit * factor
