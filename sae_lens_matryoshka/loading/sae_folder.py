"""The folder of a saved SAE, as SAELens writes it. Imports nothing heavy: the command line asks it, too."""

from pathlib import Path

CFG_FILENAME = "cfg.json"  # SAELens's name, kept here since importing it is slow
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
