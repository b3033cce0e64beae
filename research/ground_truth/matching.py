"""How well an SAE's latents are the true features: cosines, matched one to one."""

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment

ABSORBED_BELOW = 0.85
"""Matched cosine under which a latent is not its feature: something is missing or mixed in."""


@dataclass(frozen=True)
class Matching:
    """
    Latents and features in the best one-to-one matching.

    Args:
        cosines: Of every latent, in the order of its feature, with every feature; (features, features).
    """

    cosines: torch.Tensor

    @property
    def matched(self) -> torch.Tensor:
        """Of each feature with its latent, (features,)."""
        return self.cosines.diagonal()

    @property
    def n_absorbed(self) -> int:
        """Latents whose matched cosine is under .85."""
        return int((self.matched < ABSORBED_BELOW).sum())

    @property
    def largest_elsewhere(self) -> float:
        """The largest absolute cosine of a latent with a feature that is not its own."""
        return (self.cosines - torch.diag(self.matched)).abs().max().item()


def match(latents: torch.Tensor, features: torch.Tensor) -> Matching:
    """
    Match decoder rows with true features, so that the sum of cosines is largest.

    Args:
        latents: (d_sae, d_in); at least as many as features.
        features: (features, d_in)
    """
    rows = torch.nn.functional.normalize(latents, dim=-1)
    columns = torch.nn.functional.normalize(features, dim=-1)
    cosines = rows @ columns.T  # (d_sae, features)
    latent, feature = linear_sum_assignment(cosines.numpy(), maximize=True)
    order = torch.from_numpy(latent)[torch.from_numpy(feature).argsort()]
    return Matching(cosines[order])
