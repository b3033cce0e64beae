"""Outcomes grouped as a reader compares them: one row per SAE level, one sample per metric."""

from collections.abc import Sequence
from dataclasses import dataclass

from sae_lens_matryoshka.bench.outcome import FIDELITY, Metric, Outcome
from sae_lens_matryoshka.markdown_table import level_label

L0 = Metric(FIDELITY, "l0", "L0", None, axis="active latents per token (L0)")
FVU = Metric(FIDELITY, "fvu", "FVU", "lower", axis="fraction of variance unexplained (FVU)")
DECODER_MAX_COSINE = Metric(
    FIDELITY,
    "decoder_max_cosine",
    "decoder max cosine",
    "lower",
    "mean over latents of the largest cosine with another latent's decoder row (OrtSAE's mean max cos, "
    "arXiv 2509.22033). It grows with the width even for random directions: compare equal widths",
    axis="decoder max cosine, mean over latents",
    note="The decoder max cosine grows with the width: compare equal widths.",
)


@dataclass(frozen=True)
class Row:
    """
    Everything known of one level of one SAE, measured here or published.

    Args:
        sae: The SAE's name.
        level: Its nested level, 0 the innermost.
        levels: Number of levels of that SAE; 1 for a flat one.
        width: Latents of the level.
        published: Whether its results are published ones.
        outcomes: Its outcomes, in the order given.
    """

    sae: str
    level: int
    levels: int
    width: int
    published: bool
    outcomes: tuple[Outcome, ...]

    @property
    def name(self) -> str:
        """The SAE's name, with its origin if that is a publication."""
        return f"{self.sae} (published)" if self.published else self.sae

    @property
    def level_name(self) -> str:
        """The level's index as in `MatryoshkaSAE.level`, with the word for the two ends."""
        return level_label(self.level, self.levels)

    @property
    def short_level_name(self) -> str:
        """The level's index; "-" for a flat SAE."""
        return "-" if self.levels == 1 else str(self.level)

    @property
    def is_outermost(self) -> bool:
        """Whether the level is the whole SAE."""
        return self.level == self.levels - 1

    def of(self, name: str) -> list[Outcome]:
        """The outcomes of one eval."""
        return [outcome for outcome in self.outcomes if outcome.eval == name]

    def sample(self, metric: Metric) -> dict[int | None, float]:
        """
        A metric's value per seed, NaN included.

        Raises:
            ValueError: Two outcomes give it for one seed.
        """
        values: dict[int | None, float] = {}
        for outcome in self.of(metric.eval):
            if metric.key not in outcome.metrics:
                continue
            if outcome.seed in values:
                raise ValueError(
                    f"{self.name}, level {self.level}, has {metric.eval} twice for seed "
                    f"{outcome.seed}. Give one outcome per SAE level, eval and seed."
                )
            values[outcome.seed] = float(outcome.metrics[metric.key])
        return values


def group(outcomes: Sequence[Outcome]) -> list[Row]:
    """
    Group outcomes by SAE and level.

    Returns:
        Rows by first appearance of the SAE, then by level.
    """
    order = {name: i for i, name in enumerate(dict.fromkeys(o.sae for o in outcomes))}
    groups: dict[tuple[int, int], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((order[outcome.sae], outcome.level), []).append(outcome)
    firsts = [(members[0], tuple(members)) for _, members in sorted(groups.items())]
    return [Row(o.sae, o.level, o.levels, o.width, o.published, members) for o, members in firsts]
