"""Several SAEs trained side by side on the same batches, each as SAELens alone would train it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from sae_lens import TrainingSAE, TrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.synthetic import SyntheticModel
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_matryoshka.ground_truth.own_randomness import OwnRandomness

# Purposes of OwnRandomness.
BATCHES, SAES, EVALUATION = 0, 1, 2


class Pupil:
    """
    An SAE with its trainer.

    Args:
        sae: Its configuration.
        trainer: Its trainer's configuration.
        seed: Decides its start and what it draws while it trains.
    """

    def __init__(self, sae: TrainingSAEConfig, trainer: SAETrainerConfig, seed: int):
        self._randomness = OwnRandomness(SAES, seed)
        with self._randomness.active():
            self.sae: TrainingSAE[Any] = get_sae_training_class(sae.architecture())[0](sae)
        self._trainer = SAETrainer(trainer, self.sae, data_provider=iter(()))

    def step(self, batch: torch.Tensor) -> None:
        """Train on a batch, (batch, d_in)."""
        with self._randomness.active():
            self._trainer.maybe_reset_sparsity()
            self._trainer.step(batch)
            self._trainer.n_training_steps += 1

    def finish(self) -> TrainingSAE[Any]:
        """
        End training as SAELens does.

        Raises:
            ValueError: The weights are not finite.
        """
        if not all(parameter.isfinite().all() for parameter in self.sae.parameters()):
            raise ValueError("the weights are not finite after training. Lower lr")
        self._trainer.set_final_sae_metadata()
        return self.sae


def batches(model: SyntheticModel, size: int, count: int, seed: int) -> Iterator[torch.Tensor]:
    """Training data of a seed, (batch, d_in) at a time, whatever else draws random numbers."""
    randomness = OwnRandomness(BATCHES, seed)
    for _ in range(count):
        with randomness.active():
            batch = model.sample(size)
        yield batch


def train(
    pupils: Mapping[str, Pupil], data: Iterator[torch.Tensor], tell: Callable[[], None]
) -> dict[str, TrainingSAE[Any]]:
    """
    Train all of them.

    Args:
        pupils: By name.
        data: Batches; each is drawn once and given to all.
        tell: Called after each batch.

    Returns:
        The trained SAEs, by name.

    Raises:
        ValueError: One of them cannot be trained; says which.
    """
    for batch in data:
        for name, pupil in pupils.items():
            with _named(name):
                pupil.step(batch)
        tell()
    trained: dict[str, TrainingSAE[Any]] = {}
    for name, pupil in pupils.items():
        with _named(name):
            trained[name] = pupil.finish()
    return trained


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
