"""
How much of a feature its latent misses because a kind of that feature fires as well.

A parent p is tracked by the latent l(p) of largest cosine among the latents that match p better than any
other feature. Of all samples where p is on, let A be those where no child of p is on, and B those where one
is. With the share of samples in which l(p) fires as its recall,

    absorption rate = mean over p of  recall(l(p) | A) - recall(l(p) | B)

0: the latent fires with or without children. 1: it fires only where no child does, so the children's latents
have absorbed the parent (proposed for SAELens in its issue 729).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from sae_lens.synthetic import Hierarchy, HierarchyNode, cosine_similarities

MIN_SAMPLES = 20
"""Samples with and without a child that a parent needs, or its recalls are too rough to count."""


@dataclass(frozen=True)
class AbsorptionRate:
    """
    The rate and how much it rests on.

    Args:
        rate: Mean over the parents; None without any.
        n_parents: Parents that are tracked and have enough samples of both kinds.
    """

    rate: float | None
    n_parents: int


def absorption_rate(
    decoder: torch.Tensor,
    features: torch.Tensor,
    children: Mapping[int, Sequence[int]],
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
) -> AbsorptionRate:
    """
    The rate of one SAE.

    Args:
        decoder: Of the SAE, (d_sae, d_in).
        features: True directions, (features, d_in).
        children: By parent; empty without a hierarchy.
        batches: Activations of the latents, (batch, d_sae), and of the features, (batch, features).
    """
    # absolute, as where SAELens picks the feature that a latent is judged by
    cosine, match = cosine_similarities(decoder, features).abs().max(dim=1)  # (d_sae,)
    parents = sorted(children)
    slot = {parent: i for i, parent in enumerate(parents)}
    latents = [i for i, feature in enumerate(match.tolist()) if feature in slot]
    if not latents:
        return AbsorptionRate(None, 0)
    slots = torch.tensor([slot[int(match[i])] for i in latents])  # (candidates,)
    counts = _Counts.zero(len(parents), len(latents))
    child_slots = torch.tensor([slot[p] for p in parents for _ in children[p]])
    child_features = torch.tensor([child for p in parents for child in children[p]])
    for acts, feature_acts in batches:
        on = feature_acts > 0
        n_children = torch.zeros(len(on), len(parents), dtype=torch.int32)
        n_children.index_add_(1, child_slots, on[:, child_features].int())
        counts.add(acts[:, latents] != 0, on[:, parents], n_children > 0, slots)
    return counts.rate(slots, cosine[latents])


def children_by_parent(hierarchy: Hierarchy | None) -> dict[int, list[int]]:
    """Direct children of every feature that has some; nodes without a feature are looked through."""
    found: dict[int, list[int]] = {}

    def visit(node: HierarchyNode) -> None:
        below = _features_below(node)
        if node.feature_index is not None and below:
            found[node.feature_index] = below
        for child in node.children:
            visit(child)

    for root in hierarchy.roots if hierarchy is not None else []:
        visit(root)
    return found


def _features_below(node: HierarchyNode) -> list[int]:
    below: list[int] = []
    for child in node.children:
        below += _features_below(child) if child.feature_index is None else [child.feature_index]
    return below


@dataclass
class _Counts:
    """Samples where a parent is on, (parents,), and where a latent then fires, (candidates,)."""

    alone: torch.Tensor
    with_child: torch.Tensor
    fires_alone: torch.Tensor
    fires_with_child: torch.Tensor
    fires: torch.Tensor

    @classmethod
    def zero(cls, n_parents: int, n_candidates: int) -> "_Counts":
        sizes = (n_parents, n_parents, n_candidates, n_candidates, n_candidates)
        return cls(*(torch.zeros(size, dtype=torch.int64) for size in sizes))

    def add(
        self, fires: torch.Tensor, on: torch.Tensor, child_on: torch.Tensor, slots: torch.Tensor
    ) -> None:
        alone, with_child = on & ~child_on, on & child_on  # (batch, parents)
        self.alone += alone.sum(dim=0)
        self.with_child += with_child.sum(dim=0)
        self.fires_alone += (fires & alone[:, slots]).sum(dim=0)
        self.fires_with_child += (fires & with_child[:, slots]).sum(dim=0)
        self.fires += fires.sum(dim=0)

    def rate(self, slots: torch.Tensor, cosine: torch.Tensor) -> AbsorptionRate:
        tracking: dict[int, int] = {}  # slot -> candidate; the largest cosine comes last
        for candidate in cosine.argsort().tolist():
            if self.fires[candidate] > 0:  # a dead latent tracks nothing, and would count as 0
                tracking[int(slots[candidate])] = candidate
        differences = [
            (self.fires_alone[i] / self.alone[p] - self.fires_with_child[i] / self.with_child[p])
            for p, i in tracking.items()
            if min(self.alone[p], self.with_child[p]) >= MIN_SAMPLES
        ]
        if not differences:
            return AbsorptionRate(None, 0)
        return AbsorptionRate(torch.stack(differences).mean().item(), len(differences))
