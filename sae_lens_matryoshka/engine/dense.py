"""The definition of the numbers, in plain torch: select the active latents, decode them nested."""

from collections.abc import Sequence

import torch


def batch_top_k(hidden_pre: torch.Tensor, k: float) -> torch.Tensor:
    """Keep the k * batch largest positive pre-activations of the whole batch, zero the others.

    Args:
        hidden_pre: Pre-activations, (..., d_sae).
        k: Active latents per token, on average; k * batch is rounded down.

    Returns:
        Activations, (..., d_sae).
    """
    acts = hidden_pre.relu().flatten()
    n_active = int(k * hidden_pre.shape[:-1].numel())
    top = acts.topk(n_active, sorted=False)
    return torch.zeros_like(acts).scatter(-1, top.indices, top.values).view_as(hidden_pre)


def token_top_k(hidden_pre: torch.Tensor, k: int) -> torch.Tensor:
    """Keep the k largest pre-activations of each token if they are positive, zero the others.

    Args:
        hidden_pre: Pre-activations, (..., d_sae).
        k: Active latents per token.

    Returns:
        Activations, (..., d_sae).
    """
    top = hidden_pre.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(hidden_pre).scatter(-1, top.indices, top.values.relu())


def nested_decode(
    acts: torch.Tensor,
    W_dec: torch.Tensor,
    b_dec: torch.Tensor,
    widths: Sequence[int],
) -> torch.Tensor:
    """Every level's reconstruction, in the work of one decode: each level adds its group of latents.

    Args:
        acts: Activations, (batch, d_sae).
        W_dec: Decoder, (d_sae, d_in).
        b_dec: Decoder bias, (d_in,).
        widths: Nested widths, increasing, at most d_sae.

    Returns:
        (levels, batch, d_in); level i reads the first widths[i] latents only.
    """
    edges = [0, *widths]
    reconstruction, levels = b_dec, []
    for lo, hi in zip(edges, widths):
        reconstruction = acts[..., lo:hi] @ W_dec[lo:hi] + reconstruction
        levels.append(reconstruction)
    return torch.stack(levels)
