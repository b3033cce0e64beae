"""SAEs in the middle of their training, kept now and then so that an interrupted run loses little."""

import json
import time
from pathlib import Path
from typing import Any

from research.ground_truth.joint_training import Lockstep
from sae_lens_matryoshka.atomic_files import as_read, write_json
from sae_lens_matryoshka.ownership import remove_folder, replaced_folder

SECONDS_BETWEEN_SAVES = 600.0
_CONFIGURATION_FILENAME = "configuration.json"


class Unfinished:
    """
    A folder for the last state of a training, there only while it lasts.

    Args:
        folder: Where.
        configuration: All that the training of each SAE depends on, by name; what is kept of others is not used.
    """

    def __init__(self, folder: Path, configuration: dict[str, Any]):
        self._folder = folder
        self._configuration = as_read(configuration)
        self._saved_at = time.monotonic()

    def resume(self, training: Lockstep) -> None:
        """Go on from what is kept, if all of the SAEs are in it."""
        file = self._folder / _CONFIGURATION_FILENAME
        kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if all(kept.get(name) == wanted for name, wanted in self._configuration.items()):
            training.load(self._folder)

    def save_when_due(self, training: Lockstep) -> None:
        """Keep the present state, if the last one is old."""
        if time.monotonic() - self._saved_at < SECONDS_BETWEEN_SAVES:
            return
        with replaced_folder(self._folder) as staging:
            training.save(staging)
            write_json(staging / _CONFIGURATION_FILENAME, self._configuration)
        self._saved_at = time.monotonic()

    def remove(self) -> None:
        """The training is over and its result kept."""
        remove_folder(self._folder)
