"""Small stand-ins for the texts of sae_probes."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import zstandard

WriteTexts = Callable[[str, Sequence[str]], Path]


@pytest.fixture
def write_texts(tmp_path: Path) -> WriteTexts:
    """Return a function that writes texts as a data set of sae_probes; gives the folder."""

    def write(name: str, texts: Sequence[str]) -> Path:
        buffer = io.StringIO(newline="")
        rows = csv.writer(buffer)
        rows.writerow(["prompt", "prompt_len", "target"])
        rows.writerows([text, len(text), 0] for text in texts)
        folder = tmp_path / "texts"
        folder.mkdir(exist_ok=True)
        packed = zstandard.ZstdCompressor().compress(buffer.getvalue().encode())
        (folder / f"{name}.csv.zst").write_bytes(packed)
        return folder

    return write
