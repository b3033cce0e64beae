"""A torchvision that does not work, as SAEBench installs it, is in nobody's way."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import sae_lens_matryoshka

PACKAGE = Path(sae_lens_matryoshka.__file__).parent
MAKE_TENSORS = """
import sys; sys.argv[0] = "sae-lens-matryoshka"  # which does not import SAELens by itself
from sae_lens_matryoshka.settings.unused_torchvision import hide_unusable_torchvision
hide_unusable_torchvision()
from datasets import Dataset
rows = Dataset.from_dict({"tokens": [[1, 2], [3, 4]]}).with_format("torch")
from transformers.utils import is_torchvision_available
print(rows[0]["tokens"].tolist(), is_torchvision_available())
"""


def with_torchvision(folder: Path, start: str) -> "subprocess.CompletedProcess[str]":
    """Make tensors beside a torchvision that begins like this."""
    (folder / "torchvision" / "io").mkdir(parents=True)
    (folder / "torchvision" / "__init__.py").write_text(start)
    (folder / "torchvision" / "io" / "__init__.py").write_text("")
    metadata = folder / "torchvision-0.29.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.29.1\n")
    path = os.pathsep.join([str(folder), str(PACKAGE.parent)])
    return subprocess.run(
        [sys.executable, "-c", MAKE_TENSORS],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_built_for_another_pytorch(tmp_path: Path):
    done = with_torchvision(
        tmp_path, "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    assert done.stdout == "[1, 2] False\n", done.stderr
    assert "operator torchvision::nms does not exist" in done.stderr
    assert "pip uninstall torchvision" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_video_reader(tmp_path: Path):
    done = with_torchvision(tmp_path, "")
    assert done.stdout == "[1, 2] True\n", done.stderr
    assert done.stderr == ""


def test_it_comes_before_sae_lens():
    source = inspect.getsource(sae_lens_matryoshka.register)
    assert source.index("hide_unusable_torchvision()") < source.index("from sae_lens.")
