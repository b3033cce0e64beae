"""The demo's language model, opened for TransformerLens."""

import shutil
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

MODEL_FOLDER = Path(__file__).parent / "model"
MODEL_NAME = "demo-neox-5m"

_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def load_model(folder: str | Path = MODEL_FOLDER, device: str = "cpu") -> "HookedTransformer":
    """Open a model folder as SAELens opens models: float32, weights as they are.

    Args:
        folder: Folder of a GPT-NeoX model and its tokenizer, as transformers saves them.
        device: Where to put the model.

    Returns:
        The model with its tokenizer.

    Raises:
        FileNotFoundError: If files are missing.
    """
    folder = Path(folder)
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}. The demo model comes with the "
            "package; train one with: python -m sae_lens_matryoshka.demo.train_model"
        )
    import torch
    from transformer_lens import HookedTransformer
    from transformer_lens.loading_from_pretrained import (
        get_pretrained_model_config,
        get_pretrained_state_dict,
    )
    from transformers import AutoTokenizer, GPTNeoXForCausalLM

    hf_model = GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with TemporaryDirectory() as scratch:
        # TransformerLens takes "llama" or "gemma" anywhere in a path for the
        # architecture, and the path's end for the model's name: give it a neutral one
        neutral = Path(scratch) / MODEL_NAME
        neutral.mkdir()
        shutil.copy(folder / "config.json", neutral)
        cfg = get_pretrained_model_config(
            str(neutral),
            device=device,
            dtype=torch.float32,
            default_prepend_bos=True,  # TransformerLens assumes Pythia, trained without
        )
        state = get_pretrained_state_dict(str(neutral), cfg, hf_model=hf_model)
    cfg.tokenizer_name = MODEL_NAME
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
    model.tokenizer.name_or_path = MODEL_NAME  # the path again, see above
    return model
