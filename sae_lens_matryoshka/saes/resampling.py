"""Start dead latents anew, pointing at what badly reconstructed tokens lack."""

from dataclasses import dataclass

import torch

from sae_lens_matryoshka.saes.latent_parameters import LATENT_DIM, moments


@dataclass(frozen=True)
class Resampling:
    """
    Latents to be started anew.

    Args:
        latents: Their indices, (dead,).
        directions: Where they are to point, unit rows, (dead, d_in).
        alive: Mask of the latents that are not dead, (d_sae,).
        step: The training step that chose them.
    """

    latents: torch.Tensor
    directions: torch.Tensor
    alive: torch.Tensor
    step: int


@torch.no_grad()
def choose(dead_mask: torch.Tensor, residual: torch.Tensor, step: int) -> Resampling:
    """
    A new direction for each dead latent: the residual of a token, drawn in proportion to its squared error.

    Args:
        dead_mask: The dead latents, (d_sae,).
        residual: What the SAE leaves of each token, (batch, d_in).
        step: The training step. Decides the draw alone: no generator is shared with the thread that loads
            data.

    Returns:
        The latents, no more of them than tokens.
    """
    errors = residual.float().square().sum(dim=-1).cpu()  # (batch,)
    generator = torch.Generator().manual_seed(step)
    dead = dead_mask.nonzero().squeeze(1)
    n_bad = int((errors > 0).sum())
    if len(dead) > n_bad:  # any of them: the first ones may have had their chance before
        dead = dead[torch.randperm(len(dead), generator=generator)[:n_bad].to(dead.device)]
    tokens = dead
    if len(dead):
        tokens = torch.multinomial(errors, len(dead), generator=generator).to(residual.device)
    directions = torch.nn.functional.normalize(residual[tokens], dim=-1)
    return Resampling(dead, directions, ~dead_mask, step)


@torch.no_grad()
def apply(
    resampling: Resampling,
    sae: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    threshold: float | None,
) -> None:
    """
    Give the latents their directions, with the norms that living latents have on average.

    Args:
        resampling: Which latents, and where they are to point.
        sae: The SAE in training.
        optimizer: Its optimizer; the latents' moments are set to zero.
        threshold: The threshold of a latent that starts, for activation="jumprelu".
    """
    which, directions = resampling.latents, resampling.directions
    parameters = {name: p for name, p in sae.named_parameters() if name in LATENT_DIM}
    alive = resampling.alive if resampling.alive.any() else torch.ones_like(resampling.alive)
    W_enc, W_dec = parameters["W_enc"], parameters["W_dec"]
    W_enc[:, which] = (directions * W_enc[:, alive].norm(dim=0).mean()).T.to(W_enc.dtype)
    W_dec[which] = (directions * W_dec[alive].norm(dim=-1).mean()).to(W_dec.dtype)
    parameters["b_enc"][which] = 0.0
    if threshold is not None:
        parameters["threshold"][which] = threshold
    for name, parameter in parameters.items():
        for moment in moments(optimizer, parameter):
            moment.index_fill_(LATENT_DIM[name], which, 0.0)
