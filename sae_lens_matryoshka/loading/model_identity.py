"""What identifies a language model, recorded when an SAE is trained on it and compared when it is measured."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformer_lens.HookedTransformer import HookedRootModule

KEY = "model_identity"
"""The key in an SAE's metadata."""
SAMPLES = 16
_SIZES = ("architecture", "n_layers", "d_model", "d_vocab")
_FLOAT32 = "torch.float32"
_TOLERANCE, _ROUNDED = 1e-4, 1e-2  # of single weights; rounded: one of the two is not in float32


def model_identity(model: "HookedRootModule") -> dict[str, Any]:
    """
    A model's sizes and a few of its weights, in a form that JSON can hold.

    Args:
        model: The model as SAELens loaded it. Of one that is not a HookedTransformer, the weights are left out:
            they have other names.
    """
    cfg: Any = model.cfg if hasattr(model, "cfg") else None
    if cfg is None or not hasattr(cfg, "original_architecture"):
        return _of_hugging_face(getattr(getattr(model, "model", None), "config", None))
    names = sorted(name for name, _ in model.named_parameters() if ".W_" in f".{name}")
    matrices = dict(model.named_parameters())
    chosen = names[:: max(1, len(names) // SAMPLES)][:SAMPLES]
    weights = {name: _middle(matrices[name]) for name in chosen}
    return {
        "architecture": cfg.original_architecture,
        "n_layers": cfg.n_layers,
        "d_model": cfg.d_model,
        "d_vocab": cfg.d_vocab,
        "dtype": str(cfg.dtype),
        "weights": weights,
    }


def differences(trained_on: Mapping[str, Any], measured_on: Mapping[str, Any]) -> list[str]:
    """
    How two identities differ, in words; empty where they do not.

    Args:
        trained_on: Of the model that an SAE was trained on.
        measured_on: Of the model at hand.
    """
    sizes = [
        f"{name} {trained_on.get(name)}, here {measured_on.get(name)}"
        for name in _SIZES
        if None not in (trained_on.get(name), measured_on.get(name))
        and trained_on[name] != measured_on[name]
    ]
    if sizes:
        return sizes
    theirs, ours = trained_on.get("weights") or {}, measured_on.get("weights") or {}
    both = theirs.keys() & ours.keys()
    is_exact = trained_on.get("dtype") == measured_on.get("dtype") == _FLOAT32
    tolerance = _TOLERANCE if is_exact else _ROUNDED
    changed = [n for n in both if abs(theirs[n] - ours[n]) > tolerance * (1e-4 + abs(theirs[n]))]
    return [f"other weights ({len(changed)} of {len(both)} compared)"] if changed else []


def _of_hugging_face(config: Any) -> dict[str, Any]:
    architectures = getattr(config, "architectures", None) or [None]
    return {
        "architecture": architectures[0],
        "n_layers": getattr(config, "num_hidden_layers", None),
        "d_model": getattr(config, "hidden_size", None),
        "d_vocab": getattr(config, "vocab_size", None),
    }


def _middle(parameter: torch.Tensor) -> float:
    """One weight, away from padding at the edges."""
    index = tuple(size // 2 for size in parameter.shape)
    return parameter.detach()[index].float().item()
