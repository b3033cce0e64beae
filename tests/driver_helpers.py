"""The four ways in which SAELens drives an SAE, behind one signature."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from runner_helpers import HOOK, TinyModel, multi_sae_runner, options, token_dataset
from sae_lens import (
    LanguageModelSAETrainingRunner,
    TrainingSAE,
)
from sae_lens.config import LoggingConfig
from sae_lens.synthetic import SyntheticModelConfig, SyntheticSAERunner, SyntheticSAERunnerConfig
from sae_lens.training.sae_trainer import SAETrainer
from test_drivers import BATCH, D_IN, D_SAE, activations, trainer_config

from sae_lens_matryoshka import LanguageModelSAERunnerConfig, MatryoshkaSAETrainingRunner
from sae_lens_matryoshka.saes.config import MatryoshkaTrainingSAEConfig

__all__ = ["BATCH", "DRIVERS", "D_IN", "D_SAE", "Run", "activations"]


@dataclass
class Run:
    """A finished run: what it trained, what trained it, where it is saved, and what it saw."""

    sae: TrainingSAE[Any]
    trainer: SAETrainer[Any, Any]
    output: Path
    activations: torch.Tensor
    writes_sparsity: bool = True


def bare(cfg: MatryoshkaTrainingSAEConfig, folder: Path, steps: int, **changes: Any) -> Run:
    sae = new_sae(cfg)
    trainer = SAETrainer(trainer_config(steps, **changes), sae, activations())
    trainer.fit()
    sae.save_inference_model(folder)
    return Run(sae, trainer, folder, next(activations(4000, seed=9)), writes_sparsity=False)


def new_sae(cfg: MatryoshkaTrainingSAEConfig) -> TrainingSAE[Any]:
    torch.manual_seed(0)
    return TrainingSAE.from_dict(cfg.to_dict())


def runner_of(runner_class: type[LanguageModelSAETrainingRunner]) -> Callable[..., Run]:
    def run(cfg: MatryoshkaTrainingSAEConfig, folder: Path, steps: int, **changes: Any) -> Run:
        data = {name: value for name, value in options(folder).items() if not hasattr(cfg, name)}
        data |= {"dead_feature_window": 1000, "feature_sampling_window": 2000, **changes}
        data |= {
            "lr_scheduler_name": "constant",
            "training_tokens": steps * 32,
            "checkpoint_path": None,
        }
        runner = runner_class(
            LanguageModelSAERunnerConfig(sae=cfg, **data),
            override_model=TinyModel(),
            override_dataset=token_dataset(),
            override_sae=new_sae(cfg),
        )
        found = watch(runner.sae)
        runner.run()
        return Run(runner.sae, found[0], folder / "output", tokens_activations())

    return run


def multi_sae(cfg: MatryoshkaTrainingSAEConfig, folder: Path, steps: int, **changes: Any) -> Run:
    data = {"dead_feature_window": 1000, "feature_sampling_window": 2000, "lr": 3e-3, **changes}
    runner = multi_sae_runner(folder, {"one": cfg, "two": cfg}, steps, **data)
    sae = runner.saes["two"]
    found = watch(sae)
    runner.run()
    return Run(sae, found[0], folder / "two", tokens_activations())


def synthetic(cfg: MatryoshkaTrainingSAEConfig, folder: Path, steps: int, **changes: Any) -> Run:
    run_cfg = SyntheticSAERunnerConfig(
        synthetic_model=SyntheticModelConfig(num_features=64, hidden_dim=D_IN, seed=0),
        sae=cfg,
        training_samples=steps * BATCH,
        batch_size=BATCH,
        eval_samples=0,
        output_path=str(folder),
        checkpoint_path=None,
        logger=LoggingConfig(log_to_wandb=False),
        **{"lr": 3e-3, **changes},
    )
    runner = SyntheticSAERunner(run_cfg, override_sae=new_sae(cfg))
    found = watch(runner.sae)
    runner.run()
    return Run(runner.sae, found[0], folder, runner.synthetic_model.sample(4000))


def watch(sae: TrainingSAE[Any]) -> list[SAETrainer[Any, Any]]:
    """A list that will hold the trainer, which nobody hands out."""
    forward, found = sae.training_forward_pass, []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not found:
            # type(), since a dead weak proxy in this process answers isinstance with an error
            living = (thing for thing in gc.get_objects() if issubclass(type(thing), SAETrainer))
            found.extend(trainer for trainer in living if trainer.sae is sae)
        return forward(*args, **kwargs)

    sae.training_forward_pass = wrapped
    return found


def tokens_activations() -> torch.Tensor:
    tokens = torch.tensor(token_dataset()["tokens"])
    _, cache = TinyModel().run_with_cache(tokens)
    return cache[HOOK].flatten(0, 1)


DRIVERS: dict[str, Callable[..., Run]] = {
    "bare trainer": bare,
    "stock runner": runner_of(LanguageModelSAETrainingRunner),
    "our runner": runner_of(MatryoshkaSAETrainingRunner),
    "multi-SAE runner": multi_sae,
    "synthetic runner": synthetic,
}
