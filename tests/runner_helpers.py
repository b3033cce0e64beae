"""A run small enough for a test: a random one-layer model, data whose every sequence is unique."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Array2D, Dataset, Features, IterableDataset
from sae_lens import (
    LoggingConfig,
    MultiSAETrainingRunner,
    MultiSAETrainingRunnerConfig,
    TrainingSAEConfig,
)
from safetensors.torch import load_file
from transformer_lens import HookedTransformer, HookedTransformerConfig

from sae_lens_matryoshka import LanguageModelSAERunnerConfig, MatryoshkaSAETrainingRunner
from sae_lens_matryoshka.training.runner import TrainingInterrupted

D_IN, D_SAE, CONTEXT, VOCAB = 16, 32, 8, 64
HOOK = "blocks.0.hook_resid_post"


@pytest.fixture(autouse=True)
def tidy_process() -> Iterator[None]:
    """One thread, since the tensors are tiny; and SAELens's runner leaves its signal handlers."""
    n_threads = torch.get_num_threads()
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    torch.set_num_threads(1)
    # a shell starts background jobs with SIGINT ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    torch.set_num_threads(n_threads)
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


# torch.compile builds its CPU kernels with it
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


class TinyModel(HookedTransformer):
    """Reads texts of numbers ("12 7 3") and remembers every sequence that it was run on."""

    def __init__(self) -> None:
        cfg = HookedTransformerConfig(
            n_layers=1,
            d_model=D_IN,
            n_ctx=CONTEXT,
            d_head=8,
            d_vocab=VOCAB,
            act_fn="relu",
            seed=0,
            device="cpu",
        )
        super().__init__(cfg)
        self.seen: list[tuple[int, ...]] = []

    def to_tokens(self, input: str, **_: Any) -> torch.Tensor:  # noqa: A002
        return torch.tensor([[int(number) for number in input.split()]])

    def run_with_cache(self, tokens: torch.Tensor, **kwargs: Any) -> Any:
        self.seen.extend(tuple(row) for row in tokens.tolist())
        return super().run_with_cache(tokens, **kwargs)


def random_tokens(n_rows: int, n_columns: int, seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB, (n_rows, n_columns), generator=generator).tolist()


def token_dataset(n_rows: int = 600) -> Dataset:
    return Dataset.from_dict({"tokens": random_tokens(n_rows, CONTEXT)})


def text_dataset(n_rows: int = 40, row_length: int = 123) -> Dataset:
    """Rows of 15 sequences and a rest each: rows end in the middle of a sequence."""
    rows = random_tokens(n_rows, row_length)
    return Dataset.from_dict({"text": [" ".join(map(str, row)) for row in rows]})


def save_cached_activations(folder: Path, nan_row: int | slice | None = None) -> str:
    generator = torch.Generator().manual_seed(2)
    activations = torch.randn(300, CONTEXT, D_IN, generator=generator)
    if nan_row is not None:
        activations[nan_row] = torch.nan
    features = Features({HOOK: Array2D(shape=(CONTEXT, D_IN), dtype="float32")})
    path = folder / "cached"
    Dataset.from_dict({HOOK: activations.numpy()}, features=features).save_to_disk(path)
    return str(path)


def options(folder: Path, **changes: Any) -> dict[str, Any]:
    """A run of 24 steps in which everything moves: schedules, dead latents, sparsity windows."""
    return {
        "d_in": D_IN,
        "d_sae": D_SAE,
        "k": 3,
        "matryoshka_widths": [4, 12, 32],
        "model_name": "tiny",
        "hook_name": HOOK,
        "dataset_path": "overridden",
        "context_size": CONTEXT,
        "training_tokens": 24 * 32,
        "train_batch_size_tokens": 32,
        "n_batches_in_buffer": 16,
        "store_batch_size_prompts": 5,
        "lr": 3e-3,
        "lr_scheduler_name": "cosineannealing",
        "lr_warm_up_steps": 5,
        "lr_decay_steps": 7,
        "dead_feature_window": 2,
        "feature_sampling_window": 7,
        "n_batches_for_norm_estimate": 3,
        "prepend_bos": False,
        "verbose": False,
        "logger": LoggingConfig(log_to_wandb=False),
        "checkpoint_path": str(folder / "checkpoints"),
        "output_path": str(folder / "output"),
    } | changes


def make_runner(
    folder: Path,
    dataset: Dataset | IterableDataset | None = None,
    runner_class: type[MatryoshkaSAETrainingRunner] = MatryoshkaSAETrainingRunner,
    **changes: Any,
) -> MatryoshkaSAETrainingRunner:
    torch.manual_seed(0)
    cfg = LanguageModelSAERunnerConfig(**options(folder, **changes))
    dataset = token_dataset() if dataset is None else dataset
    return runner_class(cfg, override_model=TinyModel(), override_dataset=dataset)


def multi_sae_runner(
    folder: Path, saes: Mapping[str, TrainingSAEConfig], steps: int, **changes: Any
) -> MultiSAETrainingRunner:
    """SAELens's runner for several SAEs at once, on what make_runner's trains on."""
    cfg = MultiSAETrainingRunnerConfig(
        saes=saes,
        hook_names=HOOK,
        model_name="tiny",
        context_size=CONTEXT,
        training_tokens=steps * 32,
        train_batch_size_tokens=32,
        n_batches_in_buffer=16,
        store_batch_size_prompts=5,
        prepend_bos=False,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=str(folder),
        **changes,
    )
    return MultiSAETrainingRunner(cfg, override_model=TinyModel(), override_dataset=token_dataset())


def call_at_step(runner: MatryoshkaSAETrainingRunner, step: int, action: Any) -> None:
    """Do something in the middle of a training step, counted from 1 in this process."""
    forward, calls = runner.sae.training_forward_pass, []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == step:
            action()
        return forward(*args, **kwargs)

    runner.sae.training_forward_pass = wrapped


def signal_at_step(
    runner: MatryoshkaSAETrainingRunner, step: int, signum: int = signal.SIGTERM
) -> None:
    call_at_step(runner, step, lambda: os.kill(os.getpid(), signum))


def interrupted(runner: MatryoshkaSAETrainingRunner, step: int) -> str:
    """Run until SIGTERM comes in the middle of a step; the folder that everything was saved in."""
    signal_at_step(runner, step)
    with pytest.raises(TrainingInterrupted) as caught:
        runner.run()
    assert caught.value.step == step
    return str(caught.value.checkpoint)


def results(folder: Path) -> dict[str, torch.Tensor]:
    """Everything that a finished run has saved in <folder>/output, weights and threshold too."""
    return load_file(folder / "output" / "sae_weights.safetensors") | load_file(
        folder / "output" / "sparsity.safetensors"
    )


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


def long_run(folder: Path, cached: str, **changes: Any) -> MatryoshkaSAETrainingRunner:
    return make_runner(
        folder,
        prefix_sampling="random",
        n_prefixes=3,
        training_tokens=400 * 32,
        use_cached_activations=True,
        cached_activations_path=cached,
        **changes,
    )


def main(folder: Path, cached: str) -> None:
    """The long run in a process of its own, which says when it is in the middle."""
    torch.set_num_threads(1)
    runner = long_run(folder, cached)
    call_at_step(runner, 50, lambda: print("step 50", flush=True))  # noqa: T201
    runner.run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
