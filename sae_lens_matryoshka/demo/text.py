"""Real text for the demo, read from the installed `sae_probes` package.

The package ships 155 labelled data sets: news, reviews, tweets, abstracts, code, names.
Only their texts are used here, and they stay where they are: nothing is copied.
"""

import csv
import io
import random
import zlib
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeVar

import zstandard

Split = Literal["train", "heldout"]
T = TypeVar("T")

OPENING = 100
"""Two texts with the same first 100 characters count as one text."""

MAX_CHARS = 3_000
MIN_CHARS = 3

HELDOUT_ONE_IN = 100

NOT_SHOWN = ("hate", "toxic")
"""In the names of data sets that nobody wants on the screen."""

INSTALL_HINT = (
    "The demo reads its text from the package sae-probes, which is not installed. "
    'Install it: in a checkout of the repository, pip install ".[demo]"'
)


def data_folder() -> Path:
    """Return the folder of data sets inside the installed `sae_probes`.

    The package is found but not imported: its import pulls in scikit-learn and pandas.

    Returns:
        A folder of `*.csv.zst` files.

    Raises:
        ImportError: If sae-probes is not installed.
    """
    spec = find_spec("sae_probes")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(INSTALL_HINT)
    return Path(spec.submodule_search_locations[0]) / "data" / "cleaned_data"


def texts(
    split: Split = "train",
    *,
    folder: Path | None = None,
    without: Sequence[str] = (),
) -> list[str]:
    """Return the distinct texts of one split, in the order of files and rows.

    Texts that share their opening are near-copies (one passage with several questions,
    a licence header): the first one stands for all. Split membership hashes that same
    opening, so no held-out text has a near-copy in training. Long texts (mostly code and
    papers) are cut, else a few thousand of them would be half of the tokens. Texts of
    one or two characters are dropped.

    Args:
        split: "train" or "heldout"; one text in 100 is held out, the same ones always.
        folder: Folder of `*.csv.zst` files with a column "prompt"; None is sae_probes'.
        without: Leave out the data sets whose file names hold one of these.

    Returns:
        The texts, stripped of white space at both ends.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split must be 'train' or 'heldout', got {split!r}")
    seen: set[str] = set()
    chosen: list[str] = []
    for text in _prompts(folder or data_folder(), without):
        opening = text[:OPENING]
        if len(text) < MIN_CHARS or opening in seen:
            continue
        seen.add(opening)
        if is_heldout(text) == (split == "heldout"):
            chosen.append(text[:MAX_CHARS].rstrip())
    return chosen


def shuffled(items: Sequence[T], seed: int = 0) -> list[T]:
    """Return items mixed: texts come data set by data set."""
    return random.Random(seed).sample(items, len(items))


def is_heldout(text: str) -> bool:
    """Tell whether a text belongs to the held-out split.

    Args:
        text: The whole text, or at least its opening.

    Returns:
        True for about 1 % of texts; depends on nothing but the text.
    """
    return zlib.crc32(text[:OPENING].encode()) % HELDOUT_ONE_IN == 0


def _prompts(folder: Path, without: Sequence[str]) -> Iterator[str]:
    """Yield every row's text, files in the order of their names."""
    # some texts are longer than the csv module's default limit of 128 KiB
    csv.field_size_limit(2**31 - 1)
    paths = sorted(folder.glob("*.csv.zst"))
    if not paths:
        raise FileNotFoundError(f"no *.csv.zst files in {folder}")
    for path in paths:
        if any(part in path.name for part in without):
            continue
        for row in csv.DictReader(io.StringIO(decompress(path), newline="")):
            yield row["prompt"].strip()


def decompress(path: Path) -> str:
    with path.open("rb") as file:
        return zstandard.ZstdDecompressor().stream_reader(file).read().decode()
