"""SAELens's activation store, able to stop anywhere and to go on from there.

SAELens saves how many rows of the dataset are finished. That loses what its mixing buffer holds and
serves an unfinished row again; here the token sequences are counted and the buffer is saved.
"""

import zlib
from collections import deque
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from sae_lens import ActivationsStore, LanguageModelSAERunnerConfig, logger
from tqdm.auto import tqdm
from typing_extensions import override

from sae_lens_matryoshka.training.activations.finite_rows import FiniteRows


class MixingBuffer(Iterator[torch.Tensor]):
    """
    The same batches as SAELens's mixing_buffer, from an object whose contents can be read and set.

    Args:
        buffer_size: Activations gathered before any is served, in tokens.
        batch_size: Tokens per batch served.
        loader: Endless source of activations, each (tokens, d_in).
        mix_fraction: Share of buffer_size that is kept back to mix with later activations; 0: no
            shuffling.
        generator: Source of the order, so that nothing else which draws numbers changes it. Defaults to
            PyTorch's global one, as in SAELens.

    Raises:
        ValueError: The buffer cannot hold one batch, or mix_fraction is not in [0, 1].
    """

    def __init__(
        self,
        buffer_size: int,
        batch_size: int,
        loader: Iterator[torch.Tensor],
        mix_fraction: float,
        generator: torch.Generator | None = None,
    ):
        _check_buffer(buffer_size, batch_size, mix_fraction)
        self.buffer_size = buffer_size
        self.batch_size = batch_size
        self.loader = loader
        self.mix_fraction = mix_fraction
        self.generator = generator
        self.kept: torch.Tensor | None = None  # (tokens, d_in), to be mixed
        self.to_serve: torch.Tensor | None = None  # (tokens, d_in), in order

    @override
    @torch.no_grad()
    def __next__(self) -> torch.Tensor:
        while self.to_serve is None or len(self.to_serve) < self.batch_size:
            self._load()
        batch = self.to_serve[: self.batch_size]
        self.to_serve = self.to_serve[self.batch_size :]
        return batch

    def _load(self) -> None:
        # to_serve holds less than a batch: nothing, unless the batch size changed at a resume
        parts = [self.to_serve, self.kept, next(self.loader)]
        kept = torch.cat([part for part in parts if part is not None])
        n_served = 0
        if len(kept) >= self.buffer_size:
            if self.mix_fraction > 0:
                kept = kept[torch.randperm(len(kept), generator=self.generator)]
            n_free = len(kept) - int(self.buffer_size * self.mix_fraction)
            n_served = max(1, n_free // self.batch_size) * self.batch_size
        self.to_serve, self.kept = kept[:n_served], kept[n_served:]


def check_mixing(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """
    Check the mixing buffer that a run asks for.

    Args:
        cfg: The run's configuration.

    Raises:
        ValueError: As MixingBuffer.
    """
    n_positions = len(range(cfg.context_size)[slice(*cfg.seqpos_slice)])
    buffer_size = cfg.n_batches_in_buffer * n_positions
    _check_buffer(buffer_size, cfg.train_batch_size_tokens, cfg.activations_mixing_fraction)


def _check_buffer(buffer_size: int, batch_size: int, mix_fraction: float) -> None:
    if buffer_size < batch_size:
        raise ValueError(
            f"The mixing buffer of {buffer_size} tokens (n_batches_in_buffer * context_size) "
            f"cannot hold one batch of train_batch_size_tokens={batch_size}. Raise "
            f"n_batches_in_buffer or lower train_batch_size_tokens."
        )
    if not 0 <= mix_fraction <= 1:
        raise ValueError(f"activations_mixing_fraction={mix_fraction} must be between 0 and 1.")


class ResumableStore(ActivationsStore):
    """SAELens's ActivationsStore, with a state that is complete, serving finite activations only."""

    mixing: MixingBuffer
    finite_rows: FiniteRows
    n_sequences_drawn: int  # token sequences, in the present pass over the dataset
    tokens_hash: int  # of those sequences
    n_finished_passes: int  # over the dataset or the cached activations
    _served: deque[torch.Tensor]  # the last batches, of which a prefetcher may still hold some

    @classmethod
    def adopt(
        cls,
        store: ActivationsStore,
        n_prefetched: int,
        rng_state: torch.Tensor,
        max_nonfinite_fraction: float,
    ) -> "ResumableStore":
        """
        Turn a store that SAELens's runner has just built, and offers no factory for, into this.

        Args:
            store: A store that has served nothing yet; the same object is returned.
            n_prefetched: Batches that a PrefetchingIterator may queue; 0 without one.
            rng_state: State of PyTorch's generator that decides the order of the activations.
            max_nonfinite_fraction: Share of the activations that may be NaN or infinite; skipped.
        """
        store.__class__ = cls
        assert isinstance(store, cls)
        store.mixing = MixingBuffer(
            buffer_size=store.n_batches_in_buffer * store.training_context_size,
            batch_size=store.train_batch_size_tokens,
            loader=store._iterate_filtered_activations(),
            mix_fraction=store.activations_mixing_fraction,
            generator=torch.Generator().set_state(rng_state),
        )
        # a full queue, one batch in the prefetcher's hand, and one taken but not noted yet
        store._served = deque(maxlen=n_prefetched + 2)
        store.finite_rows = FiniteRows(max_nonfinite_fraction, store.train_batch_size_tokens)
        store.n_sequences_drawn = store.tokens_hash = 0
        store.n_finished_passes = 0
        store.current_row_idx = 0  # which SAELens sets for cached activations only
        store.iterable_sequences = store._iterate_tokenized_sequences()
        return store

    @override
    def _iterate_tokenized_sequences(self) -> Generator[torch.Tensor, None, None]:
        # every draw passes here, those of the evaluations too; SAELens calls it for each pass
        self.n_sequences_drawn = self.tokens_hash = 0
        for sequence in super()._iterate_tokenized_sequences():
            self.n_sequences_drawn += 1
            self.tokens_hash = zlib.crc32(sequence.cpu().numpy().tobytes(), self.tokens_hash)
            yield sequence
        self.n_finished_passes += 1

    @override
    def get_raw_llm_batch(
        self, raise_on_epoch_end: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        try:
            return super().get_raw_llm_batch(raise_on_epoch_end)
        except StopIteration:
            if self.cached_activation_dataset is not None:
                self.n_finished_passes += 1
            raise

    @override
    def get_filtered_llm_batch(self, raise_on_epoch_end: bool = False) -> torch.Tensor:
        position = self._position()
        try:
            return self.finite_rows.keep(super().get_filtered_llm_batch(raise_on_epoch_end))
        except StopIteration:  # the pass over the dataset is over
            raise
        except BaseException:  # a resumed run must draw these sequences again
            self.__dict__.update(position)
            raise

    def _position(self) -> dict[str, int]:
        """Where the store stands in its source."""
        return {
            "n_sequences_drawn": self.n_sequences_drawn,
            "n_dataset_processed": self.n_dataset_processed,
            "current_row_idx": self.current_row_idx,  # cached activations only
            "tokens_hash": self.tokens_hash,
            "n_finished_passes": self.n_finished_passes,
        }

    @override
    def get_data_loader(self) -> Iterator[torch.Tensor]:
        return self.mixing

    @override
    def __next__(self) -> torch.Tensor:
        batch = super().__next__()
        self._served.append(batch)
        return batch

    def note_taken(self, batch: torch.Tensor) -> None:
        """Learn that training has taken this batch, the object that the store served."""
        while self._served and self._served.popleft() is not batch:
            pass

    def resume_state(self) -> dict[str, Any]:
        """
        Where the stream stands, behind the last batch that training took.

        Call it while no other thread draws from the store.

        Returns:
            Counts, and the activations that are loaded but not trained on yet: to_serve in order,
            kept to be mixed, each (tokens, d_in) or None.
        """
        to_serve, kept = [*self._served], self.mixing.kept
        if self.mixing.to_serve is not None:
            to_serve.append(self.mixing.to_serve)
        generator = self.mixing.generator
        return {
            **self._position(),
            "n_rows_seen": self.finite_rows.n_seen,
            "n_rows_skipped": self.finite_rows.n_skipped,
            "mixing_rng": None if generator is None else generator.get_state(),
            # copies: torch.save would write all of the storage that a slice belongs to
            "to_serve": torch.cat(to_serve).cpu() if to_serve else None,
            "kept": None if kept is None else kept.clone().cpu(),
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from what resume_state returned, in a store that has served nothing yet."""
        self.current_row_idx = state["current_row_idx"]
        mixing_rng = state.get("mixing_rng")  # checkpoints of earlier commits used the global one
        self.mixing.generator = (
            None if mixing_rng is None else torch.Generator().set_state(mixing_rng)
        )
        # an evaluation may have drawn text beside cached activations; the store has none now
        n_sequences: int = state["n_sequences_drawn"] if self.dataset is not None else 0
        for _ in tqdm(range(n_sequences), desc="Skipping what was drawn before", leave=False):
            self._skip_sequence()
        if self.tokens_hash != state.get("tokens_hash", self.tokens_hash):
            logger.warning(
                f"The first {n_sequences} token sequences of the dataset are not those that the "
                "checkpoint was trained on: the dataset or the tokenizer has changed. Training goes "
                "on behind them."
            )
        self.n_dataset_processed = state["n_dataset_processed"]
        self.n_finished_passes = state.get("n_finished_passes", 0)  # absent in older checkpoints
        self.finite_rows.n_seen = state.get("n_rows_seen", 0)
        self.finite_rows.n_skipped = state.get("n_rows_skipped", 0)
        loaded = {
            name: state[name].to(self.device)
            for name in ("to_serve", "kept")
            if state[name] is not None
        }
        self.mixing.to_serve, self.mixing.kept = loaded.get("to_serve"), loaded.get("kept")
        logger.info(
            f"Resuming the data: skipped the {n_sequences} token sequences that were "
            "drawn before in this pass over the dataset, and restored the mixing buffer with its "
            f"{sum(map(len, loaded.values()))} tokens that are not trained on yet."
        )

    def resume_stock(self, checkpoint_path: str | Path) -> None:
        """Go on from a checkpoint of SAELens, which holds the number of finished rows only."""
        super().load_from_checkpoint(checkpoint_path)
        if self.cached_activation_dataset is not None:
            logger.warning(
                f"{checkpoint_path} is a checkpoint of SAELens, which does not save the position in "
                "cached activations: training reads them from the start again."
            )
            self.n_finished_passes = 1
            return
        if not self.is_dataset_tokenized:
            # part of this row may have been trained on
            n_finished = self.n_dataset_processed
            while self.n_dataset_processed == n_finished:
                self._skip_sequence()
        logger.warning(
            f"{checkpoint_path} is a checkpoint of SAELens, which does not save its mixing buffer: "
            f"skipped what that held (at most {self.mixing.buffer_size} tokens and one load) and "
            f"the {self.n_dataset_processed} rows of the dataset that were drawn before."
        )

    @override
    def load_from_checkpoint(self, checkpoint_path: str | Path) -> None:
        """Nothing: SAELens calls this when its prefetcher draws already. resume() came before."""

    def _skip_sequence(self) -> None:
        try:
            next(self.iterable_sequences)
        except StopIteration:  # the pass is over, or the dataset has become shorter
            self.iterable_sequences = self._iterate_tokenized_sequences()
