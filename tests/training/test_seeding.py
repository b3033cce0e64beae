"""A run's seed: what it decides, and what it leaves alone."""

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runner_helpers import (
    assert_same,
    call_at_step,
    interrupted,
    make_runner,
    options,
    results,
    save_cached_activations,
    text_dataset,
    tidy_process,  # noqa: F401  (a fixture of every test here)
    token_dataset,
)

from sae_lens_matryoshka import LanguageModelSAERunnerConfig, MatryoshkaSAETrainingRunner
from sae_lens_matryoshka.demo.model import MODEL_FOLDER


def stir() -> None:
    """Bring the caller's generators into another state."""
    torch.rand(7)
    np.random.rand(7)
    random.random()


def states() -> list[Any]:
    return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]  # type: ignore[index]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prefetch_llm_batches": 2},
        {"prefix_sampling": "random", "n_prefixes": 3},
        {"normalize_activations": "expected_average_only_in"},
    ],
    ids=str,
)
def test_the_same_seed_gives_the_same_weights(tmp_path: Path, changes: dict[str, Any]):
    for name in ("first", "second"):
        runner = make_runner(tmp_path / name, seed=3, **changes)
        stir()
        runner.run()
    assert_same(results(tmp_path / "second"), results(tmp_path / "first"))


def test_the_callers_generators_decide_nothing_and_stay_as_they_were(tmp_path: Path):
    def train(name: str) -> None:
        runner = make_runner(tmp_path / name, seed=3)
        call_at_step(runner, 2, stir)  # as a hook or a logger might do
        runner.run()

    make_runner(tmp_path / "alone", seed=3).run()
    runner = make_runner(tmp_path / "other", seed=4)
    stir()
    before = states()
    runner.run()
    assert states() == before
    train("stirred")
    assert_same(results(tmp_path / "stirred"), results(tmp_path / "alone"))


def test_building_a_runner_leaves_the_callers_generators(tmp_path: Path):
    model = make_runner(tmp_path / "other").model
    before = states()
    MatryoshkaSAETrainingRunner(
        LanguageModelSAERunnerConfig(**options(tmp_path)), token_dataset(), model
    )
    assert states() == before


@pytest.mark.parametrize("source", ["tokens", "text", "cached"])
def test_other_seeds_differ_in_start_and_in_the_order_of_the_data(tmp_path: Path, source: str):
    changes: dict[str, Any] = {}
    if source == "cached":
        cached = save_cached_activations(tmp_path)
        changes = {"use_cached_activations": True, "cached_activations_path": cached}
    dataset = text_dataset() if source == "text" else token_dataset()
    one, other, again = (
        make_runner(tmp_path / str(i), dataset, seed=seed, **changes)
        for i, seed in enumerate([1, 2, 1])
    )
    assert not torch.equal(one.sae.W_enc, other.sae.W_enc)
    assert torch.equal(one.sae.W_enc, again.sae.W_enc)
    batches = [next(runner.activations_store) for runner in (one, other, again)]
    assert torch.equal(batches[0], batches[2])
    assert not torch.equal(batches[0], batches[1])


def test_an_interrupted_run_goes_on_in_the_same_order(tmp_path: Path):
    make_runner(tmp_path / "whole", seed=5).run()
    first = make_runner(tmp_path / "parts", seed=5)
    call_at_step(first, 3, stir)
    checkpoint = interrupted(first, step=9)
    stir()
    make_runner(tmp_path / "parts", seed=5, resume_from_checkpoint=checkpoint).run()
    assert_same(results(tmp_path / "parts"), results(tmp_path / "whole"))


@pytest.mark.slow
def test_the_command_line_repeats_a_run(tmp_path: Path):
    (tmp_path / "data").mkdir()
    lines = [f'{{"text": "{"Text number %d is short. " * 20}"}}' % ((i,) * 20) for i in range(60)]
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(lines))
    (tmp_path / "run.yaml").write_text(
        f"""\
        sae: {{d_in: 256, d_sae: 64, k: 4}}
        model_class_name: AutoModelForCausalLM
        model_name: {MODEL_FOLDER}
        hook_name: gpt_neox.layers.1
        dataset_path: data
        is_dataset_tokenized: false
        context_size: 32
        training_tokens: 2048
        train_batch_size_tokens: 128
        store_batch_size_prompts: 4
        n_batches_in_buffer: 16
        checkpoint_path: null
        logger: {{log_to_wandb: false}}
        """
    )
    command = [sys.executable, "-c", "from sae_lens_matryoshka.cli import main; main()", "train"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        arguments = ["run.yaml", "--set", f"output_path={name}/output", "--set", f"seed={seed}"]
        subprocess.run([*command, *arguments], cwd=tmp_path, env=environment, check=True)
    assert_same(results(tmp_path / "again"), results(tmp_path / "one"))
    weights = [results(tmp_path / name)["W_enc"] for name in ("one", "other")]
    assert not torch.equal(*weights)
