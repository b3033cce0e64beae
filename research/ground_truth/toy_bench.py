"""`kind: toy_tree`: a vanilla and a Matryoshka SAE on the paper's toy tree, over several seeds."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import Field

from research.ground_truth.matching import match
from research.ground_truth.parallel_tasks import Tell, side_by_side
from research.ground_truth.toy_training import Arm, train
from research.ground_truth.toy_tree import ToyTree
from sae_lens_matryoshka.atomic_files import whole_files, write_json
from sae_lens_matryoshka.markdown_table import pipe_table, spread
from sae_lens_matryoshka.ownership import check_replaceable, claim
from sae_lens_matryoshka.settings.strict_models import AbsolutePath, Seeds, Strict

TOKENS_FOR_L0 = 100_000
RECORD = "results.json"
NAMES = (RECORD, "results.md", "heat_maps.png", "saes")
"""What a comparison writes into its output folder."""
HEADER = (
    "SAE",
    "latents under .85 ↓",
    "smallest matched cosine ↑",
    "mean matched cosine ↑",
    "largest cosine elsewhere ↓",
    "L0",
)


class ToyTreeConfig(Strict):
    """
    A comparison on the toy tree.

    Args:
        kind: "toy_tree".
        seeds: Each is another tree, another start and other data.
        steps: Training steps of 200 tokens.
        jobs: Processes side by side.
        output: Folder for the results.
    """

    kind: Literal["toy_tree"]
    seeds: Seeds = [0, 1, 2, 3, 4]
    steps: int = Field(default=40_000, ge=1_000)
    jobs: int = Field(default=1, ge=1)
    output: AbsolutePath


@dataclass(frozen=True)
class ToyResult:
    """
    What one SAE found of its tree; all numbers are of the saved and reloaded SAE.

    Args:
        arm: "vanilla" or "matryoshka".
        seed: The seed.
        n_absorbed: Latents whose matched cosine is under .85, of 20.
        smallest: The smallest matched cosine.
        mean: The mean matched cosine.
        elsewhere: The largest absolute cosine of a latent with another feature than its own.
        l0: Active latents per token.
        cosines: Matched latents by features.
    """

    arm: Arm
    seed: int
    n_absorbed: int
    smallest: float
    mean: float
    elsewhere: float
    l0: float
    cosines: list[list[float]]


def run(config: ToyTreeConfig, verbose: bool = True) -> tuple[list[ToyResult], str]:
    """
    Train both SAEs for every seed and compare.

    Args:
        config: The comparison.
        verbose: Whether to show a progress bar.

    Returns:
        The results, by arm and seed, and the table in Markdown. The output folder holds both, the heat
        maps of the first seed, and the SAEs.
    """
    claim(config.output, config.kind, NAMES, RECORD, replaced=("saes/*",))
    tasks = [ToyTask(config, arm, seed) for arm, seed in product(get_args(Arm), config.seeds)]
    for task in tasks:
        check_replaceable(task.folder)
    results = side_by_side(one, tasks, config.jobs, config.steps * len(tasks), verbose)
    _write(config, results)
    return results, table(results)


@dataclass(frozen=True)
class ToyTask:
    """One SAE to train."""

    config: ToyTreeConfig
    arm: Arm
    seed: int

    @property
    def folder(self) -> Path:
        """Where the SAE is saved."""
        return self.config.output / "saes" / f"{self.arm}_seed_{self.seed}"


def one(task: ToyTask, tell: Tell) -> ToyResult:
    """Train and judge one SAE; in a process of its own."""
    config, arm, seed = task.config, task.arm, task.seed
    torch.set_num_threads(1)  # the matrices are tiny
    # the paper's target of 1.23 lies above what the tree has to give, and is not met
    logging.getLogger("sae_lens_matryoshka").setLevel(logging.ERROR)
    tree = ToyTree(seed)
    sae = train(arm, tree, config.steps, seed, task.folder, tell)
    with torch.no_grad():
        matching = match(sae.W_dec, tree.features)
        l0 = (sae.encode(tree.activations(TOKENS_FOR_L0)) > 0).float().sum(dim=-1).mean().item()
    return ToyResult(
        arm=arm,
        seed=seed,
        n_absorbed=matching.n_absorbed,
        smallest=matching.matched.min().item(),
        mean=matching.matched.mean().item(),
        elsewhere=matching.largest_elsewhere,
        l0=l0,
        cosines=matching.cosines.tolist(),
    )


def table(results: Sequence[ToyResult]) -> str:
    """Mean and sample standard deviation over seeds, one row per arm."""
    rows: list[list[str]] = []
    for arm in dict.fromkeys(result.arm for result in results):
        of_arm = [result for result in results if result.arm == arm]
        counts = [result.n_absorbed for result in of_arm]
        rows.append(
            [
                arm,
                f"{spread(counts, '.1f')} of 20",
                *(
                    spread([getattr(result, name) for result in of_arm], ".3f")
                    for name in ("smallest", "mean", "elsewhere", "l0")
                ),
            ]
        )
    seeds = len({result.seed for result in results})
    note = "One seed."
    if seeds > 1:
        note = f"Mean ± sample standard deviation over {seeds} seeds; each is another tree."
    return f"{pipe_table(HEADER, rows, text_columns=1)}\n\n{note}\n"


def _write(config: ToyTreeConfig, results: list[ToyResult]) -> None:
    from research.ground_truth.heat_maps import write_heat_maps

    content: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "results": [asdict(result) for result in results],
    }
    shown = [result for result in results if result.seed == config.seeds[0]]
    cosines = {result.arm: torch.tensor(result.cosines) for result in shown}
    with whole_files(config.output) as staging:
        write_json(staging / RECORD, content)
        (staging / "results.md").write_text(table(results), encoding="utf-8")
        write_heat_maps(cosines, staging / "heat_maps.png")
