"""The auxiliary loss: what dead latents are asked to fit, so that they come back (paper, section 3)."""

import torch
from sae_lens.saes.sae import TrainStepInput
from torch.utils.checkpoint import checkpoint

from sae_lens_matryoshka import engine, objective
from sae_lens_matryoshka.config import MatryoshkaTrainingSAEConfig
from sae_lens_matryoshka.engine.compiling import not_compiled

# Largest (tokens, dead latents) block that exists at a time: 256 MiB in float32.
MAX_ELEMENTS = 2**26


def auxiliary_loss(
    cfg: MatryoshkaTrainingSAEConfig,
    step_input: TrainStepInput,
    recons: torch.Tensor,
    encoder: engine.Encoder,
    W_dec: torch.Tensor,
    order: torch.Tensor | None,
    snapped: bool,
) -> torch.Tensor:
    """
    How well dead latents reconstruct what is left over.

    Args:
        cfg: Says of what: aux_loss="global" or "per_level".
        step_input: The batch, (batch, d_in), and the trainer's mask of dead latents.
        recons: Every level's reconstruction, (levels, batch, d_in); for the global loss the last will do.
        encoder: Of the batch; the dead latents are encoded again.
        W_dec: (d_sae, d_in)
        order: The latent at each place that levels count, (d_sae,); None: as they are.
        snapped: Whether the error is the norm of what is left, not its square, as the levels' errors then are.

    Returns:
        Scalar, 0 while no latent is dead.
    """
    dead, loss = step_input.dead_neuron_mask, recons.new_tensor(0.0)
    if dead is None or not dead.any():
        return loss
    if cfg.aux_loss == "global":
        levels = [(0, cfg.d_sae, recons[-1])]
    else:
        levels = zip([0, *cfg.widths[:-1]], cfg.widths, recons, strict=True)
    if order is None:
        order = torch.arange(cfg.d_sae, device=dead.device)
    scale = objective.row_scale(step_input.sae_in, cfg.normalize_activations)
    k_aux = cfg.k_aux or max(1, cfg.d_in // 2)
    for lo, hi, reconstruction in levels:
        group = order[lo:hi][dead[order[lo:hi]]]  # (dead,)
        if len(group):
            residual = step_input.sae_in - reconstruction
            loss = loss + _fit(encoder, W_dec, group, residual, k_aux, scale, snapped)
    return loss if cfg.aux_loss_coefficient is None else cfg.aux_loss_coefficient * loss


@not_compiled
def _fit(
    encoder: engine.Encoder,
    W_dec: torch.Tensor,
    dead: torch.Tensor,
    residual: torch.Tensor,
    k_aux: int,
    scale: torch.Tensor | None,
    snapped: bool,
) -> torch.Tensor:
    """The loss of dead latents, given by index, on a residual, (batch, d_in)."""
    W_enc, b_enc, W_dec = encoder.W_enc[:, dead], encoder.b_enc[dead], W_dec[dead]
    norm = None if encoder.norm is None else encoder.norm[dead]

    def loss_of(rows: slice) -> torch.Tensor:
        return objective.dead_latent_loss(
            encoder.x[rows] @ W_enc + b_enc,
            W_dec,
            residual[rows],
            k_aux,
            norm,
            None if scale is None else scale[rows],
            snapped,
        )

    # where most of a wide dictionary is dead, (batch, dead) would not fit into memory
    size = max(1, MAX_ELEMENTS // len(dead))
    if size >= len(residual):
        return loss_of(slice(None))
    losses = [
        checkpoint(loss_of, slice(lo, lo + size), use_reentrant=False)
        * (min(size, len(residual) - lo) / len(residual))
        for lo in range(0, len(residual), size)
    ]
    return torch.stack(losses).sum()
