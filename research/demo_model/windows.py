"""Training windows of the demo model: documents, shuffled, joined and cut."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from research.demo_model.spelling import spelling_prompts
from research.demo_model.tokenizer import END_OF_TEXT_ID, alphabetic_words

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Documents:
    """Encoded texts, end to end in one array.

    Attributes:
        tokens: All tokens, each document led by the end-of-text token.  # (n_tokens,)
        starts: Where each document starts, and the end.  # (n_documents + 1,)
    """

    tokens: np.ndarray
    starts: np.ndarray

    def joined(self, order: np.ndarray) -> np.ndarray:
        """Return the tokens with the documents in another order.

        Args:
            order: Indices of documents.  # (n_documents,)

        Returns:
            The tokens of these documents.  # (n_tokens,)
        """
        pieces = [self.tokens[self.starts[i] : self.starts[i + 1]] for i in order]
        return np.concatenate(pieces)

    def __add__(self, other: "Documents") -> "Documents":
        tokens = np.concatenate([self.tokens, other.tokens])
        starts = np.concatenate([self.starts[:-1], other.starts + len(self.tokens)])
        return Documents(tokens, starts)


def encode(texts: Sequence[str], tokenizer: "PreTrainedTokenizerFast") -> Documents:
    """Encode texts, each led by the end-of-text token.

    Args:
        texts: The texts.
        tokenizer: A tokenizer whose ids fit 16 bits.

    Returns:
        The documents.
    """
    pieces: list[np.ndarray] = []
    for first in range(0, len(texts), 10_000):  # all at once would hold gigabytes
        batch = list(texts[first : first + 10_000])
        ids = tokenizer(batch, add_special_tokens=False)["input_ids"]
        pieces += [np.array([END_OF_TEXT_ID, *row], dtype=np.uint16) for row in ids]
    lengths = [len(piece) for piece in pieces]
    return Documents(np.concatenate(pieces), np.cumsum([0, *lengths]))


def pack(tokens: np.ndarray, context: int, bos: int = END_OF_TEXT_ID) -> np.ndarray:
    """Cut a stream into windows that all begin with the bos token, as SAELens does.

    Args:
        tokens: Documents, each led by the bos token.  # (n_tokens,)
        context: Length of a window.
        bos: Token that begins every window; not doubled where a document begins there.

    Returns:
        The windows; what is left at the end is dropped.  # (n_windows, context)
    """
    starts: list[int] = []
    position = 0
    while position + context <= len(tokens):
        position += int(tokens[position] == bos)
        starts.append(position)
        position += context - 1
    inside = np.array(starts)[:, None] + np.arange(context - 1)
    windows = np.full((len(starts), context), bos, dtype=tokens.dtype)
    windows[:, 1:] = tokens[inside]
    return windows


class BatchStream:
    """Batches by step number, the same ones for the same seed: nothing to save.

    Every epoch is a new order of the documents, mixed with new spelling prompts.
    """

    def __init__(
        self,
        documents: Documents,
        tokenizer: "PreTrainedTokenizerFast",
        context: int,
        windows_per_batch: int,
        spelling_share: float,
        seed: int,
    ):
        """Prepare the stream.

        Args:
            documents: The training documents.
            tokenizer: Their tokenizer.
            context: Tokens per window.
            windows_per_batch: Windows per step.
            spelling_share: Share of spelling prompts among the tokens, 0 to 1.
            seed: Seed of order and prompts.
        """
        self.documents = documents
        self.tokenizer = tokenizer
        self.context = context
        self.windows_per_batch = windows_per_batch
        self.spelling_share = spelling_share
        self.seed = seed
        self._words = alphabetic_words(tokenizer)
        self._epoch = -1
        self._windows = np.empty((0, context), dtype=np.uint16)
        # a window takes `context` tokens of the stream at most, so every epoch has these
        n_tokens = len(documents.tokens) + len(self._spelling(0).tokens)
        self.steps_per_epoch = n_tokens // (context * windows_per_batch)
        if self.steps_per_epoch == 0:
            raise ValueError(f"{n_tokens:,} tokens of text do not fill one batch")

    def batch(self, step: int) -> "torch.Tensor":
        """Return the windows of one step.

        Args:
            step: Step number, from 0, over all epochs.

        Returns:
            Token ids.  # (windows_per_batch, context), int64
        """
        import torch

        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._windows = self._build(epoch)
            self._epoch = epoch
        first = place * self.windows_per_batch
        chosen = self._windows[first : first + self.windows_per_batch]
        return torch.from_numpy(chosen.astype(np.int64))

    def _build(self, epoch: int) -> np.ndarray:
        mixed = self.documents
        if self.spelling_share > 0:
            mixed = mixed + self._spelling(epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(mixed.starts) - 1)
        return pack(mixed.joined(order), self.context)

    def _spelling(self, epoch: int) -> Documents:
        if self.spelling_share == 0:
            return Documents(np.empty(0, dtype=np.uint16), np.zeros(1, dtype=np.int64))
        share = self.spelling_share / (1 - self.spelling_share)
        one = encode(spelling_prompts(self._words, 1, seed=0), self.tokenizer)
        n = max(1, round(share * len(self.documents.tokens) / len(one.tokens)))
        seed = self.seed * 1_000 + epoch
        return encode(spelling_prompts(self._words, n, seed), self.tokenizer)
