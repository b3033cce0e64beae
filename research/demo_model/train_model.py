"""The script that trained the demo's language model.

    python -m research.demo_model.train_model --out FOLDER

GPT-NeoX layout, so that TransformerLens and transformers both read it. Made for two CPU
cores. An interrupted run (Ctrl-C, SIGTERM) saves itself; the same command goes on.
"""

import json
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import torch

from research.demo_model.export import export
from research.demo_model.settings import TrainSettings, parse
from research.demo_model.tokenizer import save_tokenizer, train_tokenizer
from research.demo_model.trainer import (
    LetterHead,
    Trainer,
    build_model,
    build_optimizers,
    heldout_loss,
)
from research.demo_model.windows import BatchStream, Documents, encode, pack
from sae_lens_matryoshka.demo.text import texts

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> None:
    """Train, or go on training, then evaluate and export.

    Args:
        argv: Command line; None means the process's own.
    """
    settings, export_only = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(settings.threads)
    settings.folder.mkdir(parents=True, exist_ok=True)
    train_texts = texts("train", folder=settings.text_path)
    tokenizer = open_tokenizer(settings, train_texts)
    documents = encode(train_texts, tokenizer)
    logger.info("%s texts, %s tokens", len(train_texts), len(documents.tokens))
    heldout = heldout_windows(settings, tokenizer)
    trainer = build_trainer(settings, tokenizer, documents)
    if trainer.restore():
        logger.info("going on from step %s", trainer.step)
    elif export_only:
        raise FileNotFoundError(f"no checkpoint in {settings.out} to export")
    if not export_only and not run(trainer, heldout):
        return
    export(trainer, tokenizer, documents, heldout)


def run(trainer: Trainer, heldout: "np.ndarray") -> bool:
    """Train until the last step, with log lines and checkpoints.

    Args:
        trainer: The run, fresh or restored.
        heldout: Held-out windows.  # (n_windows, context)

    Returns:
        False if a signal ended it early; the checkpoint is then up to date.
    """
    settings = trainer.settings
    sample = heldout[: max(1, len(heldout) // 10)]
    saved_at = time.monotonic()
    losses: list[tuple[float, float]] = []
    with _signals_noted() as stopped:
        while trainer.step < settings.total_steps and not stopped:
            started = time.monotonic()
            losses.append(trainer.train_step())
            trainer.seconds += time.monotonic() - started
            if trainer.step % settings.log_every == 0:
                with_heldout = trainer.step % (10 * settings.log_every) == 0
                _log(trainer, losses, sample if with_heldout else None)
                losses.clear()
            if time.monotonic() - saved_at > 60 * settings.checkpoint_minutes:
                trainer.save()
                saved_at = time.monotonic()
    trainer.save()
    return trainer.step >= settings.total_steps


def build_trainer(
    settings: TrainSettings, tokenizer: "PreTrainedTokenizerFast", documents: Documents
) -> Trainer:
    """Return a run at step 0.

    Args:
        settings: The run's settings.
        tokenizer: Its tokenizer.
        documents: The training documents.

    Returns:
        The trainer.
    """
    stream = BatchStream(
        documents,
        tokenizer,
        settings.context,
        settings.windows_per_batch,
        settings.spelling_share,
        settings.seed,
    )
    model = build_model(settings, len(tokenizer))
    head = LetterHead(settings.width, tokenizer)
    optimizers = build_optimizers(settings, model, head)
    return Trainer(settings, model, head, stream, optimizers)


def open_tokenizer(settings: TrainSettings, train_texts: list[str]) -> "PreTrainedTokenizerFast":
    """Return the run's tokenizer, trained and saved on first use.

    Args:
        settings: Folder and vocabulary size.
        train_texts: Text to train it on.

    Returns:
        The tokenizer.
    """
    from transformers import AutoTokenizer

    folder = settings.folder / "tokenizer"
    if not (folder / "tokenizer_config.json").exists():
        tokenizer = train_tokenizer(train_texts, settings.vocab_size, settings.words_per_letter)
        save_tokenizer(tokenizer, folder)
    return AutoTokenizer.from_pretrained(folder)


def heldout_windows(settings: TrainSettings, tokenizer: "PreTrainedTokenizerFast") -> "np.ndarray":
    """Return windows of held-out text, shuffled, without spelling prompts.

    Args:
        settings: Context length and number of windows.
        tokenizer: The tokenizer.

    Returns:
        Token ids.  # (n_windows, context)
    """
    import numpy as np

    documents = encode(texts("heldout", folder=settings.text_path), tokenizer)
    order = np.random.default_rng(0).permutation(len(documents.starts) - 1)
    windows = pack(documents.joined(order), settings.context)
    return windows[: settings.heldout_windows]


def _log(trainer: Trainer, losses: list[tuple[float, float]], sample: "np.ndarray | None") -> None:
    settings = trainer.settings
    tokens = trainer.step * settings.batch_tokens
    line = {
        "step": trainer.step,
        "tokens": tokens,
        "tokens_per_second": round(tokens / trainer.seconds),
        "learning_rate_factor": round(settings.learning_rate_factor(trainer.step), 4),
        "loss": round(sum(loss for loss, _ in losses) / len(losses), 4),
        "letter_loss": round(sum(loss for _, loss in losses) / len(losses), 4),
    }
    if sample is not None:
        line["heldout_loss"] = round(heldout_loss(trainer.model, sample), 4)
    with (settings.folder / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    logger.info("%s", line)


@contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM in a list, so that a run ends between two steps."""
    noted: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        noted.append(number)

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
