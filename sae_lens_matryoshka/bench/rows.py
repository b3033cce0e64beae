"""Outcomes grouped as a reader compares them: one row per SAE level, one sample per metric."""

from collections.abc import Sequence
from dataclasses import dataclass

from sae_lens_matryoshka.bench.outcome import FIDELITY, Metric, Outcome

L0 = Metric(FIDELITY, "l0", "L0", None)
FVU = Metric(FIDELITY, "fvu", "FVU", "lower")


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
        if self.levels == 1:
            return "-"
        ends = {0: "0 (innermost)", self.levels - 1: f"{self.level} (outermost)"}
        return ends.get(self.level, str(self.level))

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
    Group outcomes by SAE level and origin.

    L0 and FVU belong to the SAE, not to an eval: a published row without them gets those that
    were measured here, and measured ones with only published evals beside them make no row.

    Returns:
        Rows by first appearance of the SAE, then by level, measured before published.
    """
    order = {name: i for i, name in enumerate(dict.fromkeys(o.sae for o in outcomes))}
    groups: dict[tuple[int, int, bool], list[Outcome]] = {}
    for outcome in outcomes:
        key = (order[outcome.sae], outcome.level, outcome.published)
        groups.setdefault(key, []).append(outcome)
    rows: list[Row] = []
    for (sae, level, published), members in sorted(groups.items(), key=lambda item: item[0]):
        twin = groups.get((sae, level, not published), [])
        if not published and twin and _only_fidelity(members) and not _has_fidelity(twin):
            continue
        if published and not _has_fidelity(members):
            members = members + [o for o in twin if o.eval == FIDELITY]
        first = members[0]
        rows.append(Row(first.sae, level, first.levels, first.width, published, tuple(members)))
    return rows


def _only_fidelity(outcomes: Sequence[Outcome]) -> bool:
    return all(outcome.eval == FIDELITY for outcome in outcomes)


def _has_fidelity(outcomes: Sequence[Outcome]) -> bool:
    return any(outcome.eval == FIDELITY and outcome.metrics for outcome in outcomes)
