"""Which latents the prefixes hold while training, and the sort that makes them plain prefixes again.

While training, latents stay where they are and only their places are known, so that weights, the
optimizer's moments, the trainer's counters and checkpoints share one order. The last step sorts all of
them; an SAE that is saved before is sorted in what is saved.
"""

from typing import Any

import torch
from sae_lens import SAETrainer

from sae_lens_matryoshka import engine
from sae_lens_matryoshka.saes.config import LatentOrder
from sae_lens_matryoshka.saes.latent_parameters import LATENT_DIM, with_moments

# Share of the running mean kept per step: of the authors' toy code, and of what made frequencies useful
# on SynthSAEBench.
DECAY: dict[LatentOrder, float] = {"energy": 0.95, "frequency": 0.99}


@torch.no_grad()
def update_scores(
    scores: torch.Tensor,
    order: LatentOrder,
    code: engine.Code,
    batch: int,
    norms: torch.Tensor | None,
) -> None:
    """Take in a batch.

    Args:
        scores: Running means by which latents are ordered, (d_sae,); changed in place.
        order: What they are means of: "frequency" or "energy".
        code: The batch's activations.
        batch: Tokens in it.
        norms: Decoder norms where activations do not carry them, (d_sae,); None: they do.
    """
    if order == "frequency":
        new = code.firing_counts / batch
    else:
        new = code.square_sums() / batch
        if norms is not None:
            new = new * norms.square()
    scores.lerp_(new.to(scores.dtype), 1 - DECAY[order])


def order_of(scores: torch.Tensor) -> torch.Tensor:
    """The latent at each place, (d_sae,): largest score first, then the smaller index."""
    return scores.argsort(descending=True, stable=True)


def sort_weights(weights: dict[str, torch.Tensor], order: torch.Tensor) -> None:
    """Put the latents of saved weights, given by name, into an order."""
    for name, dim in LATENT_DIM.items():
        if name in weights:
            weights[name] = weights[name].index_select(dim, order)


@torch.no_grad()
def sort_latents(
    sae: torch.nn.Module,
    scores: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    trainer: SAETrainer[Any, Any],
) -> None:
    """
    Sort all that is known of each latent.

    Args:
        sae: The SAE in training.
        scores: What latents are ordered by, (d_sae,); moves along.
        optimizer: Its optimizer, whose moments move along.
        trainer: Its trainer, whose counters move along.
    """
    order = order_of(scores)
    counters = (trainer.n_forward_passes_since_fired, trainer.act_freq_scores)
    for dim, tensor in [*with_moments(sae, optimizer), *((0, t) for t in (scores, *counters))]:
        tensor.copy_(tensor.index_select(dim, order.to(tensor.device)))
