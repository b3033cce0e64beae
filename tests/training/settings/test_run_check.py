"""What a run's options may be, and what a configuration shares with whoever made it."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_helpers import FLAGS, invoke
from runner_helpers import (
    TinyModel,
    make_runner,
    options,
    tidy_process,  # noqa: F401  (a fixture of every test here)
    token_dataset,
)
from sae_lens import SAE, LoggingConfig
from sae_lens.saes.sae import SAEMetadata

from sae_lens_matryoshka import LanguageModelSAERunnerConfig, MatryoshkaSAETrainingRunner


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"training_tokens": 0}, "training_tokens=0"),
        ({"training_tokens": -5}, "training_tokens=-5"),
        ({"training_tokens": 31}, "training_tokens=31 is less than one batch"),
        ({"training_tokens": 100.5}, "training_tokens=100.5"),
        ({"train_batch_size_tokens": 0}, "train_batch_size_tokens=0"),
        ({"context_size": 0}, "context_size=0"),
        ({"store_batch_size_prompts": 0}, "store_batch_size_prompts=0"),
        ({"n_batches_in_buffer": 0}, "n_batches_in_buffer=0"),
        ({"feature_sampling_window": 0}, "feature_sampling_window=0"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"logger": LoggingConfig(wandb_log_frequency=0)}, "wandb_log_frequency=0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": None}, "seed=None"),
        ({"seed": 2**32}, "seed=4294967296"),
        ({"cached_activations_path": "x"}, "use_cached_activations=True"),
    ],
    ids=str,
)
def test_impossible_options(tmp_path: Path, changes: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        LanguageModelSAERunnerConfig(**options(tmp_path, **changes))


def test_counts_may_be_written_as_floats(tmp_path: Path):
    changes = {"training_tokens": 768.0, "n_checkpoints": 1, "context_size": np.int64(8)}
    make_runner(tmp_path, **changes).run()
    written = json.loads((tmp_path / "output" / "runner_cfg.json").read_text())
    assert (written["training_tokens"], written["context_size"]) == (768, 8)


@pytest.mark.parametrize("changes", [["training_tokens=0"], ["seed=-1"]])
def test_the_command_line_refuses_them_at_once(config_file: Path, changes: list[str]):
    result = invoke("train", config_file, "--set", *changes)
    assert result.exit_code == 2
    assert changes[0] in result.stderr
    name, value = changes[0].split("=")
    result = invoke("train", *FLAGS, f"--{name}", value)
    assert result.exit_code == 2
    assert changes[0] in result.stderr


def test_files_and_flags_name_a_saved_sae(config_file: Path, runs: list[Any]):
    assert invoke("train", config_file, "--set", "from_pretrained_path=my-sae").exit_code == 0
    assert invoke("train", *FLAGS, "--from_pretrained_path", "my-sae").exit_code == 0
    assert [config.from_pretrained_path for config in runs] == ["my-sae", "my-sae"]


# ---- what is shared with the caller


class Loaded(torch.nn.Module):
    """A model that is large enough to be copied by nobody."""

    def __deepcopy__(self, memo: Any) -> "Loaded":
        raise AssertionError("copied")


def test_a_model_is_kept_and_containers_are_copied(tmp_path: Path):
    model = Loaded()
    given = {
        "model_from_pretrained_kwargs": {"hf_model": model, "options": {"a": [1]}},
        "matryoshka_widths": [4, 12, 32],
        "exclude_special_tokens": [1],
        "logger": LoggingConfig(log_to_wandb=False),
        "metadata": SAEMetadata(note={"a": [1]}),
    }
    shown = [str(given["metadata"]), copy.copy(given["logger"])]
    cfg = LanguageModelSAERunnerConfig(**options(tmp_path, **given))
    kwargs = cfg.model_from_pretrained_kwargs
    assert kwargs is not None
    assert kwargs["hf_model"] is model
    kwargs["options"]["a"].append(2)
    cfg.exclude_special_tokens.append(2)  # type: ignore[union-attr]
    cfg.sae.metadata.note["a"].append(2)
    cfg.sae.matryoshka_widths.append(64)
    assert given["model_from_pretrained_kwargs"] == {"hf_model": model, "options": {"a": [1]}}
    assert (given["exclude_special_tokens"], given["matryoshka_widths"]) == ([1], [4, 12, 32])
    assert [str(given["metadata"]), given["logger"]] == shown
    cfg.sae.metadata.model = model
    again = replace(cfg, seed=3)
    assert again.sae.metadata.model is model
    assert again.model_from_pretrained_kwargs["hf_model"] is model  # type: ignore[index]


def test_a_run_with_a_model_object_is_saved_without_it(tmp_path: Path):
    kwargs = {"hf_model": Loaded(), "center_writing_weights": False}
    cfg = LanguageModelSAERunnerConfig(
        **options(tmp_path, model_from_pretrained_kwargs=kwargs, n_checkpoints=1)
    )
    MatryoshkaSAETrainingRunner(
        cfg, override_model=TinyModel(), override_dataset=token_dataset()
    ).run()
    metadata = SAE.load_from_disk(tmp_path / "output").cfg.metadata
    assert metadata.model_from_pretrained_kwargs == {"center_writing_weights": False}
    written = json.loads((tmp_path / "output" / "runner_cfg.json").read_text())
    assert "Loaded" in written["model_from_pretrained_kwargs"]["hf_model"]
    with pytest.raises(ValueError, match="hf_model.*give the object"):
        LanguageModelSAERunnerConfig.from_dict(written)
