"""The model: opened from a folder, checked against the hook, known by its content."""

import shutil
from pathlib import Path

import pytest
import torch
from bench_helpers import HOOK

from sae_lens_matryoshka.bench.config import ModelSource
from sae_lens_matryoshka.bench.inputs.models import (
    check_hook,
    check_same_model,
    demo_key,
    model_fingerprint,
    open_model,
)
from sae_lens_matryoshka.demo.model import MODEL_FOLDER
from sae_lens_matryoshka.loading.hub_access import NotFetchedError
from sae_lens_matryoshka.settings.yaml_file import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    # a name that TransformerLens would take for another architecture
    return shutil.copytree(MODEL_FOLDER, tmp_path / "llama-gemma")


def test_a_folder_is_the_same_model_as_the_demo(folder: Path):
    demo = open_model(ModelSource(name="demo", device="cpu"))
    local = open_model(ModelSource(folder=folder, device="cpu"))
    tokens = torch.arange(1, 40)[None]
    assert torch.equal(demo(tokens), local(tokens))
    assert local.cfg.model_name == "llama-gemma"
    assert str(folder) not in repr(local.cfg)


def test_the_demos_saes_are_made_anew_where_their_training_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = shutil.copytree(MODEL_FOLDER.parents[1], tmp_path / "package")
    monkeypatch.setattr("sae_lens_matryoshka.demo.model.MODEL_FOLDER", package / "demo" / "model")
    keys = [demo_key()]
    assert demo_key() == keys[0]
    for name in ("recipes.py", "engine/sparse.py", "demo/quickstart.py", "demo/model/config.json"):
        with (package / name).open("a") as file:
            file.write(" ")
        keys.append(demo_key())
    assert len(set(keys)) == 5
    (package / "hub" / "card.py").write_text("")  # trains nothing
    assert demo_key() == keys[-1]


def test_a_folder_can_be_told_to_start_with_bos(folder: Path):
    tokens = [
        open_model(ModelSource(folder=folder, prepend_bos=bos)).to_tokens(" a")[0].tolist()
        for bos in (True, False, None)
    ]
    assert tokens[0] == [0, *tokens[1]]
    assert tokens[2] == tokens[1]  # what TransformerLens assumes of this architecture


def test_temporary_folders_of_telling_names_do_not_matter(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import tempfile

    expected = open_model(ModelSource(folder=folder)).cfg
    scratch = tmp_path / "llama"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    assert open_model(ModelSource(folder=folder)).cfg == expected


def test_an_sae_of_another_model_is_refused():
    source = ModelSource(name="pythia-160m-deduped")
    check_same_model(source, "EleutherAI/pythia-160m-deduped", "a")
    check_same_model(source, "my-own-model", "a")
    check_same_model(source, None, "a")
    with pytest.raises(ConfigError, match="'a' was trained on gpt2, but the model is pythia-160m"):
        check_same_model(source, "gpt2", "a")


def test_data_types_are_those_asked_for(folder: Path):
    for source in (
        ModelSource(name="demo", dtype="bfloat16"),
        ModelSource(folder=folder, dtype="bfloat16"),
    ):
        assert open_model(source).W_E.dtype == torch.bfloat16


def test_hooks_and_sizes_are_checked():
    model = open_model(ModelSource(name="demo", device="cpu"))
    check_hook(model, HOOK, {"a": 256})
    check_hook(model, "blocks.1.attn.hook_z", {"a": 256})  # heads are flattened
    with pytest.raises(
        ConfigError, match="no hook 'blocks.9.hook_resid_post'. Did you mean blocks"
    ):
        check_hook(model, "blocks.9.hook_resid_post", {"a": 256})
    with pytest.raises(ConfigError, match="has 256 numbers per token, but SAE 'b' reads 100"):
        check_hook(model, HOOK, {"a": 256, "b": 100})


def test_a_fingerprint_follows_weights_and_tokenizer(folder: Path):
    source = ModelSource(folder=folder)
    before = model_fingerprint(source)
    assert before == model_fingerprint(ModelSource(name="demo"))
    (folder / "README.md").write_text("something else")
    assert model_fingerprint(source) == before
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    changed = model_fingerprint(source)
    assert changed != before
    tokenizer = folder / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    assert model_fingerprint(source) not in (before, changed)


def test_missing_models_are_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="the folder itself is missing"):
        model_fingerprint(ModelSource(folder=tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="config.json, tokenizer_config.json, .*safetensors"):
        model_fingerprint(ModelSource(folder=tmp_path))
    with pytest.raises(ConfigError, match="TransformerLens knows no 'gpt-17'"):
        model_fingerprint(ModelSource(name="gpt-17"))
    with pytest.raises(NotFetchedError, match="The model gpt2 .* as model.folder"):
        model_fingerprint(ModelSource(name="gpt2"))
