"""The folder of a saved SAE, as SAELens writes it. Imports nothing heavy: the command line asks it, too."""

import json
import os
from pathlib import Path

CFG_FILENAME = "cfg.json"  # SAELens's name, kept here since importing it is slow
SAVED_FILENAMES = (
    CFG_FILENAME,
    "sae_weights.safetensors",
    "sparsity.safetensors",
    "runner_cfg.json",
)
STATE_FILENAME = "matryoshka_state.pt"  # in a checkpoint: what SAELens's files do not hold


def require_sae(folder: Path) -> None:
    """
    Check that there is an SAE in a folder.

    Raises:
        FileNotFoundError: There is none; the message names those below it.
    """
    if (folder / CFG_FILENAME).is_file():
        return
    below = sorted(str(path.parent) for path in folder.glob(f"*/{CFG_FILENAME}"))
    hint = f" There are SAEs in {', '.join(below)}." if below else ""
    raise FileNotFoundError(
        f"{folder} holds no SAE: there is no {CFG_FILENAME}.{hint} Give the folder that training "
        "printed at its end (output_path)."
    )


def check_may_be_saved_in(folder: Path) -> None:
    """
    Check that saving an SAE in a folder replaces nothing but an SAE.

    Raises:
        FileExistsError: Other files have the names that an SAE is saved under.
    """
    taken = [name for name in SAVED_FILENAMES if os.path.lexists(folder / name)]
    is_interrupted = any(folder.glob(".saving.*"))  # the weights may be there without cfg.json
    if taken and not _is_sae_config(folder / CFG_FILENAME) and not is_interrupted:
        raise FileExistsError(
            f"{folder} holds {', '.join(taken)}, which would be replaced, but no SAE. Give another "
            "folder, or move the files away."
        )


def _is_sae_config(file: Path) -> bool:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"d_in", "d_sae"} <= content.keys()
