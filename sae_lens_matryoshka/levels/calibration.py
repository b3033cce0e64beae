"""Thresholds that fire as often as wanted, counted on held-out activations."""

import copy
import math
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAE, TrainingSAE
from sae_lens.saes.topk_sae import TopKSAE

from sae_lens_matryoshka import engine
from sae_lens_matryoshka.levels.matryoshka_sae import MatryoshkaSAE
from sae_lens_matryoshka.levels.measurements import L0_IS_CALIBRATED
from sae_lens_matryoshka.saes.inference_sae import build, copy_of
from sae_lens_matryoshka.saes.refined_sae import RefinedSAE
from sae_lens_matryoshka.saes.thresholds import thresholds_for_l0

# Activations that are encoded together.
TOKENS_AT_A_TIME = 8192

T = TypeVar("T", MatryoshkaSAE, SAE[Any])


@torch.no_grad()
def calibrate_threshold(
    sae: T, activations: torch.Tensor | ArrayLike, target_l0: float, as_jumprelu: bool = False
) -> T:
    """
    A copy whose thresholds let exactly `target_l0` latents per token fire on the given activations (in
    bfloat16 as nearly as its rounding allows).

    Decoder norms are folded first. All thresholds are scaled by one common factor, or, if all are
    zero, set to one uniform value.

    Args:
        sae: A JumpReLU SAE, or with as_jumprelu a TopK SAE; plain or as MatryoshkaSAE.
        activations: Activations of the model, (..., d_in), or (..., n_heads, d_head) for hook_z: a
            tensor on any device, a NumPy array or nested lists. Take held-out ones: the more tokens,
            the better the threshold carries over.
        target_l0: Target number of active latents per token, on average; times the number of tokens
            it is rounded to a whole count.
        as_jumprelu: Turn a TopK SAE into a JumpReLU SAE, whose levels stand alone.

    Returns:
        The same kind of object; the input is left as it was.

    Raises:
        TypeError: The target is not a number, or the activations do not form an array of numbers.
        ValueError: The SAE has no threshold to calibrate, the activations are none, not finite or of
            another size than d_in, or no threshold reaches the target.
    """
    target_l0 = _number(target_l0)
    if isinstance(sae, MatryoshkaSAE):
        inner = calibrate_threshold(sae.sae, activations, target_l0, as_jumprelu)
        return MatryoshkaSAE(inner, sae.widths)
    if isinstance(sae, RefinedSAE):
        raise ValueError(
            "An SAE with a refinement has two thresholds, the first of which changes what the second one sees; "
            "they are set together when training saves it. Train it with the k that you want."
        )
    if type(sae) is TopKSAE:  # not AbsTopKSAE, whose latents may be negative
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
    elif isinstance(sae, TrainingSAE):
        raise ValueError(
            f"{type(sae).__name__} is an SAE in training. Calibrate MatryoshkaSAE.from_sae(sae), its "
            "inference form."
        )
    else:
        raise ValueError(
            f"{type(sae).__name__} has no threshold to calibrate; a JumpReLU SAE has, and a topk "
            "SAE with as_jumprelu=True gets one."
        )
    rows = _one_row_per_token(copied, activations)

    def encoders() -> Iterator[engine.Encoder]:
        for block in rows.split(TOKENS_AT_A_TIME):
            sae_in = copied.process_sae_in(block.to(copied.device))
            yield engine.Encoder(sae_in, copied.W_enc, copied.b_enc, None)

    thresholds = copied.threshold.data.clamp(min=0)  # below, a latent fires where it is positive
    copied.threshold.data = thresholds_for_l0(encoders, thresholds, target_l0)
    copied.cfg.metadata.l0 = target_l0
    copied.cfg.metadata[L0_IS_CALIBRATED] = True
    copied.cfg.metadata.num_dead_features = None  # counted with the old thresholds
    if type(sae) is TopKSAE and not sae.cfg.rescale_acts_by_decoder_norm:
        copied.fold_W_dec_norm()  # only now: its top-k ranks latents without their norms
    return copied


def _number(target_l0: Any) -> float:
    is_number = isinstance(target_l0, int | float | np.number | torch.Tensor)
    if not is_number or isinstance(target_l0, bool):
        raise TypeError(f"target_l0={target_l0!r} must be a number of active latents per token.")
    number = float(target_l0)
    if not math.isfinite(number):
        raise ValueError(f"target_l0={number} must be a finite number of active latents per token.")
    return number


def _one_row_per_token(sae: SAE[Any], activations: torch.Tensor | ArrayLike) -> torch.Tensor:
    """Activations as (tokens, d_in), or (tokens, n_heads, d_head) for hook_z."""
    tensor = _tensor(activations)
    n_dims = 2 if sae.hook_z_reshaping_mode else 1  # the last ones, which make up d_in
    per_token = tensor.shape[-n_dims:]
    if tensor.dim() < n_dims or math.prod(per_token) != sae.cfg.d_in:
        expected = "d_in" if n_dims == 1 else "n_heads, d_head with n_heads * d_head = d_in"
        raise ValueError(
            f"activations of shape {tuple(tensor.shape)} must have (..., {expected}), here of d_in="
            f"{sae.cfg.d_in}."
        )
    rows = tensor.reshape(-1, *per_token)
    if len(rows) == 0 or not rows.isfinite().all():
        raise ValueError(
            f"activations of shape {tuple(tensor.shape)} must hold at least one token and only "
            "finite numbers."
        )
    return rows


def _tensor(activations: torch.Tensor | ArrayLike) -> torch.Tensor:
    given = activations
    try:  # torch would take long for lists of arrays
        tensor = given if isinstance(given, torch.Tensor) else torch.as_tensor(np.asarray(given))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"activations of type {type(given).__name__} do not form one array of numbers ({error}). "
            "Give a tensor, (..., d_in); several are joined by torch.cat."
        ) from error
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"activations of data type {tensor.dtype} must be real numbers.")
    return tensor


def _as_jumprelu(sae: TopKSAE) -> JumpReLUSAE:
    """The SAE with thresholds of zero in place of its top-k; norms folded if they rank latents."""
    cfg = copy.deepcopy(sae.cfg.to_dict())
    cfg["architecture"] = JumpReLUSAEConfig.architecture()
    state_dict = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    state_dict["threshold"] = torch.zeros_like(sae.b_enc)
    jumprelu = build(JumpReLUSAE, JumpReLUSAEConfig.from_dict(cfg), state_dict)
    if sae.cfg.rescale_acts_by_decoder_norm:
        jumprelu.fold_W_dec_norm()
    return jumprelu
