"""SAEs that are measured on another model than they were trained on are named."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_helpers import random_sae
from safetensors.torch import load_file, save_file

from sae_lens_matryoshka.bench import checked_config, run
from sae_lens_matryoshka.bench.config import BenchConfig
from sae_lens_matryoshka.bench.inputs.models import open_model
from sae_lens_matryoshka.bench.inputs.same_model import identity_warning, name_warning
from sae_lens_matryoshka.demo.model import MODEL_FOLDER
from sae_lens_matryoshka.loading.model_identity import KEY, differences, model_identity


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(MODEL_FOLDER, tmp_path / "my-model")


@pytest.fixture
def local(settings: dict[str, Any], folder: Path) -> BenchConfig:
    return checked_config({**settings, "model": {"folder": str(folder), "device": "cpu"}})


def change(folder: Path, **settings: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def fine_tuned(folder: Path, by: float = 1e-3) -> Path:
    """The same model after a few small steps."""
    weights = load_file(folder / "model.safetensors")
    changed = {name: tensor + by * torch.ones_like(tensor) for name, tensor in weights.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_sizes_of_a_named_model_are_compared(local: BenchConfig, folder: Path):
    assert name_warning(local, "a", {"model_name": "demo"}) is None  # other name, same sizes
    assert name_warning(local, "a", {}) is None
    change(folder, num_hidden_layers=6, vocab_size=5000)
    warning = name_warning(local, "a", {"model_name": "demo"})
    assert warning is not None
    for part in ("'a' was trained on demo", str(folder), "layers 4, here 6", "4096, here 5000"):
        assert part in warning


def test_a_name_in_the_folder_is_compared(local: BenchConfig, folder: Path):
    change(folder, _name_or_path="EleutherAI/pythia-70m")
    warning = name_warning(local, "a", {"model_name": "gpt2"})
    assert warning is not None
    assert "trained on gpt2" in warning
    assert "names EleutherAI/pythia-70m" in warning


def test_what_cannot_be_compared_is_told(local: BenchConfig, settings: dict[str, Any]):
    """Without a network nothing is known of gpt2."""
    warning = name_warning(local, "a", {"model_name": "gpt2"})
    assert warning is not None
    assert warning.endswith("Whether the two are the same is not known.")
    assert name_warning(local, "a", {"model_name": "user/my-model"}) is None  # the folder's name
    demo = checked_config(settings)
    assert name_warning(demo, "a", {"model_name": "demo"}) is None
    assert name_warning(demo, "a", {"model_name": "gpt2"}) is not None


def test_weights_tell_models_of_one_size_apart(local: BenchConfig, folder: Path):
    trained_on = model_identity(open_model(local.model))
    metadata = json.loads(json.dumps({KEY: trained_on, "model_name": "mine"}))
    assert identity_warning(local, "a", metadata, trained_on) is None
    half = local.model.model_copy(update={"dtype": "bfloat16"})
    assert identity_warning(local, "a", metadata, model_identity(open_model(half))) is None
    fine_tuned(folder)
    for source in (local.model, half):
        warning = identity_warning(local, "a", metadata, model_identity(open_model(source)))
        assert warning is not None
        assert "trained on mine" in warning
        assert "other weights" in warning
    assert identity_warning(local, "a", {"model_name": "mine"}, trained_on) is None
    other = {**trained_on, "n_layers": 6}
    assert "n_layers 6, here 4" in str(identity_warning(local, "a", {KEY: other}, trained_on))


def test_a_hugging_face_model_has_the_same_sizes(local: BenchConfig):
    from sae_lens.load_model import load_model

    theirs = model_identity(load_model("AutoModelForCausalLM", str(MODEL_FOLDER), device="cpu"))
    ours = model_identity(open_model(local.model))
    assert theirs == {key: ours[key] for key in theirs}
    assert len(theirs) == 4
    assert differences(theirs, ours) == []
    assert differences({**theirs, "d_model": 512}, ours) == ["d_model 512, here 256"]


@pytest.mark.slow
def test_the_warning_is_logged_and_in_the_results(
    settings: dict[str, Any], folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    sae, changed = random_sae(), fine_tuned(folder)
    sae.cfg.metadata[KEY] = model_identity(open_model(checked_config(settings).model))
    sae.save_model(tmp_path / "mine")
    named = random_sae()
    named.cfg.metadata.model_name = "gpt2"
    named.save_model(tmp_path / "named")
    saes = [{"name": name, "folder": str(tmp_path / name)} for name in ("mine", "named")]
    settings = {**settings, "model": {"folder": str(changed), "device": "cpu"}, "saes": saes}
    with caplog.at_level(logging.WARNING):
        report = run(settings, only=[], verbose=False)
    assert len(report.warnings) == 2
    for warning in report.warnings:
        assert warning in caplog.text
        assert warning in (tmp_path / "out" / "results.md").read_text()
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["warnings"] == list(report.warnings)
    assert record["trained_on"] == {"mine": "demo", "named": "gpt2"}
    again = run(settings, only=[], verbose=False)
    assert again.warnings == report.warnings  # nothing was measured again
