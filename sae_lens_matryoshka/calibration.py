"""Thresholds that fire as often as wanted, counted on held-out activations."""

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAE
from sae_lens.saes.topk_sae import TopKSAE

from sae_lens_matryoshka.sae import MatryoshkaSAE, build, copy_of
from sae_lens_matryoshka.threshold import cut_for_count, row_blocks

T = TypeVar("T", MatryoshkaSAE, SAE[Any])


@torch.no_grad()
def calibrate_threshold(
    sae: T, activations: torch.Tensor, target_l0: float, as_jumprelu: bool = False
) -> T:
    """
    A copy whose thresholds let exactly `target_l0` latents per token fire on the given activations.

    Decoder norms are folded first. All thresholds are scaled by one common factor, or, if all are
    zero, set to one uniform value.

    Args:
        sae: A JumpReLU SAE, or with as_jumprelu a TopK SAE; plain or as MatryoshkaSAE.
        activations: Activations of the model, (tokens, d_in). Held-out ones: the more tokens, the
            better the threshold carries over.
        target_l0: Active latents per token wanted, on average; times the number of tokens it is
            rounded to a whole count.
        as_jumprelu: Turn a TopK SAE into a JumpReLU SAE, whose levels stand alone.

    Returns:
        The same kind of object; the input is left as it was.

    Raises:
        ValueError: The SAE has no threshold to calibrate, or no threshold reaches the target.
    """
    if isinstance(sae, MatryoshkaSAE):
        inner = calibrate_threshold(sae.sae, activations, target_l0, as_jumprelu)
        return MatryoshkaSAE(inner, sae.widths)
    if isinstance(sae, TopKSAE):
        if not as_jumprelu:
            raise ValueError(
                "A topk SAE has no threshold. Pass as_jumprelu=True for a JumpReLU SAE whose one "
                "threshold replaces the top-k."
            )
        copied = _as_jumprelu(sae)
    elif isinstance(sae, JumpReLUSAE):
        if as_jumprelu:
            raise ValueError("as_jumprelu=True has no effect: this is a JumpReLU SAE already.")
        copied = copy_of(sae)
        copied.fold_W_dec_norm()
    else:
        raise ValueError(
            f"{type(sae).__name__} has no threshold to calibrate; a JumpReLU SAE has, and a topk "
            "SAE with as_jumprelu=True gets one."
        )
    copied.threshold.data = _calibrated(copied, activations, target_l0)
    if isinstance(sae, TopKSAE) and not sae.cfg.rescale_acts_by_decoder_norm:
        copied.fold_W_dec_norm()  # only now: its top-k ranks latents without their norms
    return copied


def _calibrated(
    sae: JumpReLUSAE, activations: torch.Tensor, target_l0: float
) -> torch.Tensor:
    """Thresholds, (d_sae,), that hit the target on the activations, (tokens, d_in)."""
    uniform = not sae.threshold.any()
    # a latent fires where its pre-activation, in units of its threshold, exceeds the common factor
    unit = torch.ones_like(sae.threshold) if uniform else sae.threshold

    def scores() -> Iterator[torch.Tensor]:
        for block in row_blocks(activations, sae.cfg.d_sae):
            hidden_pre = sae.process_sae_in(block) @ sae.W_enc + sae.b_enc
            # relu first: only positive pre-activations fire, whatever the threshold
            yield (hidden_pre.relu() / unit).nan_to_num(nan=0.0, posinf=torch.inf)

    n_tokens = activations.shape[0]
    count = round(target_l0 * n_tokens)
    positive = int(sum((score > 0).sum() for score in scores()))
    always_on = int(sum(torch.isinf(score).sum() for score in scores()))
    if not always_on <= count <= positive or count == 0:
        raise ValueError(
            f"target_l0={target_l0} cannot be reached on these {n_tokens} activations: thresholds "
            f"reach from {always_on / n_tokens:.4g} to {positive / n_tokens:.4g} active latents per "
            "token. Choose a target between them."
        )
    return unit * cut_for_count(scores(), count)


def _as_jumprelu(sae: TopKSAE) -> JumpReLUSAE:
    """The SAE with thresholds of zero in place of its top-k; norms folded if they rank latents."""
    cfg = {**sae.cfg.to_dict(), "metadata": copy.deepcopy(sae.cfg.metadata)}
    names = ("d_in", "d_sae", "dtype", "device", "apply_b_dec_to_input", "metadata")
    names += ("normalize_activations", "reshape_activations")
    state_dict = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    state_dict["threshold"] = torch.zeros_like(sae.b_enc)
    jumprelu = build(
        JumpReLUSAE, JumpReLUSAEConfig(**{name: cfg[name] for name in names}), state_dict
    )
    if sae.cfg.rescale_acts_by_decoder_norm:
        jumprelu.fold_W_dec_norm()
    return jumprelu
