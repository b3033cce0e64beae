import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from research.demo_model.measure import bigram_loss, letter_scores, unigram_loss
from research.demo_model.settings import TrainSettings, parse
from research.demo_model.train_model import main
from research.demo_model.trainer import Trainer, next_token_loss
from sae_lens_matryoshka.demo.model import load_model

STEPS = 24
BATCH_TOKENS = 8 * 32


@pytest.fixture
def flags(small_text: Path) -> list[str]:
    tiny = {
        "tokens": STEPS * BATCH_TOKENS,
        "text-folder": small_text,
        "vocab-size": 1_000,
        "words-per-letter": 2,
        "layers": 2,
        "width": 32,
        "heads": 2,
        "max-positions": 128,
        "context": 32,
        "windows-per-batch": 8,
        "warmup-steps": 4,
        "log-every": 2,
        "letter-layer": 0,
        "heldout-windows": 20,
        "threads": torch.get_num_threads(),
    }
    return [f"--{name}={value}" for name, value in tiny.items()]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send a real SIGTERM from inside one training step."""
    original = Trainer.train_step

    def train_step(self: Trainer) -> tuple[float, float]:
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    monkeypatch.setattr(Trainer, "train_step", train_step)


def test_trains_exports_and_reports(flags: list[str], tmp_path: Path):
    main([*flags, f"--out={tmp_path}"])
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(2, STEPS + 1, 2))
    assert log[-1]["loss"] < log[0]["loss"] - 0.3
    assert "heldout_loss" in log[9]

    results = json.loads((tmp_path / "model" / "results.json").read_text())
    assert results["loss"] < np.log(1_000)
    assert results["bigram"] < results["unigram"] < np.log(1_000)
    assert results["tokens"] == STEPS * BATCH_TOKENS

    card = (tmp_path / "model" / "README.md").read_text()
    assert f"**{results['loss']:.3f}**" in card
    assert str(tmp_path) not in card
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.float16}
    assert load_model(tmp_path / "model").cfg.n_layers == 2


def test_interrupted_and_resumed_equals_uninterrupted(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    main([*flags, f"--out={whole}"])
    with monkeypatch.context() as patch:
        stop_at(10, patch)
        main([*flags, f"--out={halves}"])
    assert not (halves / "model").exists()
    state = torch.load(halves / "checkpoint.pt", weights_only=True)
    assert state["step"] == 11  # the step that the signal met was finished
    main([*flags, f"--out={halves}"])
    expected = weights(whole)
    for name, tensor in weights(halves).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, msg=name)


def test_smaller_total_brings_the_decay_forward(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        stop_at(9, patch)
        main([*flags, f"--out={tmp_path}"])
    main([*flags, f"--out={tmp_path}", f"--tokens={14 * BATCH_TOKENS}"])
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["learning_rate_factor"]) for line in log[4:]] == [
        (10, 1.0),
        (12, 0.6667),
        (14, 0.0),
    ]


def test_checkpoint_can_be_exported_and_guards_its_settings(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        main([*flags, f"--out={tmp_path}", "--export-only"])
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        main([*flags, f"--out={tmp_path}"])
    with pytest.raises(ValueError, match=r"matrix_lr: 0.004 -> 0.1"):
        main([*flags, f"--out={tmp_path}", "--matrix-lr=0.1"])
    main([*flags, f"--out={tmp_path}", "--export-only"])
    results = json.loads((tmp_path / "model" / "results.json").read_text())
    assert results["steps"] == 4


def test_schedule_warms_up_holds_and_decays():
    settings = TrainSettings(
        tokens=100 * 10, context=10, windows_per_batch=1, warmup_steps=4, decay_share=0.2
    )
    factors = [settings.learning_rate_factor(step) for step in range(101)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[80] == 1.0
    assert factors[81] == pytest.approx(0.95)
    assert factors[100] == 0.0


def test_command_names_what_differs_and_no_path():
    settings, export_only = parse(["--out=/somewhere/secret", "--seed=3"])
    assert not export_only
    assert settings.command() == "python -m research.demo_model.train_model --seed 3"


def test_next_token_loss_by_hand():
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[0, 3, 4, 1, 6], [0, 2, 2, 5, 1]])
    by_hand = [
        -logits[row, place].log_softmax(-1)[tokens[row, place + 1]]
        for row in range(2)
        for place in range(4)
    ]
    torch.testing.assert_close(next_token_loss(logits, tokens), torch.stack(by_hand).mean())


def test_baselines_by_hand():
    train = np.array([0, 1, 0, 1, 0, 2], dtype=np.uint16)
    windows = np.array([[0, 1, 0]], dtype=np.uint16)
    unigram = np.array([4, 3, 2]) / 9  # counts plus one
    assert unigram_loss(train, windows, 3) == pytest.approx(-np.log(unigram[[1, 0]]).mean())
    # after 0: 1 twice, 2 once; after 1: 0 twice; the smallest prior of the list fits best
    p = np.array([(2 + unigram[1]) / (3 + 1), (2 + unigram[0]) / (2 + 1)])
    assert bigram_loss(train, windows, 3) == pytest.approx(-np.log(p).mean())


def test_letter_scores_see_a_letter_that_is_there(flags: list[str], tmp_path: Path):
    """A model whose embedding holds the first letter, and one that knows nothing."""
    from transformers import AutoTokenizer

    from research.demo_model.tokenizer import alphabetic_tokens, letter_index
    from research.demo_model.trainer import build_model

    main([*flags, f"--out={tmp_path}", f"--tokens={BATCH_TOKENS}"])
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    settings = TrainSettings(layers=1, width=32, heads=2, max_positions=128)
    model = build_model(settings, len(tokenizer))
    ignorant = letter_scores(model, tokenizer, layer=0)
    with torch.no_grad():
        for index, word in alphabetic_tokens(tokenizer).items():
            model.gpt_neox.embed_in.weight[index, letter_index(word)] += 2
    knowing = letter_scores(model, tokenizer, layer=0)
    assert ignorant.mean_f1 < 0.3
    assert knowing.mean_f1 > ignorant.mean_f1 + 0.4
    assert knowing.letters_passed > 15
