"""Training on cached activations: what they were made with is what counts."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from datasets import Array2D, Dataset, Features, Sequence, Value
from runner_helpers import (
    CONTEXT,
    D_IN,
    HOOK,
    TinyModel,
    assert_same,
    options,
    results,
    tidy_process,  # noqa: F401  (a fixture of every test here)
    token_dataset,
)
from sae_lens import SAE, CacheActivationsRunner, CacheActivationsRunnerConfig, LoggingConfig

from sae_lens_matryoshka import LanguageModelSAERunnerConfig, MatryoshkaSAETrainingRunner
from sae_lens_matryoshka.demo.model import MODEL_FOLDER
from sae_lens_matryoshka.settings.yaml_file import read_settings
from sae_lens_matryoshka.training.activations.cached import RECORD_FILENAME
from sae_lens_matryoshka.training.settings.from_file import checked_config


def cache(folder: Path, record: dict[str, Any] | None = None, **columns: Any) -> Path:
    """A cache of random activations, and the record that SAELens would publish with it."""
    n_positions = columns.pop("n_positions", CONTEXT)
    activations = torch.randn(300, n_positions, D_IN, generator=torch.Generator().manual_seed(2))
    features = Features({HOOK: Array2D(shape=(n_positions, D_IN), dtype="float32")})
    data = {HOOK: activations.numpy()}
    if columns.pop("token_ids", False):
        features["token_ids"] = Sequence(Value("int32"), length=n_positions)
        data["token_ids"] = [[1, 2] + [3] * (n_positions - 2)] * 300  # type: ignore
    Dataset.from_dict(data, features=features).save_to_disk(folder / "cache")
    if record is not None:
        made_with = CacheActivationsRunnerConfig(
            **{
                "dataset_path": "my/text",
                "model_name": "tiny",
                "model_batch_size": 4,
                "hook_name": HOOK,
                "d_in": D_IN,
                "training_tokens": 2400,
                "context_size": CONTEXT,
                "device": "cpu",
            }
            | record
        )
        (folder / "cache" / RECORD_FILENAME).write_text(json.dumps(asdict(made_with)))
    return folder / "cache"


def config(folder: Path, **changes: Any) -> LanguageModelSAERunnerConfig[Any]:
    given = options(folder) | {
        "use_cached_activations": True,
        "cached_activations_path": str(folder / "cache"),
    }
    for name in ("dataset_path", "context_size", "prepend_bos"):
        del given[name]
    return LanguageModelSAERunnerConfig(**given | changes)


def trained(folder: Path, **changes: Any) -> SAE[Any]:
    cfg = config(folder, **changes)
    MatryoshkaSAETrainingRunner(cfg, override_model=TinyModel()).run()
    return SAE.load_from_disk(folder / "output")


def test_the_dataset_is_not_needed(tmp_path: Path):
    for name, dataset_path in [("none", ""), ("missing", str(tmp_path / "nowhere"))]:
        cache(tmp_path / name)
        trained(tmp_path / name, dataset_path=dataset_path)
    assert_same(results(tmp_path / "missing"), results(tmp_path / "none"))


def test_the_record_becomes_the_metadata(tmp_path: Path):
    cache(tmp_path, {"prepend_bos": False})
    metadata = trained(tmp_path).cfg.metadata
    assert metadata.dataset_path == "my/text"
    assert metadata.prepend_bos is False
    assert metadata.context_size == CONTEXT
    assert metadata.sequence_separator_token == "bos"
    assert metadata.hook_head_index is None
    written = json.loads((tmp_path / "output" / "runner_cfg.json").read_text())
    assert (written["dataset_path"], written["prepend_bos"]) == ("my/text", False)
    again = LanguageModelSAERunnerConfig.from_dict(written)
    MatryoshkaSAETrainingRunner(again, override_model=TinyModel())  # what it wrote fits itself


def test_a_torn_record_is_named(tmp_path: Path):
    cache(tmp_path, {"prepend_bos": False})
    (tmp_path / "cache" / RECORD_FILENAME).write_text("{")
    with pytest.raises(ValueError, match=f"{RECORD_FILENAME} cannot be read"):
        trained(tmp_path)


def test_without_a_record_nothing_is_stated(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    cache(tmp_path)
    sae = trained(tmp_path, prepend_bos=False, dataset_path="my/text")
    for name in (
        "dataset_path",
        "prepend_bos",
        "sequence_separator_token",
        "disable_concat_sequences",
        "seqpos_slice",
    ):
        assert sae.cfg.metadata[name] is None
    assert sae.cfg.metadata.context_size == CONTEXT
    assert RECORD_FILENAME in caplog.text


@pytest.mark.parametrize(
    ("record", "changes", "recorded", "given"),
    [
        ({"prepend_bos": True}, {"prepend_bos": False}, "prepend_bos=True", "prepend_bos=False"),
        ({}, {"dataset_path": "other"}, "dataset_path='my/text'", "dataset_path='other'"),
        ({}, {"model_name": "gpt2"}, "model_name='tiny'", "model_name='gpt2'"),
        ({}, {"context_size": 4}, "context_size=8", "context_size=4"),
        ({}, {"seqpos_slice": (1, None)}, "(None,)", "(1, None)"),
        ({}, {"sequence_separator_token": "eos"}, "'bos'", "'eos'"),
        ({}, {"disable_concat_sequences": True}, "sequences=False", "sequences=True"),
        ({}, {"hook_head_index": 1}, "hook_head_index=None", "hook_head_index=1"),
        (
            {"model_class_name": "AutoModelForCausalLM"},
            {"model_class_name": "HookedMamba"},
            "'AutoModelForCausalLM'",
            "'HookedMamba'",
        ),
    ],
    ids=str,
)
def test_what_contradicts_the_record_is_refused(
    tmp_path: Path, record: dict[str, Any], changes: dict[str, Any], recorded: str, given: str
):
    cache(tmp_path, record)
    with pytest.raises(ValueError) as caught:
        MatryoshkaSAETrainingRunner(config(tmp_path, **changes))
    assert recorded in str(caught.value)
    assert given in str(caught.value)


@pytest.mark.parametrize("has_record", [True, False])
@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"d_in": 12}, ValueError, "Set d_in=16"),
        ({"hook_name": "blocks.0.hook_resid_pre"}, ValueError, f"activations of '{HOOK}'"),
        ({"exclude_special_tokens": [1]}, ValueError, "holds no token_ids"),
        ({"store_batch_size_prompts": 301}, ValueError, "300 rows"),
        ({"hook_head_index": 1}, ValueError, "hook_head_index=1"),
        ({"context_size": 4}, ValueError, "context_size=4"),
        ({"seqpos_slice": (2, None), "context_size": 8}, ValueError, "seqpos_slice"),
        ({"cached_activations_path": "nowhere"}, FileNotFoundError, "'nowhere'"),
    ],
    ids=str,
)
def test_what_the_cache_itself_shows(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], says: str, has_record: bool
):
    cache(tmp_path, {} if has_record else None)
    with pytest.raises(error, match=says):
        MatryoshkaSAETrainingRunner(config(tmp_path, **changes))


@pytest.mark.parametrize("given", [{}, {"context_size": 8, "seqpos_slice": (2, None)}], ids=str)
def test_sliced_activations(tmp_path: Path, given: dict[str, Any]):
    cache(tmp_path, {"seqpos_slice": (2, None)}, n_positions=6)
    metadata = trained(tmp_path, **given).cfg.metadata
    assert metadata.context_size == 8
    assert tuple(metadata.seqpos_slice) == (2, None)


def test_excluded_tokens_are_excluded(tmp_path: Path):
    cache(tmp_path, token_ids=True)
    cfg = config(tmp_path, exclude_special_tokens=[1, 2])
    runner = MatryoshkaSAETrainingRunner(cfg, override_model=TinyModel())
    assert len(runner.activations_store.get_filtered_llm_batch()) == 5 * (CONTEXT - 2)


@pytest.mark.parametrize("text", ["given", "missing"])
def test_evaluations_need_text_and_are_left_out_without(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    cache(tmp_path)
    logged = LoggingConfig(wandb_log_frequency=2, eval_every_n_wandb_logs=3)
    changes = {"logger": logged, "n_eval_batches": 1, "dataset_path": str(tmp_path / "nowhere")}
    runner = MatryoshkaSAETrainingRunner(
        config(tmp_path, prepend_bos=False, **changes),
        override_model=TinyModel(),
        override_dataset=token_dataset() if text == "given" else None,
    )
    runner.run()
    wandb.finish()
    assert bool(runner.model.seen) == (text == "given")
    assert ("without evaluations" in caplog.text) == (text == "missing")


def test_a_file_needs_no_dataset(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "d_in: 16\nd_sae: 32\nk: 3\nmodel_name: gpt2\nhook_name: x\nverbose: false\n"
        "use_cached_activations: true\ncached_activations_path: cache\n"
    )
    assert checked_config(read_settings(path, []), str(path)).dataset_path == ""
    with pytest.raises(ValueError, match="cached_activations_path='cache' has no effect"):
        checked_config(read_settings(path, ["use_cached_activations=false"]), str(path))


def test_what_saelens_caches(tmp_path: Path):
    """SAELens's own runner writes the cache; its configuration, beside it, is the record."""
    text = Dataset.from_dict({"text": [f"Text number {i} is short. " * 40 for i in range(40)]})
    cfg = CacheActivationsRunnerConfig(
        dataset_path="my-texts",
        model_name=str(MODEL_FOLDER),
        model_class_name="AutoModelForCausalLM",
        model_batch_size=4,
        hook_name="gpt_neox.layers.1",
        d_in=256,
        training_tokens=64 * 31,
        context_size=32,
        seqpos_slice=(1, None),
        buffer_size_gb=1e-3,
        device="cpu",
        new_cached_activations_path=str(tmp_path / "cache"),
    )
    CacheActivationsRunner(cfg, override_dataset=text).run()
    (tmp_path / "cache" / RECORD_FILENAME).write_text(json.dumps(asdict(cfg)))
    given = {"hook_name": cfg.hook_name, "d_in": 256, "model_name": str(MODEL_FOLDER)}
    runner = MatryoshkaSAETrainingRunner(config(tmp_path, **given, training_tokens=24 * 32))
    runner.run()
    metadata = SAE.load_from_disk(tmp_path / "output").cfg.metadata
    assert (metadata.dataset_path, metadata.context_size) == ("my-texts", 32)
    assert metadata.model_class_name == "AutoModelForCausalLM"
