"""The tensors that hold a row per latent."""

from collections.abc import Iterator

import torch

# Parameters of SAELens's architectures and ours, by the dimension that holds the latents.
LATENT_DIM = {"W_enc": 1, "b_enc": 0, "start_threshold": 0, "threshold": 0, "W_dec": 0}


def with_moments(
    sae: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[int, torch.Tensor]]:
    """
    An SAE's per-latent parameters and what the optimizer remembers of them.

    Args:
        sae: The SAE in training.
        optimizer: Its optimizer.

    Returns:
        Pairs of the dimension that holds the latents and the tensor itself, to be changed in place.
    """
    for name, parameter in sae.named_parameters():
        if name in LATENT_DIM:
            yield LATENT_DIM[name], parameter.data
            yield from ((LATENT_DIM[name], moment) for moment in moments(optimizer, parameter))


def moments(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> list[torch.Tensor]:
    """What the optimizer remembers of each element of a parameter; nothing before its first step."""
    state = optimizer.state.get(parameter, {}).values()
    return [v for v in state if isinstance(v, torch.Tensor) and v.shape == parameter.shape]
