"""`kind: synthetic`: SAEs on SynthSAEBench's models, where every true feature is known."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sae_lens
import torch
from sae_lens import TrainingSAE
from sae_lens.synthetic import SyntheticModel
from tqdm import tqdm

import sae_lens_matryoshka
from research.ground_truth import joint_training as lockstep
from research.ground_truth.parallel_tasks import Tell, side_by_side
from research.ground_truth.random_state import OwnRandomness
from research.ground_truth.stored_samples import StoredDraw
from research.ground_truth.synth_sae_bench import load_model, save_model
from research.ground_truth.synthetic_config import SyntheticConfig
from research.ground_truth.synthetic_measures import Judge, Measures
from research.ground_truth.synthetic_table import tables
from research.ground_truth.unfinished_training import Unfinished
from sae_lens_matryoshka.atomic_files import as_read, whole_files, write_json
from sae_lens_matryoshka.ownership import check_replaceable, claim
from sae_lens_matryoshka.settings.yaml_file import ConfigError

# What a number may depend on beside the configuration.
VERSIONS = {
    "sae-lens-matryoshka": sae_lens_matryoshka.__version__,
    "sae-lens": sae_lens.__version__,
    "torch": str(torch.__version__),
}

RECORD = "results.json"
NAMES = (RECORD, "results.md", "runs", "saes", "model", "unfinished")
"""What a comparison writes into its output folder."""
REPLACED = ("saes/*/*", "model", "unfinished/*")


@dataclass(frozen=True)
class Run:
    """
    One trained and measured SAE.

    Args:
        arm: Its name.
        seed: Of its start and its data.
        measures: Of what was saved.
    """

    arm: str
    seed: int
    measures: Measures


@dataclass(frozen=True)
class SeedTask:
    """
    The SAEs of one seed that are still to be trained.

    Args:
        config: The comparison.
        seed: The seed.
        arms: Their names.
        model_hash: As save_model gave it.
    """

    config: SyntheticConfig
    seed: int
    arms: tuple[str, ...]
    model_hash: str


def run(config: SyntheticConfig, verbose: bool = True) -> tuple[list[Run], str]:
    """
    Train every arm for every seed, all arms of a seed on the same batches, and compare.

    What is finished is kept in the output folder: called again, only what is missing or configured otherwise
    is trained. Every ten minutes what is being trained is kept, too, and goes on from there.

    Args:
        config: The comparison.
        verbose: Whether to show progress.

    Returns:
        The runs, by arm and seed, and the tables in Markdown.
    """
    claim(config.output, config.kind, NAMES, RECORD, REPLACED)
    model_hash = save_model(config.model, _model_folder(config))
    tasks = _tasks(config, model_hash)
    for folder in (_sae_folder(config, arm, task.seed) for task in tasks for arm in task.arms):
        check_replaceable(folder)
    if verbose:
        n_all = len(config.arms) * len(config.seeds)
        n_finished = n_all - sum(len(task.arms) for task in tasks)
        tqdm.write(f"{n_finished} of {n_all} SAEs are finished in {config.output}.")
    side_by_side(train_seed, tasks, config.jobs, len(tasks) * config.n_steps, verbose)
    runs = [_read(config, arm, seed) for arm in config.arms for seed in config.seeds]
    by_arm = {arm: [run.measures for run in runs if run.arm == arm] for arm in config.arms}
    text = f"{_setting(config)}\n\n{tables(by_arm, config.baseline)}"
    _write(config, runs, text)
    return runs, text


def train_seed(task: SeedTask, tell: Tell) -> None:
    """
    Train, save and measure the SAEs of one seed, and keep the results.

    Args:
        task: Which ones.
        tell: Called after each step.
    """
    sae_lens_matryoshka.register()  # a new process has not done so
    config, seed = task.config, task.seed
    model = load_model(_model_folder(config))
    trained = _train(task, model, tell)
    with OwnRandomness(lockstep.EVALUATION).active():
        draw = StoredDraw(model, config.eval_samples, config.batch_size)
    judge = Judge(model, draw, config.batch_size)
    for arm, sae in trained.items():
        _run_file(config, arm, seed).unlink(missing_ok=True)  # the SAE that it is about goes
        measures = judge.measure(sae, _sae_folder(config, arm, seed))
        content = {
            "arm": arm,
            "seed": seed,
            "measures": asdict(measures),
            "configuration": _configuration(config, arm, seed, task.model_hash),
        }
        write_json(_run_file(config, arm, seed), content)
    _unfinished(task).remove()


def _train(task: SeedTask, model: SyntheticModel, tell: Tell) -> dict[str, TrainingSAE[Any]]:
    config, seed = task.config, task.seed
    pupils = {
        arm: lockstep.Pupil(
            config.sae_config(arm, model.cfg.hidden_dim), config.trainer_config(arm), seed
        )
        for arm in task.arms
    }
    training = lockstep.Lockstep(pupils, lockstep.Batches(model, config.batch_size, seed))
    unfinished = _unfinished(task)
    unfinished.resume(training)
    tell(training.steps)
    while training.steps < config.n_steps:
        training.step()
        tell()
        unfinished.save_when_due(training)
    return training.finish()


def _unfinished(task: SeedTask) -> Unfinished:
    config, seed = task.config, task.seed
    wanted = {arm: _configuration(config, arm, seed, task.model_hash) for arm in task.arms}
    return Unfinished(config.output / "unfinished" / f"seed_{seed}", wanted)


# ---- what is finished


def _tasks(config: SyntheticConfig, model_hash: str) -> list[SeedTask]:
    """One per seed that is not finished."""
    tasks: list[SeedTask] = []
    for seed in config.seeds:
        arms = tuple(a for a in config.arms if not _is_finished(config, a, seed, model_hash))
        if arms:
            tasks.append(SeedTask(config, seed, arms, model_hash))
    return tasks


def _is_finished(config: SyntheticConfig, arm: str, seed: int, model_hash: str) -> bool:
    file = _run_file(config, arm, seed)
    if not file.is_file():
        return False
    wanted = as_read(_configuration(config, arm, seed, model_hash))
    try:
        return json.loads(file.read_text(encoding="utf-8"))["configuration"] == wanted
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is no result of this benchmark. Move it away.") from error


def _configuration(config: SyntheticConfig, arm: str, seed: int, model_hash: str) -> dict[str, Any]:
    """All that a run's numbers depend on."""
    sae = config.sae_config(arm, d_in=config.d_sae).to_dict()  # d_in is the model's
    trainer = asdict(config.trainer_config(arm))
    return {
        "model": model_hash,
        "sae": {key: value for key, value in sae.items() if key not in ("d_in", "metadata")},
        "trainer": {key: value for key, value in trainer.items() if key != "logger"},
        "seed": seed,
        "eval_samples": config.eval_samples,
        "versions": VERSIONS,
    }


# ---- the output folder


def _model_folder(config: SyntheticConfig) -> Path:
    return config.output / "model"


def _sae_folder(config: SyntheticConfig, arm: str, seed: int) -> Path:
    return config.output / "saes" / arm / f"seed_{seed}"


def _run_file(config: SyntheticConfig, arm: str, seed: int) -> Path:
    return config.output / "runs" / arm / f"seed_{seed}.json"


def _read(config: SyntheticConfig, arm: str, seed: int) -> Run:
    content = json.loads(_run_file(config, arm, seed).read_text(encoding="utf-8"))
    return Run(arm, seed, Measures(**content["measures"]))


def _setting(config: SyntheticConfig) -> str:
    return (
        f"Model {config.model}; every SAE with {config.d_sae:,} latents, k {config.k:g}, trained on "
        f"{config.samples:,} samples and measured on {config.eval_samples:,} others."
    )


def _write(config: SyntheticConfig, runs: Sequence[Run], text: str) -> None:
    content: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "versions": VERSIONS,
        "runs": [asdict(run) for run in runs],
    }
    with whole_files(config.output) as staging:
        write_json(staging / RECORD, content)
        (staging / "results.md").write_text(text, encoding="utf-8")
