"""The law of the toy tree, by hand."""

import pytest
import torch

from research.ground_truth.toy_tree import ToyTree


@pytest.fixture(scope="module")
def fires() -> torch.Tensor:
    return ToyTree(0).draw(400_000)


def test_how_often_each_fires(fires: torch.Tensor):
    parents, children, others = fires.mean(dim=0).split([3, 9, 8])
    torch.testing.assert_close(parents, torch.full((3,), 0.15), rtol=0, atol=0.004)
    torch.testing.assert_close(children, torch.full((9,), 0.15 * 0.2), rtol=0, atol=0.002)
    torch.testing.assert_close(others, torch.full((8,), 0.05), rtol=0, atol=0.002)
    # the paper's analytic mean
    assert fires.sum(dim=1).mean().item() == pytest.approx(1.12, abs=0.01)


def test_children_fire_with_their_parent_only_and_one_at_a_time(fires: torch.Tensor):
    for parent in range(3):
        of_parent = fires[:, 3 + 3 * parent : 6 + 3 * parent].sum(dim=1)
        assert of_parent.max() == 1
        assert of_parent[fires[:, parent] == 0].sum() == 0
        assert of_parent[fires[:, parent] == 1].mean().item() == pytest.approx(0.6, abs=0.01)


def test_directions_and_scale():
    tree = ToyTree(1)
    norms = tree.features.norm(dim=-1)
    assert norms.std().item() == pytest.approx(0.05, abs=0.03)
    cosines = (tree.features / norms[:, None]) @ (tree.features / norms[:, None]).T
    torch.testing.assert_close(cosines, torch.eye(20), rtol=0, atol=1e-5)
    mean_norm = tree.activations(50_000).norm(dim=-1).mean().item()
    assert mean_norm == pytest.approx(20**0.5, rel=0.02)


def test_a_seed_is_a_tree():
    assert torch.equal(ToyTree(3).activations(7), ToyTree(3).activations(7))
    assert not torch.equal(ToyTree(3).features, ToyTree(4).features)
