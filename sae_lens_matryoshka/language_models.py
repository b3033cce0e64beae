"""Open a language model from a local folder for TransformerLens, which knows Hub names only."""

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformer

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def missing_files(folder: Path) -> list[str]:
    """What a folder lacks to be a model with its tokenizer; empty if nothing."""
    missing = [
        name for name in ("config.json", "tokenizer_config.json") if not (folder / name).is_file()
    ]
    if not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        missing.append(" or ".join(WEIGHTS))
    return missing


def open_local_model(
    folder: Path,
    name: str,
    device: str,
    dtype: "torch.dtype",
    prepend_bos: bool | None = None,
) -> "HookedTransformer":
    """
    Open a model folder as SAELens opens models: weights as they are, nothing folded.

    Args:
        folder: A causal language model and its tokenizer, as transformers saves them.
        name: What to call the model.
        device: Where to put it.
        dtype: Data type of its weights.
        prepend_bos: Whether prompts start with the BOS token. None: as TransformerLens has it for the
            architecture.

    Raises:
        FileNotFoundError: If files are missing.
    """
    missing = missing_files(folder)
    if missing:
        raise FileNotFoundError(
            f"{folder} is no language model: it lacks {', '.join(missing)}. Give a folder with config, "
            "weights and tokenizer, as transformers' save_pretrained writes them."
        )
    from transformer_lens import HookedTransformer
    from transformer_lens.loading_from_pretrained import (
        get_pretrained_model_config,
        get_pretrained_state_dict,
    )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    # TransformerLens takes "llama" or "gemma" anywhere in a path for the architecture, and the path's end
    # for the model's name: give it a neutral one, relative to a working folder of its own
    with _working_folder_with(folder / "config.json", "model") as neutral:
        cfg = get_pretrained_model_config(
            neutral, device=device, dtype=dtype, default_prepend_bos=prepend_bos
        )
        state = get_pretrained_state_dict(neutral, cfg, hf_model=hf_model, dtype=dtype)
    cfg.model_name = cfg.tokenizer_name = name
    with warnings.catch_warnings():
        # SAELens 6 needs the class that TransformerLens 3 calls deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        model = HookedTransformer(cfg, AutoTokenizer.from_pretrained(folder))
    model.load_and_process_state_dict(
        state,
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    assert model.tokenizer is not None
    model.tokenizer.name_or_path = name  # the path again, see above
    return model


@contextmanager
def _working_folder_with(file: Path, name: str) -> Iterator[str]:
    """Work in an empty folder where a folder of that name holds a copy of the file."""
    before = os.getcwd()
    with TemporaryDirectory() as scratch:
        Path(scratch, name).mkdir()
        shutil.copy(file, Path(scratch, name))
        os.chdir(scratch)
        try:
            yield name
        finally:
            os.chdir(before)
