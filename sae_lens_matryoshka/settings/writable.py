"""Whether a folder can be written to."""

import tempfile
from pathlib import Path


def why_not_writable(folder: Path) -> str | None:
    """
    Why nothing can be written to a folder or below it; None if something can. Leaves no trace.

    Args:
        folder: The folder, which need not exist yet.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        return f"{existing} is no folder"
    try:
        with tempfile.TemporaryFile(dir=existing):
            return None
    except OSError as error:
        return f"{existing}: {error.strerror}"


def check_output(option: str, folder: Path) -> None:
    """
    Check that the results of a command can be written.

    Args:
        option: The option's name, for the error.
        folder: The folder, which need not exist yet.

    Raises:
        ValueError: Nothing can be written there.
    """
    reason = why_not_writable(folder)
    if reason is not None:
        raise ValueError(
            f"{option}: {folder} cannot be written to: {reason}. Give a folder that you may write to."
        )
