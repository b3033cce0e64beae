"""A resumed run must go on with the training that its checkpoint is of."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from runner_helpers import (
    CONTEXT,
    TinyModel,
    interrupted,
    make_runner,
    options,
    random_tokens,
    tidy_process,  # noqa: F401  (a fixture of every test here)
    token_dataset,
)

from sae_lens_matryoshka import LanguageModelSAERunnerConfig, MatryoshkaSAETrainingRunner
from sae_lens_matryoshka.training.resuming.resume_check import check_run_is_kept
from sae_lens_matryoshka.training.settings.run_record import with_plain_values

CONSTANT: dict[str, Any] = {"lr_scheduler_name": "constant", "lr_decay_steps": 0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return interrupted(make_runner(tmp_path_factory.mktemp("run"), **CONSTANT), step=10)


def check(folder: Path, checkpoint: str, **changes: Any) -> None:
    cfg = LanguageModelSAERunnerConfig(**options(folder, **(CONSTANT | changes)))
    check_run_is_kept(checkpoint, with_plain_values(cfg))


@pytest.mark.parametrize(
    "change",
    [
        {"model_name": "other"},
        {"model_class_name": "AutoModelForCausalLM"},
        {"model_from_pretrained_kwargs": {"dtype": "float16"}},
        {"model_kwargs": {"stop": 1}},
        {"hook_name": "blocks.0.hook_resid_pre"},
        {"hook_head_index": 1},
        {"dataset_path": "other"},
        {"context_size": 4},
        {"prepend_bos": True},
        {"seqpos_slice": (1,)},
        {"disable_concat_sequences": True},
        {"sequence_separator_token": None},
        {"exclude_special_tokens": [1]},
        {"use_cached_activations": True},
        {"is_dataset_tokenized": False, "use_chat_formatting": True},
        {"seed": 1},
    ],
    ids=str,
)
def test_another_training_is_refused_before_the_model_is_loaded(
    tmp_path: Path, checkpoint: str, change: dict[str, Any]
):
    name, value = list(change.items())[-1]
    with pytest.raises(ValueError, match=f"was trained with .*{name}=") as caught:
        check(tmp_path, checkpoint, **change)
    shown = list(value) if isinstance(value, tuple) else value
    assert f"{name}={shown!r}" in str(caught.value).partition(", not ")[2]
    if "model_name" in change:
        cfg = options(tmp_path, resume_from_checkpoint=checkpoint, **CONSTANT, **change)
        with pytest.raises(ValueError, match="was trained with model_name='tiny'"):
            MatryoshkaSAETrainingRunner(LanguageModelSAERunnerConfig(**cfg))


@pytest.mark.parametrize(
    "change",
    [
        {"store_batch_size_prompts": 4},
        {"n_batches_in_buffer": 20},
        {"train_batch_size_tokens": 16},
        {"activations_mixing_fraction": 0.25},
        {"dead_feature_window": 3},
        {"feature_sampling_window": 8},
        {"autocast": True},
        {"autocast_lm": True},
        {"dtype": "bfloat16"},
        {"max_nonfinite_fraction": 0.5},
    ],
    ids=str,
)
def test_other_changes_are_reported_by_name(
    tmp_path: Path, checkpoint: str, change: dict[str, Any], caplog: pytest.LogCaptureFixture
):
    check(tmp_path, checkpoint, **change)
    ((name, value),) = change.items()
    assert f"with {name}={value!r} instead of {name}=" in caplog.text


def test_where_a_run_computes_and_writes_may_change(
    tmp_path: Path, checkpoint: str, caplog: pytest.LogCaptureFixture
):
    check(
        tmp_path,
        checkpoint,
        n_checkpoints=7,
        llm_device="meta",
        prefetch_llm_batches=2,
        output_path=None,
        training_tokens=10_000,
    )
    assert "Resuming from" not in caplog.text


@pytest.mark.parametrize(("tokens", "is_less"), [(319, True), (320, False), (32, True)])
def test_fewer_tokens_than_are_done(tmp_path: Path, checkpoint: str, tokens: int, is_less: bool):
    short = {"training_tokens": tokens, "lr_warm_up_steps": 5}
    short |= {"lr_warm_up_steps": 0} if tokens < 320 else {}
    if not is_less:
        check(tmp_path, checkpoint, **short)
        return
    with pytest.raises(
        ValueError, match=f"training_tokens={tokens} is less than the 320 tokens|lr_warm"
    ):
        check(tmp_path, checkpoint, **short)


def test_a_finished_run_of_a_part_of_a_batch_may_be_resumed(tmp_path: Path):
    odd: dict[str, Any] = {**CONSTANT, "training_tokens": 310}  # the last batch goes on to 320
    runner = make_runner(tmp_path, **odd)
    checkpoint = interrupted(runner, step=10)
    make_runner(tmp_path, resume_from_checkpoint=checkpoint, **odd).run()
    assert (tmp_path / "output" / "cfg.json").exists()


def test_the_same_data_at_another_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    first = make_runner(tmp_path, dataset_path=str(tmp_path / "data"), **CONSTANT)
    checkpoint = interrupted(first, step=3)
    check(tmp_path, checkpoint, dataset_path="~/data/")


def test_other_data_under_the_same_name_are_reported(
    tmp_path: Path, checkpoint: str, caplog: pytest.LogCaptureFixture
):
    def resume(seed: int) -> None:
        data = Dataset.from_dict({"tokens": random_tokens(600, CONTEXT, seed)})
        make_runner(tmp_path, data, resume_from_checkpoint=checkpoint, **CONSTANT).run()

    resume(seed=1)
    assert "the dataset or the tokenizer has changed" not in caplog.text
    resume(seed=5)
    assert "the dataset or the tokenizer has changed" in caplog.text


def test_another_model_of_the_same_name_is_reported(
    tmp_path: Path, checkpoint: str, caplog: pytest.LogCaptureFixture
):
    cfg = LanguageModelSAERunnerConfig(
        **options(tmp_path, resume_from_checkpoint=checkpoint, **CONSTANT)
    )

    def resume(model: TinyModel) -> None:
        MatryoshkaSAETrainingRunner(cfg, override_model=model, override_dataset=token_dataset())

    resume(TinyModel())
    assert "another model" not in caplog.text
    other = TinyModel()
    other.blocks[0].mlp.W_in.data += 1.0
    resume(other)
    assert "with another model than it was trained on: other weights (1 of" in caplog.text
