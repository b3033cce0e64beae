"""Open a folder that training or saving wrote, whichever of the two, as the inference SAE it comes to."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
    TRAINER_STATE_FILENAME,
)
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from sae_lens_matryoshka.loading.sae_folder import STATE_FILENAME, require_sae
from sae_lens_matryoshka.saes.inference_sae import inference_form
from sae_lens_matryoshka.saes.latent_order import order_of
from sae_lens_matryoshka.saes.training_state import restore_training_state

TRAINED_TOKENS = "trained_tokens"
"""The key in the metadata of a checkpoint's SAE; the runner_cfg.json beside it has the planned number."""

_ONLY_IN_TRAINING = "decoder_init_norm"  # a field of every training configuration of SAELens


def open_folder(folder: Path, dtype: str | None = None, device: str = "cpu") -> SAE[Any]:
    """
    The inference SAE of a saved one, or of a checkpoint of training.

    Args:
        folder: Folder with cfg.json and sae_weights.safetensors. A checkpoint's activation statistics
            are folded into the weights, as SAELens does at the end of training.
        dtype: Data type of the weights, before anything is folded. None: as saved.
        device: Where to put the weights.

    Raises:
        FileNotFoundError: There is no SAE in the folder.
        ValueError: A file is damaged; the message names it.
    """
    require_sae(folder)
    if _ONLY_IN_TRAINING not in _undamaged_cfg(folder):
        return SAE.load_from_disk(folder, device=device, dtype=dtype)
    sae = TrainingSAE.load_from_disk(folder, dtype=dtype)
    _unround_buffers(sae, folder)
    if (folder / STATE_FILENAME).is_file():
        state = torch.load(folder / STATE_FILENAME, map_location="cpu", weights_only=True)
        restore_training_state(sae, state)
    _fold_statistics(sae, folder / ACTIVATION_SCALER_CFG_FILENAME)
    if (folder / TRAINER_STATE_FILENAME).is_file():
        state = torch.load(
            folder / TRAINER_STATE_FILENAME, map_location="cpu", mmap=True, weights_only=True
        )
        sae.cfg.metadata[TRAINED_TOKENS] = state["n_training_samples"]
    return inference_form(sae).to(device)


def _undamaged_cfg(folder: Path) -> dict[str, Any]:
    file = folder / SAE_WEIGHTS_FILENAME
    try:
        with safe_open(file, framework="pt"):  # compares the header with the length
            pass
        file = folder / SAE_CFG_FILENAME
        return json.loads(file.read_text())
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {error}. Copy or save the SAE again.") from error


def sparsity_beside(folder: Path) -> torch.Tensor | None:
    """
    Firing frequencies (log10) of the latents as open_folder gives them, (d_sae,); None: there are none.

    A checkpoint has its latents where they are trained; what is saved of it has them sorted.
    """
    if not (folder / SPARSITY_FILENAME).is_file():
        return None
    sparsity = load_file(folder / SPARSITY_FILENAME)["sparsity"]
    with safe_open(folder / SAE_WEIGHTS_FILENAME, framework="pt") as weights:
        if "latent_scores" in weights.keys():  # noqa: SIM118  (it is no mapping)
            return sparsity[order_of(weights.get_tensor("latent_scores"))]
    return sparsity


def widths_beside(folder: Path) -> Sequence[int] | None:
    """The nested widths in the runner's configuration: SAELens before 6.46 wrote them nowhere else."""
    try:
        runner_cfg = json.loads((folder / RUNNER_CFG_FILENAME).read_text())
    except FileNotFoundError:
        return None
    return (runner_cfg.get("sae") or {}).get("matryoshka_widths")


def _unround_buffers(sae: TrainingSAE[Any], folder: Path) -> None:
    """SAELens reads all in the SAE's data type; rounded scores would order the latents otherwise."""
    with safe_open(folder / SAE_WEIGHTS_FILENAME, framework="pt") as weights:
        saved = set(weights.keys())
        for name, buffer in sae.named_buffers():
            if name in saved:
                buffer.data = weights.get_tensor(name).to(buffer.device, buffer.dtype)


def _fold_statistics(sae: TrainingSAE[Any], file: Path) -> None:
    if not file.is_file():
        return
    scaler = ActivationScaler()
    scaler.load(file)
    if scaler.scaling_factor is not None:
        sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
    if scaler.whitening is not None:
        whitening = scaler.whitening
        sae.fold_activation_whitening(
            mean=whitening.mean,
            whitening_matrix=whitening.matrix,
            unwhitening_matrix=whitening.inverse_matrix,
        )
