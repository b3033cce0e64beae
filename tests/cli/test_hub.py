"""The commands publish and convert."""

import json
from pathlib import Path
from typing import Any

import pytest
from bench_helpers import HOOK, WIDTHS, random_sae
from cli_helpers import invoke
from safetensors.torch import load_file, save_file

from sae_lens_matryoshka import MatryoshkaSAE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random_sae(widths=WIDTHS).save_model(tmp_path / "run=1" / "sae")
    return tmp_path / "run=1" / "sae"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `hub.publish` was called with; it does nothing else."""
    found: list[Any] = []

    def publish(*args: Any, **options: Any) -> str:
        found.append((args, options))
        return "https://the.hub/commit/1"

    monkeypatch.setattr("sae_lens_matryoshka.hub.publish", publish, raising=False)
    return found


@pytest.mark.slow
def test_a_dry_run_in_full(folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    done = invoke("publish", folder, "--repo-id", "me/x", "--levels", "--dry-run", out)
    assert done.exit_code == 0, done.output
    assert f"Nothing was uploaded. What would be is in {out}" in done.stdout
    assert (out / "README.md").read_text().startswith("---\n")
    assert MatryoshkaSAE.from_pretrained(str(out), HOOK).widths == tuple(WIDTHS)
    assert (out / HOOK / "level_0_width_16" / "cfg.json").is_file()


def test_all_options(folder: Path, tmp_path: Path, calls: list[Any]):
    done = invoke(
        *("publish", f"a/b={folder}", folder, "--repo-id", "me/x", "--revision", "next"),
        *("--private", "--license", "mit", "--levels", "--results", tmp_path),
        "--allow-plugin-only",
    )
    assert done.exit_code == 0, done.output
    assert calls == [
        (
            ({"a/b": folder, HOOK: folder}, "me/x"),
            {
                "revision": "next",
                "private": True,
                "license": "mit",
                "levels": True,
                "dry_run": None,
                "results": tmp_path,
                "allow_plugin_only": True,
            },
        )
    ]
    assert "Published: https://the.hub/commit/1" in done.stdout
    assert '  MatryoshkaSAE.from_pretrained("me/x", "a/b", revision="next")' in done.stdout
    done = invoke("publish", f"a/b={folder}", "--repo-id", "me/x")
    assert '  SAE.from_pretrained("me/x", "a/b")' in done.stdout


def test_ids(folder: Path, tmp_path: Path, calls: list[Any]):
    done = invoke("publish", f"a={folder}", f"a={folder}", "--repo-id", "me/x")
    assert done.exit_code == 2
    assert "Two SAEs would be called 'a'" in done.stderr
    done = invoke("publish", tmp_path / "run=1", "--repo-id", "me/x")
    assert done.exit_code == 2
    assert f"There are SAEs in {folder}" in done.stderr
    cfg = json.loads((folder / "cfg.json").read_text())
    del cfg["metadata"]["hook_name"]
    (folder / "cfg.json").write_text(json.dumps(cfg))
    done = invoke("publish", folder, "--repo-id", "me/x")
    assert done.exit_code == 2
    assert f"Give it an id: ID={folder}" in done.stderr
    assert not calls


def test_what_cannot_be_published_is_unusable_input(folder: Path, tmp_path: Path):
    weights = load_file(folder / "sae_weights.safetensors")
    weights["W_dec"] *= 2
    save_file(weights, folder / "sae_weights.safetensors")
    done = invoke("publish", folder, "--repo-id", "me/x", "--dry-run", tmp_path / "out")
    assert done.exit_code == 2
    assert "decoder rows of other norms" in done.stderr
    assert "--debug" not in done.stderr
    assert "Traceback" not in done.stderr


def test_convert(folder: Path, tmp_path: Path):
    out = tmp_path / "converted"
    done = invoke("convert", folder, out, "--model-name", "gpt2", "--dataset-path", "a/b")
    assert done.exit_code == 0, done.output
    assert f"MatryoshkaSAE.load_from_disk({str(out)!r})" in done.stdout
    metadata = MatryoshkaSAE.load_from_disk(out).sae.cfg.metadata
    assert (metadata.model_name, metadata.dataset_path) == ("gpt2", "a/b")


def test_convert_an_sae_without_named_levels(tmp_path: Path):
    random_sae().save_model(tmp_path / "flat")
    done = invoke("convert", tmp_path / "flat", tmp_path / "out", "--widths", "16,64")
    assert done.exit_code == 0, done.output
    assert MatryoshkaSAE.load_from_disk(tmp_path / "out").widths == (16, 64, 160)
    done = invoke("convert", tmp_path / "flat", tmp_path / "out2", "--widths", "16;64")
    assert done.exit_code == 2
    assert "give whole numbers with commas" in done.stderr
