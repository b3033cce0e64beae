"""Latents matched with true features."""

from itertools import permutations

import pytest
import torch

from research.ground_truth.matching import match


def test_a_known_permutation():
    features = torch.eye(5)
    order = torch.tensor([3, 0, 4, 1, 2])
    matching = match(features[order] * 7, features)
    torch.testing.assert_close(matching.cosines, torch.eye(5))
    assert matching.n_absorbed == 0
    assert matching.largest_elsewhere == 0


def test_an_absorbing_latent():
    features = torch.eye(4)
    latents = torch.eye(4)
    latents[1] = torch.tensor([1.0, 1.0, 0, 0])  # a child that swallowed its parent
    latents[3] = torch.tensor([0, 0, -0.5, 1.0])
    matching = match(latents, features)
    assert matching.n_absorbed == 1
    assert matching.matched[1].item() == pytest.approx(0.5**0.5)
    assert matching.largest_elsewhere == pytest.approx(0.5**0.5)


def test_the_best_of_all_matchings():
    generator = torch.Generator().manual_seed(0)
    latents, features = torch.randn(2, 5, 6, generator=generator)
    cosines = torch.nn.functional.cosine_similarity(latents[:, None], features[None], dim=-1)
    best = max(sum(cosines[p[f], f].item() for f in range(5)) for p in permutations(range(5)))
    assert match(latents, features).matched.sum().item() == pytest.approx(best, abs=1e-5)


def test_more_latents_than_features():
    assert match(torch.randn(9, 6), torch.randn(4, 6)).cosines.shape == (4, 4)
