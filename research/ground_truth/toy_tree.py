"""The paper's toy tree: 20 features, some of which are kinds of others (section 4.1, appendix C.1)."""

import torch

D_IN = 20
N_PARENTS, N_CHILDREN, N_INDEPENDENT = 3, 3, 8
N_FEATURES = N_PARENTS * (1 + N_CHILDREN) + N_INDEPENDENT
P_PARENT, P_CHILD, P_INDEPENDENT = 0.15, 0.2, 0.05
NORM_SPREAD = 0.05
TOKENS_FOR_SCALE = 20_000


class ToyTree:
    """
    Binary features in a tree: a child fires only with its parent, and at most one child of each does.

    Features are in the order parents, children by parent, independent ones. Directions are orthonormal up to
    norms of 1 +- .05; activations are scaled to a mean norm of sqrt(d_in).

    Args:
        seed: Decides directions and data.
    """

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        directions, _ = torch.linalg.qr(torch.randn(D_IN, D_IN, generator=self.generator))
        norms = 1 + NORM_SPREAD * torch.randn(N_FEATURES, 1, generator=self.generator)
        self.features = directions * norms  # (features, d_in)
        drawn = self.draw(TOKENS_FOR_SCALE) @ self.features
        self.scale = D_IN**0.5 / drawn.norm(dim=-1).mean().item()

    def draw(self, n_tokens: int) -> torch.Tensor:
        """Which features fire, (tokens, features): 1 or 0."""
        is_on = torch.rand(n_tokens, N_PARENTS, generator=self.generator) < P_PARENT
        # children share the unit interval: at most one of them gets the draw
        which = torch.rand(n_tokens, N_PARENTS, 1, generator=self.generator) / P_CHILD
        child = torch.arange(N_CHILDREN)
        chosen = (which >= child) & (which < child + 1) & is_on[..., None]
        others = torch.rand(n_tokens, N_INDEPENDENT, generator=self.generator) < P_INDEPENDENT
        return torch.cat([is_on, chosen.flatten(1), others], dim=1).float()

    def activations(self, n_tokens: int) -> torch.Tensor:
        """What an SAE is trained on, (tokens, d_in)."""
        return self.draw(n_tokens) @ self.features * self.scale
