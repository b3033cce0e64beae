"""Several SAEs trained side by side on the same batches, each as SAELens alone would train it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sae_lens import TrainingSAE, TrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.synthetic import SyntheticModel
from sae_lens.training.sae_trainer import SAETrainer

from research.ground_truth.random_state import OwnRandomness
from sae_lens_matryoshka.saes.training_state import restore_training_state, training_state
from sae_lens_matryoshka.training.adam import speed_up_adam

# Purposes of OwnRandomness.
BATCHES, SAES, EVALUATION = 0, 1, 2

# Activations of true features drawn at a time: more leave the processor's caches, and the published model's are
# then drawn 1.6 times as slowly.
VALUES_AT_A_TIME = 2**21

# Of each SAE beside what its trainer saves, and of the batches.
_SAE_FILENAME, _BATCHES_FILENAME = "sae.pt", "batches.pt"


class Batches:
    """
    Training data of a seed, whatever else draws random numbers.

    Args:
        model: Draws them.
        size: Of a batch.
        seed: The seed.
    """

    def __init__(self, model: SyntheticModel, size: int, seed: int):
        self.given = 0
        self.randomness = OwnRandomness(BATCHES, seed)
        self._model, self._size = model, size
        self._rows_at_a_time = max(1, VALUES_AT_A_TIME // model.cfg.num_features)

    def next(self) -> torch.Tensor:
        """Another one, (batch, d_in)."""
        self.given += 1
        with self.randomness.active():
            if self._rows_at_a_time >= self._size:
                return self._model.sample(self._size)
            return torch.cat(list(self._parts()))

    @torch.no_grad()
    def _parts(self) -> Iterator[torch.Tensor]:
        # What model.sample does; almost all entries are zero, and a sparse product saves a quarter of the time.
        for start in range(0, self._size, self._rows_at_a_time):
            rows = min(self._rows_at_a_time, self._size - start)
            active = self._model.activation_generator.sample(rows)  # (rows, features)
            yield self._model.feature_dict(active.to_sparse())


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
        speed_up_adam(self._trainer.optimizer)

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

    def save(self, folder: Path) -> None:
        """Write all that the next step depends on."""
        self._trainer.save_trainer_state(folder)
        state = {
            "weights": self.sae.state_dict(),
            "randomness": self._randomness.state,
            **training_state(self.sae),
        }
        torch.save(state, folder / _SAE_FILENAME)

    def load(self, folder: Path) -> None:
        """Go on from what save wrote."""
        self._trainer.load_trainer_state(folder)
        state = torch.load(folder / _SAE_FILENAME, weights_only=True)
        self.sae.load_state_dict(state["weights"])
        restore_training_state(self.sae, state)
        self._randomness.state = state["randomness"]


class Lockstep:
    """
    SAEs that are trained on the same batches.

    Args:
        pupils: By name.
        batches: Each is drawn once and given to all.
    """

    def __init__(self, pupils: Mapping[str, Pupil], batches: Batches):
        self._pupils, self._batches = pupils, batches

    @property
    def steps(self) -> int:
        """How many are done."""
        return self._batches.given

    def step(self) -> None:
        """
        Train all of them on one batch.

        Raises:
            ValueError: One of them cannot be trained; says which.
        """
        batch = self._batches.next()
        for name, pupil in self._pupils.items():
            with _named(name):
                pupil.step(batch)

    def finish(self) -> dict[str, TrainingSAE[Any]]:
        """
        End training.

        Returns:
            The trained SAEs, by name.

        Raises:
            ValueError: The weights of one of them are not finite; says which.
        """
        trained: dict[str, TrainingSAE[Any]] = {}
        for name, pupil in self._pupils.items():
            with _named(name):
                trained[name] = pupil.finish()
        return trained

    def save(self, folder: Path) -> None:
        """Write all that the next step depends on, a folder for each SAE."""
        for name, pupil in self._pupils.items():
            pupil.save(folder / name)
        state = {"given": self._batches.given, "randomness": self._batches.randomness.state}
        torch.save(state, folder / _BATCHES_FILENAME)

    def load(self, folder: Path) -> None:
        """Go on from what save wrote, of SAEs and data of the same configuration."""
        for name, pupil in self._pupils.items():
            pupil.load(folder / name)
        state = torch.load(folder / _BATCHES_FILENAME, weights_only=True)
        self._batches.given, self._batches.randomness.state = state["given"], state["randomness"]


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
