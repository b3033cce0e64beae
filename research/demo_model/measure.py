"""What the card of the demo model reports: loss beside baselines, first letters."""

import string
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from research.demo_model.spelling import SPELLING_TEMPLATE, spelling_prompts
from research.demo_model.tokenizer import END_OF_TEXT_ID, alphabetic_words, letter_index

if TYPE_CHECKING:
    from transformers import GPTNeoXForCausalLM, PreTrainedTokenizerFast

WORD_POSITION = -6
"""Where the word stands in "{word} has the first letter:", from the end; SAEBench's."""

PRIORS = (1, 3, 10, 30, 100, 300, 1_000, 3_000)


@dataclass(frozen=True)
class LetterScores:
    """How well first letters can be read.

    Attributes:
        said: Share of words whose letter the model itself says.
        mean_f1: F1 of linear probes on held-out words, mean over 26 letters.
        letters_passed: Letters whose probe reaches F1 0.6, SAEBench's bar.
        words: Number of words.
    """

    said: float
    mean_f1: float
    letters_passed: int
    words: int


def unigram_loss(train: np.ndarray, windows: np.ndarray, vocab: int) -> float:
    """Return the loss of a model that knows token frequencies only.

    Args:
        train: Training tokens.  # (n_tokens,)
        windows: Held-out windows; their first tokens are not predicted.
        vocab: Number of tokens in the vocabulary.

    Returns:
        Nats per token.
    """
    log_probs = np.log(_unigram(train, vocab))
    return float(-log_probs[windows[:, 1:]].mean())


def bigram_loss(train: np.ndarray, windows: np.ndarray, vocab: int) -> float:
    """Return the loss of a model that knows pairs of tokens.

    P(b | a) = (count(a b) + prior * P(b)) / (count(a) + prior), with the prior that does
    best on the held-out windows themselves: the baseline at its most favourable.

    Args:
        train: Training tokens.  # (n_tokens,)
        windows: Held-out windows; their first tokens are not predicted.
        vocab: Number of tokens in the vocabulary.

    Returns:
        Nats per token.
    """
    pairs = train[:-1].astype(np.int64) * vocab + train[1:]
    pair_counts = np.bincount(pairs, minlength=vocab * vocab)  # (vocab * vocab,)
    first_counts = np.bincount(train[:-1], minlength=vocab)  # (vocab,)
    before, after = windows[:, :-1].astype(np.int64), windows[:, 1:]
    seen = pair_counts[before * vocab + after]  # (n_windows, context - 1)
    expected = _unigram(train, vocab)[after]
    losses = [
        -np.log((seen + prior * expected) / (first_counts[before] + prior)).mean()
        for prior in PRIORS
    ]
    return float(min(losses))


def letter_scores(
    model: "GPTNeoXForCausalLM",
    tokenizer: "PreTrainedTokenizerFast",
    layer: int,
    seed: int = 0,
) -> LetterScores:
    """Test first letters on prompts like those of SAEBench's absorption.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        layer: Layer after which the probes read.
        seed: Seed of the prompts and of the split of words.

    Returns:
        The scores.
    """
    words = alphabetic_words(tokenizer)
    Random(seed).shuffle(words)
    resid, said = _read(model, tokenizer, words, layer, seed)
    letters = torch.tensor([letter_index(word) for word in words])
    cut = int(0.8 * len(words))  # SAEBench's split
    logits = _probe(resid[:cut], letters[:cut], seed)(resid[cut:])
    f1 = _f1(logits > 0, F.one_hot(letters[cut:], 26).bool())
    return LetterScores(
        said=float((said == letters).float().mean()),
        mean_f1=float(f1.mean()),
        letters_passed=int((f1 > 0.6).sum()),
        words=len(words),
    )


@torch.no_grad()
def _read(
    model: "GPTNeoXForCausalLM",
    tokenizer: "PreTrainedTokenizerFast",
    words: list[str],
    layer: int,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the residual stream at each word, and the letter that the model says."""
    answers = torch.tensor(_ids(tokenizer, [f" {c}" for c in string.ascii_uppercase]))[:, 0]
    prompts = torch.tensor(_prompts(tokenizer, words, seed))  # (n_words, length)
    resids: list[torch.Tensor] = []
    said: list[torch.Tensor] = []
    for tokens in prompts.split(32):
        output = model(tokens, output_hidden_states=True, use_cache=False)
        resids.append(output.hidden_states[layer + 1][:, WORD_POSITION])
        said.append(output.logits[:, -1, answers].argmax(-1))
    return torch.cat(resids), torch.cat(said)  # (n_words, width), (n_words,)


def _prompts(tokenizer: "PreTrainedTokenizerFast", words: list[str], seed: int) -> list[list[int]]:
    """Return ten solved examples and the question, for every word."""
    questions: list[str] = []
    for word, example in zip(words, spelling_prompts(words, len(words), seed), strict=True):
        solved = example[: example.rindex("\n")]
        questions.append(f"{solved}\n{SPELLING_TEMPLATE.format(word=word)}")
    rows = [[END_OF_TEXT_ID, *ids] for ids in _ids(tokenizer, questions)]
    for word, row in zip(words, rows, strict=True):
        if len(row) != len(rows[0]) or tokenizer.decode([row[WORD_POSITION]]) != word:
            raise ValueError(f"{word!r} is not one token in SAEBench's prompt")
    return rows


def _ids(tokenizer: "PreTrainedTokenizerFast", texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def _probe(resid: torch.Tensor, letters: torch.Tensor, seed: int) -> torch.nn.Linear:
    """Train one logistic regression per letter, rare letters weighted up."""
    torch.manual_seed(seed)
    targets = F.one_hot(letters, 26).float()
    counts = targets.sum(0)
    weight = (len(letters) - counts) / counts.clamp(min=1)
    probe = torch.nn.Linear(resid.shape[1], 26)
    optimizer = torch.optim.Adam(probe.parameters(), lr=1e-2)
    steps = 1_000
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for _ in range(steps):
        loss = F.binary_cross_entropy_with_logits(probe(resid), targets, pos_weight=weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return probe


def _f1(predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Return F1 per letter.  # (n, 26), (n, 26) -> (26,)"""
    hits = (predicted & true).sum(0)
    return 2 * hits / (predicted.sum(0) + true.sum(0)).clamp(min=1)


def _unigram(train: np.ndarray, vocab: int) -> np.ndarray:
    counts = np.bincount(train, minlength=vocab) + 1.0
    return counts / counts.sum()
