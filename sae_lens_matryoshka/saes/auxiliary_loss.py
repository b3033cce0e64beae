"""The auxiliary loss: what dead latents are asked to fit, so that they come back (paper, section 3)."""

from collections.abc import Callable

import torch
from sae_lens.saes.sae import TrainStepInput
from torch.utils.checkpoint import checkpoint

from sae_lens_matryoshka import engine
from sae_lens_matryoshka.engine.compiling import not_compiled
from sae_lens_matryoshka.saes import objective
from sae_lens_matryoshka.saes.config import MatryoshkaTrainingSAEConfig

# The pre-activations, without norms, of some tokens, (tokens, latents).
OfTokens = Callable[[slice], torch.Tensor]
# The same for some latents, given by index.
HiddenPre = Callable[[torch.Tensor], OfTokens]

# Largest (tokens, dead latents) block that exists at a time: 256 MiB in float32.
MAX_ELEMENTS = 2**26


def encoded_again(encoder: engine.Encoder) -> HiddenPre:
    """Return the pre-activations that an encoder gives, for where not all of them exist."""

    def of_latents(latents: torch.Tensor) -> OfTokens:
        W_enc, b_enc = encoder.W_enc[:, latents], encoder.b_enc[latents]
        return lambda tokens: encoder.x[tokens] @ W_enc + b_enc

    return of_latents


def as_encoded(hidden_pre: torch.Tensor, norm: torch.Tensor | None) -> HiddenPre:
    """Return pre-activations that exist, (batch, d_sae), times the norms, (d_sae,)."""

    def of_latents(latents: torch.Tensor) -> OfTokens:
        of_them = hidden_pre[:, latents]
        unscaled = of_them if norm is None else of_them / norm[latents]
        return lambda tokens: unscaled[tokens]

    return of_latents


def auxiliary_loss(
    cfg: MatryoshkaTrainingSAEConfig,
    step_input: TrainStepInput,
    recons: torch.Tensor,
    hidden_pre: HiddenPre,
    norm: torch.Tensor | None,
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
        hidden_pre: Gives the pre-activations of the batch.
        norm: Decoder norms by which latents are ranked, (d_sae,), or None for 1.
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
            loss = loss + _fit(hidden_pre, norm, W_dec, group, residual, k_aux, scale, snapped)
    return loss if cfg.aux_loss_coefficient is None else cfg.aux_loss_coefficient * loss


@not_compiled
def _fit(
    hidden_pre: HiddenPre,
    norm: torch.Tensor | None,
    W_dec: torch.Tensor,
    dead: torch.Tensor,
    residual: torch.Tensor,
    k_aux: int,
    scale: torch.Tensor | None,
    snapped: bool,
) -> torch.Tensor:
    """The loss of dead latents, given by index, on a residual, (batch, d_in)."""
    of_tokens, W_dec = hidden_pre(dead), W_dec[dead]
    norm = None if norm is None else norm[dead]

    def loss_of(rows: slice) -> torch.Tensor:
        return objective.dead_latent_loss(
            of_tokens(rows),
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
