"""SAEs in the middle of their training, kept now and then so that an interrupted run loses little."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from sae_lens_matryoshka.checkpoint import whole_folder
from sae_lens_matryoshka.ground_truth.lockstep import Lockstep
from sae_lens_matryoshka.json_file import write_json

SECONDS_BETWEEN_SAVES = 600.0
_CONFIGURATION_FILENAME = "configuration.json"


class Unfinished:
    """
    A folder for the last state of a training, there only while it lasts.

    Args:
        folder: Where.
        configuration: All that the training depends on; what is kept of another one is not used.
    """

    def __init__(self, folder: Path, configuration: dict[str, Any]):
        self._folder = folder
        self._configuration = json.loads(json.dumps(configuration, default=str))
        self._saved_at = time.monotonic()

    def resume(self, training: Lockstep) -> None:
        """Go on from what is kept, if there is something of this configuration."""
        file = self._folder / _CONFIGURATION_FILENAME
        if file.is_file() and json.loads(file.read_text(encoding="utf-8")) == self._configuration:
            training.load(self._folder)

    def save_when_due(self, training: Lockstep) -> None:
        """Keep the present state, if the last one is old."""
        if time.monotonic() - self._saved_at < SECONDS_BETWEEN_SAVES:
            return
        with whole_folder(self._folder) as staging:
            training.save(staging)
            write_json(staging / _CONFIGURATION_FILENAME, self._configuration)
        self._saved_at = time.monotonic()

    def remove(self) -> None:
        """The training is over and its result kept."""
        shutil.rmtree(self._folder, ignore_errors=True)
