"""The absorption rate, by hand: feature 0 has the children 1 and 2, feature 3 stands alone."""

import pytest
import torch
from sae_lens.synthetic import Hierarchy, HierarchyNode

from research.ground_truth.absorption_rate import (
    MIN_SAMPLES,
    AbsorptionRate,
    absorption_rate,
    children_by_parent,
)

FEATURES = torch.eye(4)
CHILDREN = {0: [1, 2]}


def samples(alone: int = 30, with_child: int = 40) -> torch.Tensor:
    """Feature 0 alone, with one of its children in turn, feature 3 alone, nothing; (samples, 4)."""
    parts = [
        torch.tensor([2.0, 0, 0, 0]).expand(alone, 4),
        torch.tensor([[2.0, 1, 0, 0], [2.0, 0, 1, 0]]).repeat(with_child // 2, 1),
        torch.tensor([0, 0, 0, 1.0]).expand(25, 4),
        torch.zeros(25, 4),
    ]
    return torch.cat(parts)


def rate(
    latents: torch.Tensor, acts: torch.Tensor, decoder: torch.Tensor = FEATURES, size: int = 16
) -> AbsorptionRate:
    batches = zip(latents.split(size), acts.split(size), strict=True)
    return absorption_rate(decoder, FEATURES, CHILDREN, batches)


def test_a_perfect_sae():
    acts = samples()
    assert rate(acts, acts) == AbsorptionRate(0.0, 1)


@pytest.mark.parametrize(("silenced_by", "expected"), [([1, 2], 1.0), ([1], 0.5), ([3], 0.0)])
def test_a_latent_that_is_silent_with_children(silenced_by: list[int], expected: float):
    acts = samples()
    latents = acts.clone()
    latents[(acts[:, silenced_by] > 0).any(dim=1), 0] = 0
    assert rate(latents, acts) == AbsorptionRate(expected, 1)


def test_a_latent_that_needs_a_child():
    acts = samples()
    latents = acts.clone()
    latents[(acts[:, 1:3] == 0).all(dim=1), 0] = 0
    assert rate(latents, acts) == AbsorptionRate(-1.0, 1)


def test_where_it_fires_without_its_parent_does_not_count():
    acts = samples()
    latents = acts.clone()
    latents[acts[:, 0] == 0, 0] = 1
    assert rate(latents, acts) == AbsorptionRate(0.0, 1)


def test_the_latent_of_largest_cosine_is_the_one_that_fires():
    acts = samples()
    has_child = (acts[:, 1:3] > 0).any(dim=1)
    absorbed = torch.where(has_child, 0.0, acts[:, 0])
    decoder = torch.tensor([[1, 0.3, 0, 0], [1, 0.1, 0, 0], [1.0, 0, 0, 0]])
    # the second is nearer than the first; the third never fires
    first = torch.stack([acts[:, 0], absorbed, torch.zeros(len(acts))], dim=1)
    assert rate(first, acts, decoder) == AbsorptionRate(1.0, 1)
    second = torch.stack([absorbed, acts[:, 0], torch.zeros(len(acts))], dim=1)
    assert rate(second, acts, decoder) == AbsorptionRate(0.0, 1)


def test_the_mean_over_parents():
    children = {0: [1], 2: [3]}
    acts = torch.cat([samples_of(0, 1), samples_of(2, 3)])
    latents = acts.clone()
    latents[acts[:, 3] > 0, 2] = 0  # the second parent is absorbed whole
    found = absorption_rate(FEATURES, FEATURES, children, [(latents, acts)])
    assert found == AbsorptionRate(0.5, 2)


def samples_of(parent: int, child: int) -> torch.Tensor:
    acts = torch.zeros(60, 4)
    acts[:, parent] = 1
    acts[:30, child] = 1
    return acts


@pytest.mark.parametrize(("alone", "with_child"), [(MIN_SAMPLES - 1, 40), (30, MIN_SAMPLES - 2)])
def test_too_few_samples(alone: int, with_child: int):
    acts = samples(alone, with_child)
    assert rate(acts, acts) == AbsorptionRate(None, 0)


def test_a_parent_without_a_latent():
    acts = samples()
    assert rate(acts[:, 1:], acts, decoder=FEATURES[1:]) == AbsorptionRate(None, 0)


def test_without_a_hierarchy():
    assert children_by_parent(None) == {}
    assert absorption_rate(FEATURES, FEATURES, {}, []) == AbsorptionRate(None, 0)


def test_only_direct_children_and_nodes_without_a_feature():
    leaves = [HierarchyNode(3), HierarchyNode(4)]
    inner = HierarchyNode(1, children=[HierarchyNode(children=leaves), HierarchyNode(5)])
    hierarchy = Hierarchy(roots=[HierarchyNode(0, children=[inner])], modifier=None)
    assert children_by_parent(hierarchy) == {0: [1], 1: [3, 4, 5]}
