"""Nearly orthogonal features against SAELens's own, which goes through all pairs."""

from dataclasses import replace

import pytest
import torch
from sae_lens.synthetic import OrthogonalizationConfig, SyntheticModel
from synthetic_helpers import TINY

from research.ground_truth.orthogonal_features import feature_dictionary


@pytest.mark.parametrize(
    "orthogonalization", [OrthogonalizationConfig(num_steps=100, lr=3e-4), None]
)
def test_features_are_saelenss(orthogonalization: OrthogonalizationConfig | None):
    cfg = replace(TINY, num_features=300, hierarchy=None, orthogonalization=orthogonalization)
    reference, found = SyntheticModel(cfg).feature_dict, feature_dictionary(cfg)
    torch.testing.assert_close(found.feature_vectors, reference.feature_vectors, atol=1e-5, rtol=0)
    assert torch.equal(found.bias, reference.bias)


def test_they_are_more_orthogonal_than_they_start():
    cfg = replace(TINY, num_features=24, hierarchy=None)
    cosines = []
    for orthogonalization in (None, OrthogonalizationConfig(num_steps=100, lr=1e-2)):
        rows = feature_dictionary(replace(cfg, orthogonalization=orthogonalization)).feature_vectors
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(24))
        cosines.append((rows @ rows.T - torch.eye(24)).square().mean().item())
    assert cosines[1] < 0.6 * cosines[0]
