"""What is logged of every level while training."""

from collections.abc import Callable, Sequence

import torch
from sae_lens.saes.sae import TrainStepInput

from sae_lens_matryoshka.engine.compiling import not_compiled
from sae_lens_matryoshka.saes import objective

Metrics = dict[str, torch.Tensor | float | int | Callable[[], torch.Tensor | float | int]]


@not_compiled
@torch.no_grad()
def level_metrics(
    step_input: TrainStepInput,
    widths: Sequence[int],
    recons: torch.Tensor,
    firing_counts: torch.Tensor,
    order: torch.Tensor | None,
) -> Metrics:
    """
    fvu, l0, active and dead of each level.

    Args:
        step_input: The batch, (batch, d_in), and the trainer's mask of dead latents.
        widths: Of the levels.
        recons: Their reconstructions, (levels, batch, d_in).
        firing_counts: On how many tokens each latent is active, (d_sae,).
        order: The latent at each place that levels count, (d_sae,); None: as they are.
    """
    n_tokens, dead = len(step_input.sae_in), step_input.dead_neuron_mask
    fired = objective.placed(firing_counts, order)
    fvu = objective.fraction_of_variance_unexplained(step_input.sae_in, recons)
    metrics: Metrics = {}
    for level, width in enumerate(widths):
        name = f"level_{level}_width_{width}"
        metrics[f"{name}/fvu"] = fvu[level]
        metrics[f"{name}/l0"] = fired[:width].sum() / n_tokens
        metrics[f"{name}/active"] = (fired[:width] > 0).float().mean()
        if dead is not None:
            metrics[f"{name}/dead"] = objective.placed(dead, order)[:width].sum()
    return metrics
