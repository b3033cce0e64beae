"""Keep latents sorted while they train, so that prefixes hold the ones that carry most."""

from typing import Any

import torch
from sae_lens.saes.sae import TrainingSAE

# Parameters by the dimension that holds the latents.
_LATENT_DIM = {"W_enc": 1, "b_enc": 0, "threshold": 0, "W_dec": 0}


class EnergyOrder:
    """
    Latents in the order of a running mean of (activation * decoder norm)^2 (the authors' toy code).

    Args:
        d_sae: Latents.
        decay: Share of the old mean per step.
    """

    def __init__(self, d_sae: int, decay: float = 0.95):
        self.energy = torch.zeros(d_sae)
        self.decay = decay

    @torch.no_grad()
    def step(
        self, sae: TrainingSAE[Any], optimizer: torch.optim.Optimizer, acts: torch.Tensor
    ) -> None:
        """
        Take in a batch and sort: parameters and the optimizer's moments together.

        Args:
            sae: The SAE in training, without rescale_acts_by_decoder_norm.
            optimizer: Its optimizer, after its step.
            acts: Activations of the batch, (batch, d_sae).
        """
        energy = (acts * sae.W_dec.norm(dim=-1)).pow(2).mean(dim=0)  # (d_sae,)
        self.energy = self.decay * self.energy + (1 - self.decay) * energy
        order = self.energy.argsort(descending=True, stable=True)
        if not torch.equal(order, torch.arange(len(order))):
            self.energy = self.energy[order]
            permute_latents(sae, optimizer, order)


@torch.no_grad()
def permute_latents(
    sae: TrainingSAE[Any], optimizer: torch.optim.Optimizer, order: torch.Tensor
) -> None:
    """
    Put latents into another order, with what the optimizer remembers of each.

    Args:
        sae: The SAE in training.
        optimizer: Its optimizer.
        order: The present index of each latent to be, (d_sae,).
    """
    for name, parameter in sae.named_parameters():
        if name not in _LATENT_DIM:
            continue
        dim = _LATENT_DIM[name]
        moments = [v for v in optimizer.state[parameter].values() if v.shape == parameter.shape]
        for tensor in (parameter.data, *moments):
            tensor.copy_(tensor.index_select(dim, order))
