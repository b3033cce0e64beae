"""SAELens's training runner and its configuration, extended: flat SAE fields, exact resuming."""

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sae_lens import LanguageModelSAERunnerConfig as StockRunnerConfig
from sae_lens import (
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    SAETrainer,
    TrainingSAE,
    TrainingSAEConfig,
    logger,
)
from sae_lens.config import T_TRAINING_SAE_CONFIG, HfDataset
from sae_lens.constants import (
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
)
from safetensors.torch import save_file
from tqdm.auto import tqdm
from transformer_lens.HookedTransformer import HookedRootModule
from typing_extensions import override

from sae_lens_matryoshka.atomic_files import (
    SaveError,
    save_errors_named,
    whole_files,
    write_json,
)
from sae_lens_matryoshka.loading.hub_access import fetching
from sae_lens_matryoshka.loading.model_identity import KEY as MODEL_IDENTITY
from sae_lens_matryoshka.loading.model_identity import model_identity
from sae_lens_matryoshka.loading.sae_folder import STATE_FILENAME, check_may_be_saved_in
from sae_lens_matryoshka.saes.config import MatryoshkaTrainingSAEConfig
from sae_lens_matryoshka.saes.config_rules import check_lengths, check_schedule
from sae_lens_matryoshka.saes.training_state import restore_training_state, training_state
from sae_lens_matryoshka.settings.model_names import check_model_name
from sae_lens_matryoshka.training import fine_tuning, model_check
from sae_lens_matryoshka.training.activations import cached as cached_activations
from sae_lens_matryoshka.training.activations.cached import CachedActivations
from sae_lens_matryoshka.training.activations.finite_rows import MAX_NONFINITE_FRACTION
from sae_lens_matryoshka.training.activations.store import ResumableStore, check_mixing
from sae_lens_matryoshka.training.adam import speed_up_adam
from sae_lens_matryoshka.training.held_out import record_held_out
from sae_lens_matryoshka.training.interruption import (
    Interruption,
    TrainingFailed,
    TrainingInterrupted,
)
from sae_lens_matryoshka.training.resuming import checkpoint, leftovers
from sae_lens_matryoshka.training.resuming.resume_check import (
    check_run_is_kept,
    report_another_model,
)
from sae_lens_matryoshka.training.run_log import RunLog, ValidNames
from sae_lens_matryoshka.training.seeding import kept_rng_state, seed_all
from sae_lens_matryoshka.training.settings import run_record
from sae_lens_matryoshka.training.settings.run_check import check_run
from sae_lens_matryoshka.training.settings.runner_config import LanguageModelSAERunnerConfig
from sae_lens_matryoshka.training.trainer import InterruptibleTrainer

__all__ = [
    "LanguageModelSAERunnerConfig",
    "MatryoshkaSAETrainingRunner",
    "TrainingFailed",
    "TrainingInterrupted",
]

OFFLINE = (
    "Set dataset_path to a local folder; set model_name to one as well, with model_class_name "
    "AutoModelForCausalLM, unless the model is in the local cache."
)


class MatryoshkaSAETrainingRunner(LanguageModelSAETrainingRunner):
    """
    SAELens's runner for one SAE of any architecture, with a fused Adam and exact interruption.

    SIGINT (Ctrl-C), SIGTERM and SIGHUP end a run between two steps and save everything first; so does
    any error, such as a broken data stream. Checkpoints and results are complete or absent. A run
    resumed from a checkpoint ends with the same numbers as one that was never interrupted. For that,
    checkpoints also hold the random generators, the activations that are loaded but not trained on
    (SAELens's mixing buffer), and those that the threshold is calibrated on (up to 32,768 tokens).
    SAELens can resume from the same checkpoints, and its own can be resumed here.

    A logger that fails is reported, and training goes on without it. Activations that are NaN or
    infinite are skipped and counted.

    Args:
        cfg: The configuration, SAELens's or ours. Its seed decides the initial weights and the order of
            the activations; the caller's random generators are left as they were.
        override_dataset: A dataset instead of cfg.dataset_path. With cached activations, it is text for
            the evaluations only.
        override_model: A model instead of cfg.model_name.
        override_sae: An SAE to train instead of a new one; the one that cfg.sae describes.

    Raises:
        OSError: output_path or checkpoint_path cannot be written.
        FileNotFoundError: resume_from_checkpoint is no complete checkpoint, or there is nothing at
            from_pretrained_path or cached_activations_path.
        NotFetchedError: The Hub, which model or dataset are to come from, cannot be reached.
        TypeError: A value of the configuration cannot be saved with it.
        ValueError: The configuration contradicts itself, the model, or what is at resume_from_checkpoint,
            from_pretrained_path or cached_activations_path.
    """

    _cache: CachedActivations | None = None  # what the activations come from, if not from the model
    _rng: dict[str, Any]  # the random generators before the first step

    def __init__(
        self,
        cfg: StockRunnerConfig[T_TRAINING_SAE_CONFIG],
        override_dataset: HfDataset | None = None,
        override_model: HookedRootModule | None = None,
        override_sae: TrainingSAE[Any] | None = None,
    ):
        # before the model is loaded, which may take minutes
        cfg = run_record.with_plain_values(cfg)
        if type(cfg.logger) is LoggingConfig:  # a class of the user's names its artifacts itself
            cfg.logger = ValidNames.of(cfg.logger)
        self._cache = cached_activations.open_cache(cfg)
        if self._cache is not None:
            cfg = self._cache.completed(cfg)
        check_before_loading(cfg, cfg.sae if override_sae is None else override_sae.cfg)
        if override_sae is not None:
            fine_tuning.check_override(override_sae, cfg)
        check_sources(cfg, override_model is None, override_dataset is None)
        check_dataset(override_dataset)
        check_device(cfg.device)
        if cfg.model_class_name == "AutoModelForCausalLM" and override_model is None:
            model_check.check_module_name(cfg)
        leftovers.recover_run(cfg)
        with kept_rng_state(), fetching(lambda: self._what_is_loaded(cfg), OFFLINE):
            seed_all(cfg.seed)
            self._load(cfg, override_dataset, override_model, override_sae)
        if isinstance(self.cfg, LanguageModelSAERunnerConfig):
            self.cfg.runner_ends_decay = True
        self._store = ResumableStore.adopt(
            self.activations_store,
            int(self.cfg.prefetch_llm_batches),
            self._rng["torch"],
            getattr(self.cfg, "max_nonfinite_fraction", MAX_NONFINITE_FRACTION),
        )
        self._interruption = Interruption()
        self._log = RunLog()
        self._result_is_saved = False
        self._has_run = False

    def _what_is_loaded(self, cfg: StockRunnerConfig[Any]) -> str:
        """What SAELens is about to load: first the model, then the dataset."""
        is_loaded = hasattr(self, "model")
        return f"The dataset {cfg.dataset_path}" if is_loaded else f"The model {cfg.model_name}"

    def _load(
        self,
        cfg: StockRunnerConfig[Any],
        override_dataset: HfDataset | None,
        override_model: HookedRootModule | None,
        override_sae: TrainingSAE[Any] | None,
    ) -> None:
        """Make the SAE, then let SAELens load the model and open the activations."""
        if override_sae is not None:
            sae = override_sae
        elif self._is_fine_tuning(cfg):
            sae = fine_tuning.sae_from_disk(cfg)
        else:
            sae = fine_tuning.new_sae(cfg)
        self._rng = checkpoint.rng_state()  # loading the model may draw from them
        if self._cache is None:
            super().__init__(cfg, override_dataset, override_model, sae)
            return
        super().__init__(self._cache.for_store(cfg), None, override_model, sae)
        self.cfg = cfg
        text = cached_activations.evaluation_store(self.model, cfg, override_dataset)
        if text is None:
            self.evaluator = None  # pyright: ignore[reportAttributeAccessIssue]
        else:
            self.evaluator.activations_store = text

    @staticmethod
    def _is_fine_tuning(cfg: StockRunnerConfig[Any]) -> bool:
        """Whether the weights come from a saved SAE; those of a checkpoint replace them."""
        return cfg.from_pretrained_path is not None and cfg.resume_from_checkpoint is None

    @override
    def _compile_llm_if_needed(self) -> None:
        # SAELens calls this when the model is loaded, before it opens the dataset
        model_check.check_model(self.model, self.cfg)
        if self.cfg.resume_from_checkpoint is not None:
            report_another_model(self.cfg.resume_from_checkpoint, self.model)
        super()._compile_llm_if_needed()

    @override
    def _set_sae_metadata(self) -> None:
        super()._set_sae_metadata()
        self.sae.cfg.metadata[MODEL_IDENTITY] = model_identity(self.model)
        run_record.make_plain(self.sae.cfg)
        if self._cache is not None:
            for name in self._cache.unknown(self.cfg):
                self.sae.cfg.metadata[name] = None

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
            TrainingFailed: An error came after at least one step; likewise.
            SaveError: The trained SAE could not be saved; says where it is instead.
            RuntimeError: It has been called before, which would train the same SAE further.
        """
        if self._has_run:
            raise RuntimeError(
                "This runner has run before. Make a new one; to go on, give it resume_from_checkpoint."
            )
        self._has_run = True
        # signals stay deferred until the result is saved
        with self._interruption, kept_rng_state():
            checkpoint.set_rng_state(self._rng)
            if self.cfg.resume_from_checkpoint is not None:
                self._resume_data(Path(self.cfg.resume_from_checkpoint))
            with self._failure_reported_after_the_end():
                super().run()
            if self._result_is_saved and self.output_path is not None:
                record_held_out(
                    self.output_path, self._store, self.cfg.training_tokens, self.cfg.device
                )
            self._say_where_results_are()
        return self.sae

    @contextmanager
    def _failure_reported_after_the_end(self) -> Iterator[None]:
        """Report what fails when the result is saved: only the logger is left to be closed."""
        try:
            yield
        except Exception:
            if not self._result_is_saved:
                raise
            with self._log.failure_reported():
                raise

    def _resume_data(self, folder: Path) -> None:
        """Restore what feeds the trainer, before SAELens starts a thread that draws from it."""
        if not (folder / STATE_FILENAME).exists():
            self._store.resume_stock(folder)
            return
        state = torch.load(folder / STATE_FILENAME, map_location="cpu", weights_only=True)
        self._store.resume(state["store"])
        restore_training_state(self.sae, state)
        checkpoint.set_rng_state(state["rng"])

    @override
    def run_trainer_with_interruption_handling(
        self, trainer: SAETrainer[Any, Any]
    ) -> TrainingSAE[Any]:
        speed_up_adam(trainer.optimizer)
        if self._is_fine_tuning(self.cfg):
            fine_tuning.scale_to_run(trainer)
        if isinstance(self.cfg, LanguageModelSAERunnerConfig) and self.cfg.lr_decay_to > 0:
            end_decay_at(trainer.lr_scheduler, self.cfg.lr_decay_to)
        adopted = InterruptibleTrainer.adopt(trainer, self._interruption, self._store, self._log)
        sae = adopted.fit()
        self._result_is_saved = self.output_path is None  # then there is nothing to save
        return sae

    @override
    def save_checkpoint(self, checkpoint_path: Path | None) -> None:
        if checkpoint_path is None:
            return
        self._store.save_to_checkpoint(checkpoint_path)
        write_json(checkpoint_path / RUNNER_CFG_FILENAME, run_record.record_of(self.cfg))
        state = {
            "store": self._store.resume_state(),
            "rng": checkpoint.rng_state(),
            **training_state(self.sae),
        }
        torch.save(state, checkpoint_path / STATE_FILENAME)

    @override
    def save_final_sae(
        self,
        sae: TrainingSAE[Any],
        output_path: str,
        log_feature_sparsity: torch.Tensor | None = None,
    ) -> None:
        folder = Path(output_path)
        try:
            self._save_sae(sae, folder)
        except SaveError as error:
            raise SaveError(f"{error} {self._rescue(sae)}") from error
        self._result_is_saved = True
        # the SAE is complete: what fails from here on is reported
        with self._failure_reported(folder, SPARSITY_FILENAME):
            if log_feature_sparsity is not None:
                with whole_files(folder) as staging:
                    save_file({"sparsity": log_feature_sparsity}, staging / SPARSITY_FILENAME)
        with self._failure_reported(folder, RUNNER_CFG_FILENAME):
            write_json(folder / RUNNER_CFG_FILENAME, run_record.record_of(self.cfg))
        if self.cfg.logger.log_to_wandb and not self._log.has_failed:
            with self._log.failure_reported():
                files = (SAE_WEIGHTS_FILENAME, SAE_CFG_FILENAME, SPARSITY_FILENAME)
                weights, config, sparsity = (folder / name for name in files)
                self.cfg.logger.log(
                    self, weights, config, sparsity if sparsity.exists() else None, ["final_model"]
                )

    def _save_sae(self, sae: TrainingSAE[Any], folder: Path) -> None:
        """Save the SAE for inference; what described an older one there is removed with it."""
        described = (SPARSITY_FILENAME, RUNNER_CFG_FILENAME)
        with (
            save_errors_named(folder, folder),
            whole_files(folder, announced_by=SAE_CFG_FILENAME, outdated=described) as staging,
            save_errors_named(folder, staging),
        ):
            sae.save_inference_model(staging)

    def _rescue(self, sae: TrainingSAE[Any]) -> str:
        """Save the SAE where it can be, since output_path cannot be written to; say where that is."""
        places = [] if self.checkpoint_path is None else [self.checkpoint_path]
        for place in (*places, Path(tempfile.gettempdir())):
            folder = place / f"sae-{uuid.uuid4().hex[:8]}"
            try:
                self._save_sae(sae, folder)
            except SaveError as error:
                logger.error(str(error))
            else:
                return f"The trained SAE is complete in {folder}."
        return "In this process, the trained SAE is in the runner's sae."

    @contextmanager
    def _failure_reported(self, folder: Path, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            logger.error(f"{folder / name} could not be saved: {error}. The SAE is complete there.")

    def _say_where_results_are(self) -> None:
        rows = self._store.finite_rows
        if rows.n_skipped:
            logger.warning(
                f"{rows.n_skipped} of {rows.n_seen} activations were NaN or infinite and were skipped."
            )
        if self.output_path is None:
            tqdm.write("Training is done. Nothing was saved, since output_path=None.")
        else:
            tqdm.write(f"Training is done. The SAE is in {self.output_path}.")
        if self.checkpoint_path is not None and self.checkpoint_path.exists():
            tqdm.write(f"Checkpoints are in {self.checkpoint_path}.")


def check_before_loading(cfg: StockRunnerConfig[Any], sae_cfg: TrainingSAEConfig) -> None:
    """
    Check what can be checked of a run before its model is loaded, which may take minutes.

    Args:
        cfg: The configuration, SAELens's or ours.
        sae_cfg: The SAE that the run will train.

    Raises:
        OSError: output_path or checkpoint_path cannot be written.
        FileExistsError: output_path holds files that are no SAE's under the names of an SAE's.
        FileNotFoundError: resume_from_checkpoint is no whole checkpoint.
        ValueError: resume_from_checkpoint holds another SAE, or an option that counts steps does not fit the run.
    """
    check_run(cfg)  # a stock cfg has not been through these
    check_schedule(cfg.total_training_steps, cfg.lr_warm_up_steps, cfg.lr_decay_steps)
    check_mixing(cfg)
    checkpoint.check_writable("output_path", cfg.output_path)
    checkpoint.check_writable("checkpoint_path", cfg.checkpoint_path)
    if cfg.output_path is not None:
        check_may_be_saved_in(Path(cfg.output_path))
    if isinstance(sae_cfg, MatryoshkaTrainingSAEConfig):
        check_lengths(sae_cfg, cfg.total_training_steps, cfg.dead_feature_window)
    if cfg.resume_from_checkpoint is not None:
        checkpoint.check_checkpoint(cfg.resume_from_checkpoint, sae_cfg)
        check_run_is_kept(cfg.resume_from_checkpoint, cfg)


def check_sources(
    cfg: StockRunnerConfig[Any], needs_model: bool = True, needs_dataset: bool = True
) -> None:
    """
    Check that there can be such a model and such a dataset, as far as this machine knows.

    Args:
        cfg: The configuration, SAELens's or ours.
        needs_model: Whether the model is the one that it names.
        needs_dataset: Whether the dataset is the one that it names.

    Raises:
        FileNotFoundError: dataset_path is a path, and there is nothing.
        ValueError: There is no dataset_path, or TransformerLens, which is to open the model, does not know it.
    """
    if needs_model:
        check_model_name(cfg.model_class_name, cfg.model_name)
    if cfg.use_cached_activations or not needs_dataset:
        return
    if not cfg.dataset_path:
        raise ValueError(
            "There is no text to train on. Give dataset_path, or override_dataset from Python."
        )
    is_path = cfg.dataset_path.startswith((".", "/", "~"))
    if is_path and not Path(cfg.dataset_path).exists():
        raise FileNotFoundError(f"dataset_path={cfg.dataset_path!r}: there is no such folder.")


def check_dataset(dataset: HfDataset | None) -> None:
    """
    Check that a dataset given as an object is not empty: SAELens would load dataset_path instead.

    Args:
        dataset: The dataset; None: none was given.

    Raises:
        ValueError: It has no rows.
    """
    if dataset is not None and not dataset:
        raise ValueError("override_dataset is empty. Give a dataset with text, or leave it out.")


def check_device(device: str) -> None:
    """
    Check that tensors can be created on a device.

    Raises:
        ValueError: There is no such device on this machine.
    """
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"device={device!r} cannot be used on this machine: {reason}.") from error


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
