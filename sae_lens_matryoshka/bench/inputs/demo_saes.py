"""The SAEs that benchmarks on the demo model compare: Matryoshka and flat, all else equal."""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from sae_lens_matryoshka.bench.jobs.parent_process import end_with_the_parent
from sae_lens_matryoshka.demo.model import load_model
from sae_lens_matryoshka.demo.quickstart import SMALL, Size, train
from sae_lens_matryoshka.demo.text import shuffled, texts

# less than the quickstart's: the benchmark's time grows with both
BENCHMARKED = Size(d_sae=1024, training_tokens=600_000)


def train_sae(which: str, folder: Path, seed: int, small: bool) -> None:
    """
    Train one of the SAEs as the quickstart does; steps, width and k are the same for all, text that of the seed.

    Args:
        which: "matryoshka", "batchtopk" for a flat one, or "best" for recipe="best".
        folder: An empty folder for the stock SAELens SAE.
        seed: Of its start and the order of the texts.
        small: A run of seconds that only shows that everything works.
    """
    size = SMALL if small else BENCHMARKED
    widths = [size.d_sae] if which == "batchtopk" else None
    recipe = "best" if which == "best" else None
    if any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty. Give an empty folder.")
    with TemporaryDirectory(dir=folder) as run:
        train(load_model(), shuffled(texts("train"), seed), Path(run), size, widths, recipe, seed)
        for path in Path(run, "sae").iterdir():
            os.replace(path, folder / path.name)


if __name__ == "__main__":
    end_with_the_parent()
    train_sae(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), small="--small" in sys.argv)
