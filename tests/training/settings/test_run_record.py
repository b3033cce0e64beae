"""What is written down of a run's configuration."""

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sae_lens
import torch
from runner_helpers import (
    TinyModel,
    make_runner,
    options,
    tidy_process,  # noqa: F401  (a fixture of every test here)
    token_dataset,
)
from sae_lens import SAE, LoggingConfig

from sae_lens_matryoshka import LanguageModelSAERunnerConfig, MatryoshkaSAETrainingRunner
from sae_lens_matryoshka.training.settings.run_record import (
    plain,
    record_of,
    same_place,
    with_plain_values,
)


def written(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "output" / "runner_cfg.json").read_text())


def test_values_that_json_lacks_are_converted_and_the_input_is_kept(tmp_path: Path):
    given: dict[str, Any] = {
        "output_path": tmp_path / "output",
        "checkpoint_path": tmp_path / "checkpoints",
        "dataset_path": Path("data/set"),
        "lr": np.float32(3e-3),
        "training_tokens": np.int64(24 * 32),
        "device": torch.device("cpu"),
        "llm_device": torch.device("cpu"),
        "dtype": torch.float32,
        "prepend_bos": np.bool_(False),
        "logger": LoggingConfig(log_to_wandb=False, run_name=Path("my") / "run"),  # type: ignore
        "n_checkpoints": np.int32(1),
    }
    cfg = LanguageModelSAERunnerConfig(**options(tmp_path, **given))
    runner = MatryoshkaSAETrainingRunner(
        cfg, override_model=TinyModel(), override_dataset=token_dataset()
    )
    runner.run()
    assert isinstance(cfg.output_path, Path)
    SAE.load_from_disk(tmp_path / "output")
    saved = written(tmp_path)
    assert saved["output_path"] == str(tmp_path / "output")
    assert (saved["dtype"], saved["device"], saved["training_tokens"]) == ("float32", "cpu", 768)
    again = LanguageModelSAERunnerConfig.from_dict(saved)
    assert again.dataset_path == "data/set"


@pytest.mark.parametrize(
    "config_class", [LanguageModelSAERunnerConfig, None], ids=["ours", "stock"]
)
def test_what_has_no_json_form_is_refused_before_the_model_is_loaded(
    tmp_path: Path, config_class: Any
):
    cfg = LanguageModelSAERunnerConfig(**options(tmp_path, model_name="no/such-model"))
    if config_class is None:
        cfg = sae_lens.LanguageModelSAERunnerConfig.from_dict(cfg.to_dict())
    cfg.output_path = object()  # type: ignore[assignment]
    with pytest.raises(TypeError, match="output_path=<object .* cannot be saved"):
        MatryoshkaSAETrainingRunner(cfg)
    cfg.output_path = str(tmp_path)
    cfg.sae.metadata.note = datetime.date(2024, 1, 1)
    with pytest.raises(TypeError, match=r"metadata.note=datetime.date.* cannot be saved"):
        MatryoshkaSAETrainingRunner(cfg)


def test_an_sae_given_as_an_object_is_recorded_as_well(tmp_path: Path):
    sae = make_runner(tmp_path).sae
    sae.cfg.metadata.made_in = Path("lab")
    MatryoshkaSAETrainingRunner(
        LanguageModelSAERunnerConfig(**options(tmp_path)),
        override_model=TinyModel(),
        override_dataset=token_dataset(),
        override_sae=sae,
    ).run()
    assert SAE.load_from_disk(tmp_path / "output").cfg.metadata.made_in == "lab"


def test_objects_for_the_model_are_described_and_not_copied(tmp_path: Path):
    class Model:
        def __deepcopy__(self, memo: Any) -> Any:
            raise AssertionError("copied")

    cfg = LanguageModelSAERunnerConfig(**options(tmp_path, n_checkpoints=1))
    model = Model()
    cfg.model_from_pretrained_kwargs = {
        "hf_model": model,
        "parts": [{"model": model}],
        "torch_dtype": torch.bfloat16,
    }
    runner = MatryoshkaSAETrainingRunner(
        cfg, override_model=TinyModel(), override_dataset=token_dataset()
    )
    assert runner.cfg.model_from_pretrained_kwargs["hf_model"] is model  # type: ignore[index]
    runner.run()
    saved = written(tmp_path)["model_from_pretrained_kwargs"]
    assert saved["torch_dtype"] == "bfloat16"
    assert "Model object" in saved["hf_model"]
    metadata = SAE.load_from_disk(tmp_path / "output").cfg.metadata
    assert metadata.model_from_pretrained_kwargs == {"torch_dtype": "bfloat16"}
    for name in ("hf_model", "parts"):
        with pytest.raises(ValueError, match=f"{name}.*only describe"):
            make_runner(tmp_path, model_from_pretrained_kwargs={name: saved[name]})


def test_the_record_of_plain_values_is_saelens_own(tmp_path: Path):
    cfg = LanguageModelSAERunnerConfig(**options(tmp_path, seqpos_slice=(1, 5), lr_decay_steps=3))
    assert record_of(with_plain_values(cfg)) == cfg.to_dict()
    stock = sae_lens.LanguageModelSAERunnerConfig.from_dict(cfg.to_dict())
    assert record_of(with_plain_values(stock)) == stock.to_dict()


def test_the_home_folder_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    runner = make_runner(tmp_path / "x", output_path="~/output", checkpoint_path="~/ck")
    assert runner.output_path == tmp_path / "output"
    assert tmp_path / "ck" in runner.checkpoint_path.parents  # type: ignore[union-attr]


def test_plain_values():
    assert plain((1, Path("a"), {"b": np.float64(2)}), "x") == (1, "a", {"b": 2.0})
    assert plain(np.arange(2), "x") == [0, 1]
    with pytest.raises(TypeError, match=r"x\[1\]=.* is a set"):
        plain([1, {2}], "x")


def test_paths_that_differ_in_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for spelling in ("data", "data/", "~/data", "./data", str(tmp_path / "data")):
        assert same_place(spelling, str(tmp_path / "data"))
    assert same_place("org/data/", "org/data")
    assert not same_place("org/data", "org/other")
