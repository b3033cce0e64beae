"""SAELens's nearly orthogonal features, without the products of all pairs of them.

The squared products of all pairs of rows of E, those with themselves included, have the sum of the squared entries
of E^T E, which has a row per dimension instead of one per feature.
"""

import torch
from sae_lens.synthetic import FeatureDictionary, SyntheticModelConfig


def feature_dictionary(cfg: SyntheticModelConfig) -> FeatureDictionary:
    """
    The features of a model, as SyntheticModel would make them.

    Args:
        cfg: The model's configuration.

    Returns:
        The same unit vectors up to rounding.
    """
    wanted = cfg.orthogonalization

    def initializer(features: FeatureDictionary) -> None:
        if wanted is not None:
            start = features.feature_vectors.data
            features.feature_vectors.data = orthogonalized(start, wanted.num_steps, wanted.lr)

    return FeatureDictionary(
        cfg.num_features, cfg.hidden_dim, cfg.bias, initializer=initializer, seed=cfg.seed
    )


def orthogonalized(vectors: torch.Tensor, steps: int, lr: float) -> torch.Tensor:
    """
    Adam on the squared cosines of all pairs and, as strongly as all of a feature's pairs, on unit norms.

    Args:
        vectors: Unit rows, (features, dims).
        steps: Of Adam.
        lr: Its learning rate.

    Returns:
        Unit rows, (features, dims).
    """
    rows = vectors.clone().requires_grad_()
    optimizer = torch.optim.Adam([rows], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        squares = rows.square().sum(dim=1)  # (features,)
        off_diagonal = (rows.T @ rows).square().sum() - squares.square().sum()
        loss = off_diagonal + len(rows) * (squares - 1).square().sum()
        loss.backward()
        optimizer.step()
    return torch.nn.functional.normalize(rows.detach(), dim=1)
