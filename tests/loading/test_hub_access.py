"""Without a network: one message that names what is missing and what to give instead."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_helpers import FLAGS, invoke

import sae_lens_matryoshka
from sae_lens_matryoshka import hub
from sae_lens_matryoshka.bench.config import ModelSource
from sae_lens_matryoshka.bench.inputs.data import data_fingerprints
from sae_lens_matryoshka.bench.inputs.models import model_fingerprint
from sae_lens_matryoshka.loading.download import download_sae
from sae_lens_matryoshka.loading.hub_access import NotFetchedError, fetching
from sae_lens_matryoshka.loading.published import load_published


# The whole test run has HF_HUB_OFFLINE set.
def test_every_way_to_the_hub(tmp_path: Path):
    for what, fetch in {
        "a/b": lambda: data_fingerprints(None, {"core": ["a/b"]}),
        "gpt2": lambda: model_fingerprint(ModelSource(name="gpt2")),
        "me/x": lambda: download_sae("me/x", "y"),
        "gpt2-small-res-jb": lambda: load_published("gpt2-small-res-jb", "blocks.8.hook_resid_pre"),
        "me/y": lambda: hub.convert("me/y", tmp_path / "out"),
    }.items():
        with pytest.raises(NotFetchedError, match="HF_HUB_OFFLINE is set") as error:
            fetch()
        assert what in str(error.value)
        assert "folder" in str(error.value)
        assert len(str(error.value).splitlines()) == 1


def test_training_on_what_is_not_here():
    batch = ["--train_batch_size_tokens", "512"]
    result = invoke("train", *FLAGS, *batch, "--log_to_wandb", "False")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Error: The model gpt2 could not be fetched")
    assert "local folder" in result.stderr
    for unwanted in ("Traceback", "--debug"):
        assert unwanted not in result.stderr


@pytest.mark.slow
def test_a_network_that_leads_nowhere(tmp_path: Path):
    code = "import sys; sys.argv[0] = 'sae-lens-matryoshka'\nfrom sae_lens_matryoshka.cli import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", code, "convert", "me/x", "out"],
        cwd=tmp_path,
        env=os.environ
        | {
            "PYTHONPATH": str(Path(sae_lens_matryoshka.__file__).parents[1]),
            "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": "http://127.0.0.1:9",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "me/x" in done.stderr.splitlines()[-1]
    assert "there is no connection" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_other_errors_are_as_they_are():
    with pytest.raises(ValueError, match="^other$"), fetching("x", "y"):
        raise ValueError("other")
    with pytest.raises(FileNotFoundError, match="^no file$"), fetching("x", "y"):
        raise FileNotFoundError("no file")


def test_a_connection_that_breaks_off():
    with (
        pytest.raises(
            NotFetchedError, match="^The model x could not be fetched .* Give a folder.$"
        ),
        fetching(lambda: "The model x", "Give a folder."),
    ):
        try:
            raise TimeoutError("timed out")
        except TimeoutError as error:
            raise RuntimeError("Cannot load x") from error
