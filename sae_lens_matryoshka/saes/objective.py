"""What is asked of a nested dictionary: prefixes, level weights, losses. Pure functions on tensors.

Level i reconstructs from its prefix of the latents, x_i = f[:m_i] W_dec[:m_i] + b_dec; the loss is
sum_i w_i |x - x_i|^2 plus what the activation asks for (paper, section 3).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from typing_extensions import override


def level_weights(
    n_levels: int, weights: Sequence[float] | None = None, mu: float | None = None
) -> list[float]:
    """Factor of each level's squared error.

    Args:
        n_levels: Number of nested levels.
        weights: Given weights, one per level, or None.
        mu: Balanced weights mu^(n - i) for level i = 1..n (arXiv 2505.11756), or None.

    Returns:
        n_levels factors; all 1 when neither is given (the paper).
    """
    if weights is not None:
        return list(weights)
    if mu is not None:
        return [mu ** (n_levels - i) for i in range(1, n_levels + 1)]
    return [1.0] * n_levels


def annealed_k(
    step: int, k: float | None, k_start: float | None, n_steps: int | None
) -> float | None:
    """k at a training step: linear from k_start to k over n_steps, k afterwards or without a start."""
    if k is None or k_start is None or n_steps is None:
        return k
    if step >= n_steps:
        return k  # exactly
    return k_start + (k - k_start) * step / n_steps


def draw_prefixes(d_sae: int, n_prefixes: int, power: float, seed: int) -> list[int]:
    """Draw nested widths by the authors' law P(width <= w) = (w / d_sae)^power.

    Drawn without replacement; d_sae is always among them.

    Args:
        d_sae: Width of the dictionary.
        n_prefixes: How many widths, from 1 to d_sae.
        power: Exponent of the law; the authors' code has 0.5 (the paper calls it Pareto).
        seed: Decides the draw alone: no generator is shared with the thread that loads data.

    Returns:
        n_prefixes different widths, increasing, the last one d_sae.
    """
    if n_prefixes == 1:
        return [d_sae]
    cdf = (torch.arange(d_sae, dtype=torch.double) / d_sae) ** power  # widths 0..d_sae - 1
    generator = torch.Generator().manual_seed(seed)
    inner = torch.multinomial(cdf.diff(), n_prefixes - 1, generator=generator)  # index 0: width 1
    return [*sorted((inner + 1).tolist()), d_sae]


def placed(per_latent: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """A value per latent, (d_sae,), by the places that prefixes count; order None: as they are."""
    return per_latent if order is None else per_latent[order]


def nested_squared_error(x: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
    """Squared error per level, summed over dimensions and averaged over the batch.

    Args:
        x: Activations, (batch, d_in).
        reconstructions: Every level's reconstruction, (levels, batch, d_in).

    Returns:
        (levels,)
    """
    return token_squared_errors(x, reconstructions).mean(dim=-1)


def nested_error(
    errors: torch.Tensor, tilt: float | None = None, snapped: bool = False
) -> torch.Tensor:
    """The error that a level is asked to make small: the squared one, unless options change it.

    Args:
        errors: As token_squared_errors gives them, (levels, batch).
        tilt: Weigh each token by softmax(tilt * its error / mean error), or None for equal weights:
            the gradient of the tilted risk log(mean(exp(tilt * error))) / tilt with errors in units
            of their mean (TERM, Li et al., arXiv 2007.01162).
        snapped: Whether the error is the norm of the residual instead of its square (the snap loss
            of the LessWrong post on feature hedging, Chanin et al. 2025).

    Returns:
        (levels,)
    """
    if snapped:
        errors = _root(errors)
    if tilt is None:
        return errors.mean(dim=-1)
    mean = errors.detach().mean(dim=-1, keepdim=True)
    relative = errors.detach() / mean.clamp(min=torch.finfo(errors.dtype).tiny)
    return (errors * (tilt * relative).softmax(dim=-1)).sum(dim=-1)


def _root(errors: torch.Tensor) -> torch.Tensor:
    return errors.clamp(min=torch.finfo(errors.dtype).tiny).sqrt()


def token_squared_errors(x: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
    """Squared error of every token at every level, summed over dimensions, (levels, batch)."""
    return _SquaredNorms.apply(reconstructions - x)


class _SquaredNorms(torch.autograd.Function):
    """diff.pow(2).sum(-1), with half the passes over memory."""

    @staticmethod
    @override
    def forward(ctx: Any, diff: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(diff)
        return torch.linalg.vector_norm(diff, dim=-1).square()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: torch.Tensor
    ) -> torch.Tensor:
        (diff,) = ctx.saved_tensors
        return diff * (2 * grads[0])[..., None]


def fraction_of_variance_unexplained(
    x: torch.Tensor, reconstructions: torch.Tensor
) -> torch.Tensor:
    """FVU per level: squared error over the variance of x around its batch mean.

    Args:
        x: Activations, (batch, d_in).
        reconstructions: Every level's reconstruction, (levels, batch, d_in).

    Returns:
        (levels,), 0 where the reconstruction is perfect, 1 where it is as good as the mean.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    variance = (x - x.mean(dim=0)).pow(2).sum(dim=-1).mean()
    return nested_squared_error(x, reconstructions) / variance


def nested_l1(
    latent_sums: torch.Tensor,
    widths: Sequence[int],
    weights: Sequence[float],
    detach_inner: bool = False,
) -> torch.Tensor:
    """L1 of every level's prefix, carrying the weights of the levels' errors (paper, appendix F).

    Args:
        latent_sums: Activations times decoder norms, none negative, summed over tokens, (d_sae,).
        widths: Nested widths, the last one d_sae.
        weights: Weight of each level.
        detach_inner: The error of a level between the innermost and the outermost one trains the latents
            alone that the level adds: only these carry its weight.

    Returns:
        Scalar: sum_i weights[i] * sum_{j < widths[i]} latent_sums[j].
    """
    edges = [0, *widths]
    # a latent counts in every level that holds it: its own and all outer ones
    per_group = torch.stack([latent_sums[lo:hi].sum() for lo, hi in zip(edges, widths)])
    shares = [sum(weights[i:]) for i in range(len(weights))]
    if detach_inner:
        shares = [*(weight + weights[-1] for weight in weights[:-1]), weights[-1]]
    return (per_group * per_group.new_tensor(shares)).sum()


def row_norms(matrix: torch.Tensor) -> torch.Tensor:
    """Norm of each row, (rows,); its gradient is zero where the row is."""
    return _RowNorms.apply(matrix)


class _RowNorms(torch.autograd.Function):
    """matrix.norm(dim=-1), with a third of the passes over memory in its backward."""

    @staticmethod
    @override
    def forward(ctx: Any, matrix: torch.Tensor) -> torch.Tensor:
        norms = matrix.norm(dim=-1)
        ctx.save_for_backward(matrix, norms)
        return norms

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: torch.Tensor
    ) -> torch.Tensor:
        matrix, norms = ctx.saved_tensors
        return matrix * torch.where(norms > 0, grads[0] / norms, 0.0)[:, None]


def dead_latent_loss(
    hidden_pre: torch.Tensor,
    W_dec: torch.Tensor,
    residual: torch.Tensor,
    k_aux: int,
    norm: torch.Tensor | None = None,
    row_scale: torch.Tensor | None = None,
    snapped: bool = False,
) -> torch.Tensor:
    """How well the k_aux strongest dead latents of each token reconstruct the residual.

    As in SAELens the activations pass no ReLU and no bias is added, and the loss shrinks in
    proportion when fewer than k_aux latents are dead. Gradients reach the encoder and the decoder.

    Args:
        hidden_pre: Pre-activations of the dead latents, (batch, dead).
        W_dec: Decoder rows of the dead latents, (dead, d_in).
        residual: What is left to explain, (batch, d_in); no gradient flows into it.
        k_aux: Dead latents per token, at most.
        norm: Factor of each latent when they are ranked, (dead,), or None for 1.
        row_scale: Factor that maps each row's reconstruction back to the residual's units, (batch,
            1), or None when they agree.
        snapped: As in nested_error, which it is added to.

    Returns:
        Scalar, the error of a token averaged over the batch.
    """
    n_dead, acts = hidden_pre.shape[-1], hidden_pre
    if k_aux < n_dead:
        rank = hidden_pre.detach() if norm is None else hidden_pre.detach() * norm
        strongest = rank.topk(k_aux, sorted=False).indices
        acts = acts * torch.zeros_like(rank).scatter_(-1, strongest, 1.0)
    reconstruction = acts @ W_dec
    if row_scale is not None:
        reconstruction = reconstruction * row_scale
    errors = (reconstruction - residual.detach()).pow(2).sum(dim=-1)  # (batch,)
    errors = _root(errors) if snapped else errors
    return min(n_dead / k_aux, 1.0) * errors.mean()


def row_scale(x: torch.Tensor, normalize_activations: str) -> torch.Tensor | None:
    """Factor from SAELens's normalized to raw units per row, (..., 1); None where they agree."""
    if normalize_activations == "layer_norm":
        return x.std(dim=-1, keepdim=True)
    if normalize_activations == "constant_norm_rescale":
        return x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
    return None


def geometric_median(
    x: torch.Tensor, n_iterations: int = 100, tolerance: float = 1e-5
) -> torch.Tensor:
    """Point of least summed distance to the rows, by Weiszfeld's iteration.

    Args:
        x: Points, (n, d).
        n_iterations: Iterations at most (dictionary_learning's 100).
        tolerance: Stop when the summed distance changes by less than this share of itself.

    Returns:
        (d,), in x's dtype.
    """
    points = x.to(torch.promote_types(x.dtype, torch.float32))
    median = points.mean(dim=0)
    previous = torch.inf
    for _ in range(n_iterations):
        distances = (points - median).norm(dim=-1).clamp(min=1e-12)  # (n,)
        weights = distances.reciprocal()
        # no matrix product, which autocast would compute in bfloat16
        median = (weights[:, None] * points).sum(dim=0) / weights.sum()
        objective = distances.sum().item()
        if abs(previous - objective) <= tolerance * objective:
            break
        previous = objective
    return median.to(x.dtype)
