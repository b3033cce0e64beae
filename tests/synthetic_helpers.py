"""A synthetic model that is drawn from in no time, and comparisons on it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sae_lens.synthetic import SyntheticModel

from research.ground_truth.parallel_tasks import Tell
from research.ground_truth.synth_sae_bench import MODELS
from research.ground_truth.synthetic_config import SyntheticConfig

MINI = MODELS["mini"]
assert MINI.hierarchy is not None
# 42 of its 64 features are in two trees
TINY = replace(
    MINI,
    num_features=64,
    hidden_dim=16,
    hierarchy=replace(MINI.hierarchy, total_root_nodes=2, max_depth=2),
    orthogonalization=None,
)
ARMS: dict[str, Any] = {
    "flat": {"architecture": "batchtopk"},
    "nested": {"matryoshka_widths": [4, 16], "training": {"lr": 1e-3}},
}


def save_tiny_model(folder: Path) -> str:
    SyntheticModel(TINY).save(folder)
    return str(folder)


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """Of a comparison that takes a second; the model must be saved in the folder."""
    return {
        "kind": "synthetic",
        "model": str(folder / "tiny"),
        "d_sae": 32,
        "k": 3,
        "samples": 2_000,
        "batch_size": 128,
        "seeds": [0, 1],
        "eval_samples": 1_000,
        "output": str(folder / "out"),
        "arms": ARMS,
        **changes,
    }


def config(folder: Path, **changes: Any) -> SyntheticConfig:
    save_tiny_model(folder / "tiny")
    return SyntheticConfig.model_validate(settings(folder, **changes))


def one_after_another(work: Callable[[Any, Tell], None], tasks: Sequence[Any], *_: Any) -> None:
    """In place of side_by_side: in this process."""
    for task in tasks:
        work(task, say_nothing)


def say_nothing(steps: int = 1) -> None:
    """In place of a progress bar."""
