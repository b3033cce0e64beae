"""The two SAEs that the offline benchmark compares: Matryoshka and flat, all else equal."""

import os
import shutil
from pathlib import Path
from typing import Literal

from sae_lens_matryoshka.demo.model import load_model
from sae_lens_matryoshka.demo.quickstart import SMALL, Size, shuffled, train
from sae_lens_matryoshka.demo.text import texts

BENCHMARKED = Size(d_sae=1024)  # half the quickstart's width: the evals' time grows with it


def train_sae(which: Literal["matryoshka", "batchtopk"], folder: Path, small: bool) -> None:
    """
    Train one of the two SAEs as the quickstart does; text, steps, width and k are the same for both.

    Args:
        which: "matryoshka", or "batchtopk" for a flat one: a single level.
        folder: An empty folder for the stock SAELens SAE.
        small: A run of seconds that only shows that everything works.
    """
    size = SMALL if small else BENCHMARKED
    widths = [size.d_sae] if which == "batchtopk" else None
    run = folder / "run"
    train(load_model(), shuffled(texts("train")), run, size, widths)
    for path in (run / "sae").iterdir():
        os.replace(path, folder / path.name)
    shutil.rmtree(run)
