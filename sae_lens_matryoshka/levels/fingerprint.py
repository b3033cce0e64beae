"""Hashes: results belong to the weights and the files that they were measured on."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.constants import SAE_WEIGHTS_FILENAME
from safetensors import SafetensorError
from safetensors.torch import load_file

from sae_lens_matryoshka.ownership import MARKER

_PREPENDS_BOS = True  # SAELens's default in training, for an SAE that does not say


def fingerprint(sae: SAE[Any]) -> str:
    """What an SAE computes: a hash of weights, config and what text the SAE is fed; not of its name, place or data type."""
    digest = hashlib.sha256()
    config = sae.cfg.to_dict()
    config = {k: v for k, v in config.items() if k not in ("metadata", "device", "dtype")}
    if "reshape_activations" in config:  # whether SAELens flattens the heads, or who calls
        config["reshape_activations"] = "none"
    metadata = sae.cfg.metadata
    bos = _PREPENDS_BOS if metadata.prepend_bos is None else metadata.prepend_bos
    config |= {"prepend_bos": bos, "seqpos_slice": metadata.seqpos_slice}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for key, tensor in sorted(sae.state_dict().items()):
        array = tensor.detach().float().contiguous().cpu().numpy()
        digest.update(f"{key} {array.shape}".encode())
        digest.update(memoryview(array).cast("B") if array.size else b"")
    return digest.hexdigest()


def hash_files(folder: Path, patterns: tuple[str, ...]) -> str:
    """A hash of the names and contents of files, without this package's marker."""
    digest = hashlib.sha256()
    paths = sorted({p for pattern in patterns for p in folder.glob(pattern) if p.is_file()})
    for path in (path for path in paths if path.name != MARKER):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def holds_weights_of(folder: Path, sae: SAE[Any]) -> bool:
    """Whether the weights that are saved in a folder are an SAE's."""
    file, ours = folder / SAE_WEIGHTS_FILENAME, sae.state_dict()
    try:
        saved = load_file(file) if file.is_file() else {}
    except SafetensorError:  # damaged
        return False
    return saved.keys() == ours.keys() and all(
        torch.equal(saved[name], tensor.cpu()) for name, tensor in ours.items()
    )
