"""The demo's language model, opened for TransformerLens."""

from pathlib import Path
from typing import TYPE_CHECKING

from sae_lens_matryoshka.language_models import missing_files, open_local_model

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

MODEL_FOLDER = Path(__file__).parent / "model"
MODEL_NAME = "demo-neox-5m"


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
    missing = missing_files(folder)
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}. The demo model comes with the "
            "package; train one with: python -m research.demo_model.train_model"
        )
    import torch

    # TransformerLens assumes Pythia, which was trained without BOS
    return open_local_model(folder, MODEL_NAME, device, torch.float32, prepend_bos=True)
