"""What the command line does with a run: resuming, stopping, failing, succeeding."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from signal import Signals
from types import SimpleNamespace
from typing import Any

import pytest
import sae_lens
import torch
from cli_helpers import FLAGS, fail_with, invoke
from runner_helpers import TinyModel, options, token_dataset

from sae_lens_matryoshka import LanguageModelSAERunnerConfig, MatryoshkaSAETrainingRunner
from sae_lens_matryoshka.training.interruption import TrainingFailed, TrainingInterrupted

# ---- resuming and stopping


def test_resume_with_the_saved_config(config_file: Path, tmp_path: Path, runs: list[Any]):
    invoke("train", config_file)
    checkpoint = tmp_path / "2024"
    checkpoint.mkdir()
    (checkpoint / "runner_cfg.json").write_text(json.dumps(runs[0].to_dict()))
    result = invoke("train", "--resume", checkpoint, "--set", "n_checkpoints=3")
    assert result.exit_code == 0, result.stderr
    changed = {"resume_from_checkpoint": str(checkpoint), "n_checkpoints": 3}
    assert runs[1].to_dict() == runs[0].to_dict() | changed


def test_resume_with_a_file_or_flags(config_file: Path, runs: list[Any]):
    assert invoke("train", config_file, "--resume", "3e4").exit_code == 0
    assert invoke("train", *FLAGS, "--resume", "3e4").exit_code == 0
    assert [config.resume_from_checkpoint for config in runs] == ["3e4", "3e4"]


def test_resume_from_what_is_no_checkpoint(tmp_path: Path):
    result = invoke("train", "--resume", tmp_path)
    assert result.exit_code == 2
    assert "runner_cfg.json" in result.stderr


@pytest.mark.parametrize(("signum", "code"), [(Signals.SIGINT, 130), (Signals.SIGTERM, 143)])
def test_an_interrupted_run_says_how_to_go_on(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, signum: Signals, code: int
):
    fail_with(monkeypatch, TrainingInterrupted(signum, 7, Path("my checkpoints/1792")))
    result = invoke("train", config_file)
    assert result.exit_code == code
    assert result.stdout.splitlines() == [
        "Everything is saved in my checkpoints/1792. To go on from there:",
        "sae-lens-matryoshka train --resume 'my checkpoints/1792'",
    ]


def test_a_failed_run_says_how_to_go_on(config_file: Path, monkeypatch: pytest.MonkeyPatch):
    error = ConnectionError("the server hung up")
    fail_with(monkeypatch, TrainingFailed(error, 7, Path("my checkpoints/1792")))
    result = invoke("train", config_file)
    assert result.exit_code == 1
    assert (
        result.stdout.splitlines()[1] == "sae-lens-matryoshka train --resume 'my checkpoints/1792'"
    )
    assert "the server hung up" in result.stderr
    assert "Traceback" not in result.stderr


def test_resume_takes_the_newest_complete_checkpoint_of_a_folder(tmp_path: Path):
    config = LanguageModelSAERunnerConfig(**options(tmp_path, n_checkpoints=2))
    runner = MatryoshkaSAETrainingRunner(
        config, override_model=TinyModel(), override_dataset=token_dataset()
    )
    runner.run()
    folder = runner.checkpoint_path
    assert folder is not None
    configs: list[Any] = []

    def resume(path: Path) -> Any:
        def note(config: Any) -> Any:
            configs.append(config)
            return SimpleNamespace(run=lambda: None)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sae_lens_matryoshka.training.runner.MatryoshkaSAETrainingRunner", note)
            return invoke("train", "--resume", path)

    for path in (folder, folder.parent):
        result = resume(path)
        assert result.exit_code == 0, result.stderr
        assert f"Resuming from {folder / '544'}, the newest" in result.stdout
        assert configs[-1].resume_from_checkpoint == str(folder / "544")
    state = folder / "544" / "trainer_state.pt"
    state.write_bytes(state.read_bytes()[:-100])
    result = resume(folder)
    assert f"{folder / '544'} is damaged: trainer_state.pt" in result.stderr
    assert configs[-1].resume_from_checkpoint == str(folder / "288")
    (folder / "288" / "cfg.json").write_text("{")
    result = resume(folder)
    assert result.exit_code == 2
    for part in ("trainer_state.pt", "cfg.json", "No checkpoint in"):
        assert part in result.stderr
    result = invoke("train", "--resume", folder / "544")
    assert result.exit_code == 2
    assert "is damaged: trainer_state.pt" in result.stderr


def test_an_interrupted_run_without_checkpoints(config_file: Path, monkeypatch: pytest.MonkeyPatch):
    fail_with(monkeypatch, TrainingInterrupted(Signals.SIGINT, 7, None))
    assert "Nothing is saved" in invoke("train", config_file).stdout


def test_ctrl_c_before_training(config_file: Path, monkeypatch: pytest.MonkeyPatch):
    fail_with(monkeypatch, KeyboardInterrupt())
    result = invoke("train", config_file)
    assert result.exit_code == 130
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("error", [OSError("disk full"), ValueError("NaN in step 3")])
def test_a_run_that_fails(config_file: Path, monkeypatch: pytest.MonkeyPatch, error: Exception):
    fail_with(monkeypatch, error)
    result = invoke("train", config_file)
    assert result.exit_code == 1
    assert f"Error: {error}\n" in result.stderr
    assert "--debug" in result.stderr
    assert invoke("train", config_file, "--debug").exception is error


def test_a_defect_keeps_its_traceback(config_file: Path, monkeypatch: pytest.MonkeyPatch):
    error = KeyError("x")
    fail_with(monkeypatch, error)
    assert invoke("train", config_file).exception is error


# ---- the other command


def replace_quickstart(monkeypatch: pytest.MonkeyPatch, run: Callable[..., None]) -> None:
    demo = SimpleNamespace(run=run)
    monkeypatch.setattr("sae_lens_matryoshka.demo.quickstart", demo, raising=False)
    monkeypatch.setitem(sys.modules, "sae_lens_matryoshka.demo.quickstart", demo)


def test_quickstart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    calls: list[dict[str, Any]] = []
    replace_quickstart(monkeypatch, lambda **given: calls.append(given))
    assert invoke("quickstart").exit_code == 0
    assert invoke("quickstart", "--output", tmp_path, "--small").exit_code == 0
    assert calls == [
        {"output": Path("quickstart"), "small": False},
        {"output": tmp_path, "small": True},
    ]


def test_an_interrupted_quickstart(monkeypatch: pytest.MonkeyPatch):
    def run(**_: Any) -> None:
        raise TrainingInterrupted(Signals.SIGINT, 7, None)

    replace_quickstart(monkeypatch, run)
    assert invoke("quickstart").exit_code == 130


# ---- the whole way


@pytest.fixture
def local_model(tmp_path: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

    config = GPTNeoXConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
    )
    folder = tmp_path / "model"
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(32)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(folder)
    return folder


def test_a_local_model_from_file_to_saved_sae(
    local_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    tokens = torch.randint(32, (400, 8), generator=torch.Generator().manual_seed(0))
    lines = [json.dumps({"text": " ".join(f"w{t}" for t in row)}) for row in tokens.tolist()]
    (data / "train.jsonl").write_text("\n".join(lines))
    (tmp_path / "config.yaml").write_text(
        f"""\
        sae: {{architecture: matryoshka, d_in: 16, d_sae: 32, k: 4, matryoshka_widths: [8]}}
        model_class_name: AutoModelForCausalLM
        model_name: {local_model}
        hook_name: gpt_neox.layers.0
        dataset_path: {data}
        context_size: 8
        is_dataset_tokenized: false
        prepend_bos: false
        sequence_separator_token: null
        training_tokens: 640
        train_batch_size_tokens: 32
        store_batch_size_prompts: 4
        n_batches_in_buffer: 16
        logger: {{log_to_wandb: false}}
        """
    )
    result = invoke("train", "config.yaml", "--set", "output_path=results")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "Training is done. The SAE is in results."
    sae = sae_lens.SAE.load_from_disk("results")
    assert sae.cfg.metadata.training_architecture_details["matryoshka_widths"] == [8, 32]
