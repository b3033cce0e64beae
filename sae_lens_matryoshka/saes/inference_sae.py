"""SAEs in memory: inference forms and copies, and what an SAE says of itself."""

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from sae_lens.saes.sae import SAE, SAEConfig, SAEMetadata, TrainingSAE, TrainingSAEConfig

UNIT_TOLERANCE = 1e-5  # SAEBench's own, which warns beyond it

# Modes whose statistics are folded into the weights at the end of training.
FOLDED_NORMALIZATIONS = ("expected_average_only_in", "covariance_whitening")

S = TypeVar("S", bound=SAE[Any])


def inference_form(sae: TrainingSAE[Any]) -> SAE[Any]:
    """The stock SAE that `save_inference_model` would write, in memory; shares nothing with `sae`."""
    state_dict = sae.state_dict()
    sae.process_state_dict_for_saving_inference(state_dict)
    inference_cfg = inference_cfg_of(sae.cfg)
    sae_class = SAE.get_sae_class_for_architecture(inference_cfg.architecture())
    copies = {name: tensor.detach().clone() for name, tensor in state_dict.items()}
    return build(sae_class, inference_cfg, copies)


def inference_cfg_of(cfg: TrainingSAEConfig) -> SAEConfig:
    """Return a new configuration of the SAE that `save_inference_model` would write."""
    values = cfg.get_inference_sae_cfg_dict()
    values["metadata"] = copy.deepcopy(values["metadata"])
    return cfg.get_inference_config_class().from_dict(values)


def copy_of(sae: S) -> S:
    """A copy that shares nothing with `sae`, unlike copy.deepcopy, whose normalization does."""
    copies = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    copied = build(type(sae), copy.deepcopy(sae.cfg), copies)
    for name, parameter in copied.named_parameters():
        parameter.requires_grad_(sae.get_parameter(name).requires_grad)
    return copied.train(sae.training)


def build(sae_class: type[S], cfg: Any, state_dict: dict[str, torch.Tensor]) -> S:
    """An SAE of a stock class from its configuration and weights."""
    sae = sae_class(cfg)
    sae.load_state_dict(state_dict)
    return sae


def has_unit_norms(sae: SAE[Any], tolerance: float = UNIT_TOLERANCE) -> bool:
    """Whether decoder rows have norm 1, or 0 where a latent does nothing."""
    norms = sae.W_dec.flatten(1).float().norm(dim=-1)  # (d_sae,)
    return bool((((norms - 1).abs() <= tolerance) | (norms == 0)).all())


def not_finite(sae: SAE[Any]) -> list[str]:
    """The names of the weights that hold NaN or infinite numbers."""
    return [name for name, tensor in sae.state_dict().items() if not tensor.isfinite().all()]


def named_widths(metadata: SAEMetadata | dict[str, Any]) -> Sequence[int] | None:
    """The levels that an SAE's metadata names, None for a flat one."""
    return (metadata.get("training_architecture_details") or {}).get("matryoshka_widths") or None


def write_widths(metadata: SAEMetadata, widths: Sequence[int]) -> None:
    """Name the levels where SAELens's own Matryoshka SAEs name them."""
    details = dict(metadata.training_architecture_details or {})
    metadata.training_architecture_details = {**details, "matryoshka_widths": list(widths)}
