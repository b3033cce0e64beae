"""SAELens's training runner and its configuration, extended: flat SAE fields, exact resuming."""

import copy
from pathlib import Path
from typing import Any

import torch
from sae_lens import LanguageModelSAERunnerConfig as StockRunnerConfig
from sae_lens import (
    LanguageModelSAETrainingRunner,
    SAETrainer,
    TrainingSAE,
    TrainingSAEConfig,
)
from sae_lens.config import T_TRAINING_SAE_CONFIG, HfDataset
from tqdm.auto import tqdm
from transformer_lens.HookedTransformer import HookedRootModule
from typing_extensions import override

from sae_lens_matryoshka import checkpoint
from sae_lens_matryoshka.activation_stream import ResumableStore
from sae_lens_matryoshka.config import MatryoshkaTrainingSAEConfig
from sae_lens_matryoshka.config_rules import check_lengths
from sae_lens_matryoshka.fast_adam import speed_up_adam
from sae_lens_matryoshka.interruption import (
    InterruptibleTrainer,
    Interruption,
    TrainingInterrupted,
)
from sae_lens_matryoshka.runner_config import LanguageModelSAERunnerConfig
from sae_lens_matryoshka.whole import whole_files

__all__ = [
    "LanguageModelSAERunnerConfig",
    "MatryoshkaSAETrainingRunner",
    "TrainingInterrupted",
]


class MatryoshkaSAETrainingRunner(LanguageModelSAETrainingRunner):
    """
    SAELens's runner for one SAE of any architecture, with a fused Adam and exact interruption.

    SIGINT (Ctrl-C) or SIGTERM ends a run between two steps and saves everything first. Checkpoints
    and results are whole or not there. A run resumed from a checkpoint ends with the same numbers as
    one that was never interrupted. For that, checkpoints also hold the random generators, the
    activations that are loaded but not trained on (SAELens's mixing buffer), and those that the
    threshold is calibrated on (up to 32,768 tokens). SAELens can resume from the same checkpoints,
    and its own can be resumed here.

    Args:
        cfg: The configuration, SAELens's or ours.
        override_dataset: A dataset instead of cfg.dataset_path.
        override_model: A model instead of cfg.model_name.
        override_sae: An SAE to train instead of a new one.

    Raises:
        OSError: output_path or checkpoint_path cannot be written.
        FileNotFoundError: resume_from_checkpoint is no whole checkpoint.
        ValueError: resume_from_checkpoint holds another SAE, or an option that counts steps does not fit the run.
    """

    def __init__(
        self,
        cfg: StockRunnerConfig[T_TRAINING_SAE_CONFIG],
        override_dataset: HfDataset | None = None,
        override_model: HookedRootModule | None = None,
        override_sae: TrainingSAE[Any] | None = None,
    ):
        # before the model is loaded, which may take minutes
        checkpoint.check_writable("output_path", cfg.output_path)
        checkpoint.check_writable("checkpoint_path", cfg.checkpoint_path)
        sae_cfg: TrainingSAEConfig = cfg.sae if override_sae is None else override_sae.cfg
        if isinstance(sae_cfg, MatryoshkaTrainingSAEConfig):  # a stock cfg has not been through it
            check_lengths(sae_cfg, cfg.total_training_steps, cfg.dead_feature_window)
        if cfg.resume_from_checkpoint is not None:
            checkpoint.check_checkpoint(cfg.resume_from_checkpoint, sae_cfg)
            checkpoint.check_schedule_is_kept(cfg.resume_from_checkpoint, cfg)
        super().__init__(cfg, override_dataset, override_model, override_sae)
        if isinstance(self.cfg, LanguageModelSAERunnerConfig):
            self.cfg = copy.copy(self.cfg)
            self.cfg.runner_ends_decay = True
        n_prefetched = int(self.cfg.prefetch_llm_batches)
        self._store = ResumableStore.adopt(self.activations_store, n_prefetched)
        self._interruption = Interruption()

    @property
    def output_path(self) -> Path | None:
        """Where the trained SAE goes; None: nowhere."""
        return None if self.cfg.output_path is None else Path(self.cfg.output_path)

    @property
    def checkpoint_path(self) -> Path | None:
        """The folder that holds this run's checkpoints; None: they are off."""
        return None if self.cfg.checkpoint_path is None else Path(self.cfg.checkpoint_path)

    @override
    def run(self) -> TrainingSAE[Any]:
        """
        Train, save, and say where the results are.

        Returns:
            The trained SAE.

        Raises:
            TrainingInterrupted: A signal came; says where everything is saved and how to go on.
            ValueError: A batch or the loss was not finite; earlier files are left as they were.
        """
        with self._interruption:  # signals stay deferred until the result is saved
            if self.cfg.resume_from_checkpoint is not None:
                self._resume_data(Path(self.cfg.resume_from_checkpoint))
            sae = super().run()
            self._say_where_results_are()
        return sae

    def _resume_data(self, folder: Path) -> None:
        """Restore what feeds the trainer, before SAELens starts a thread that draws from it."""
        if not (folder / checkpoint.STATE_FILENAME).exists():
            self._store.resume_stock(folder)
            return
        state = torch.load(
            folder / checkpoint.STATE_FILENAME, map_location="cpu", weights_only=True
        )
        self._store.resume(state["store"])
        checkpoint.restore_memory(self.sae, state)
        checkpoint.set_rng_state(state["rng"])

    @override
    def run_trainer_with_interruption_handling(
        self, trainer: SAETrainer[Any, Any]
    ) -> TrainingSAE[Any]:
        speed_up_adam(trainer.optimizer)
        if isinstance(self.cfg, LanguageModelSAERunnerConfig) and self.cfg.lr_decay_to > 0:
            end_decay_at(trainer.lr_scheduler, self.cfg.lr_decay_to)
        return InterruptibleTrainer.adopt(trainer, self._interruption, self._store).fit()

    @override
    def save_checkpoint(self, checkpoint_path: Path | None) -> None:
        super().save_checkpoint(checkpoint_path)
        if checkpoint_path is None:
            return
        state = {
            "store": self._store.resume_state(),
            "rng": checkpoint.rng_state(),
            **checkpoint.memory(self.sae),
        }
        torch.save(state, checkpoint_path / checkpoint.STATE_FILENAME)

    @override
    def save_final_sae(
        self,
        sae: TrainingSAE[Any],
        output_path: str,
        log_feature_sparsity: torch.Tensor | None = None,
    ) -> None:
        with whole_files(Path(output_path)) as staging:
            super().save_final_sae(sae, str(staging), log_feature_sparsity)

    def _say_where_results_are(self) -> None:
        if self.output_path is None:
            tqdm.write("Training is done. Nothing was saved, since output_path=None.")
        else:
            tqdm.write(f"Training is done. The SAE is in {self.output_path}.")
        if self.checkpoint_path is not None and self.checkpoint_path.exists():
            tqdm.write(f"Checkpoints are in {self.checkpoint_path}.")


def end_decay_at(schedule: torch.optim.lr_scheduler.LRScheduler, share: float) -> None:
    """
    Let the decay at the end of SAELens's learning rate schedule stop above zero.

    Args:
        schedule: What SAELens builds for lr_decay_steps; its state is kept.
        share: Share of lr to end at.
    """
    assert isinstance(schedule, torch.optim.lr_scheduler.SequentialLR)
    decay = schedule._schedulers[-1]  # torch has no public way to it
    assert isinstance(decay, torch.optim.lr_scheduler.LinearLR)
    decay.end_factor = share
