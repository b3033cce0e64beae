"""The demo model's tokenizer: a byte-level BPE, fit for first-letter absorption."""

import json
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from research.demo_model.spelling import SPELLING_TEMPLATE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
"""Beginning, end and padding in one, as in GPT-2 and Pythia."""

END_OF_TEXT_ID = 0

_WORD = re.compile(r" ?[A-Za-z]+")  # how GPT-2's pre-tokenizer cuts ASCII words


def train_tokenizer(
    texts: Sequence[str], vocab_size: int, words_per_letter: int
) -> "PreTrainedTokenizerFast":
    """Train the BPE.

    Args:
        texts: Training texts.
        vocab_size: Number of tokens, the 256 bytes and the special token included.
        words_per_letter: The most frequent words of each letter, and those of the spelling
            prompts, are repeated until they are common enough to become tokens.

    Returns:
        A fast tokenizer with `<|endoftext|>` as bos, eos and pad.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    bpe.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # an eighth of the vocabulary down the list, a word is surely a token
    repeats = _repeats(_count_words(texts), words_per_letter, vocab_size // 8)
    bpe.train_from_iterator(_with_repeats(texts, repeats), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    """Save so that `AutoTokenizer.from_pretrained(folder)` opens it as a fast tokenizer.

    Args:
        tokenizer: The tokenizer.
        folder: Destination, created if missing.
    """
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    # transformers 5 writes its own new class name, which version 4 does not know
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for how_it_was_loaded in ("backend", "is_local", "local_files_only"):
        config.pop(how_it_was_loaded, None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def alphabetic_words(tokenizer: "PreTrainedTokenizerFast") -> list[str]:
    """Return the vocabulary's words: ASCII letters only, perhaps after one space.

    SAEBench's absorption takes the same ones.

    Args:
        tokenizer: A fast tokenizer.

    Returns:
        The words in the order of their token ids.
    """
    return list(alphabetic_tokens(tokenizer).values())


def alphabetic_tokens(tokenizer: "PreTrainedTokenizerFast") -> dict[int, str]:
    """Return the vocabulary's words by token id, as in `alphabetic_words`.

    Args:
        tokenizer: A fast tokenizer.

    Returns:
        Token id to word, ids ascending.
    """
    found: dict[int, str] = {}
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        word = str(tokenizer.convert_tokens_to_string([token]))
        if _WORD.fullmatch(word):
            found[index] = word
    return found


def letter_index(word: str) -> int:
    """Return the place of a word's first letter in the alphabet.

    Args:
        word: A word of `alphabetic_words`.

    Returns:
        0 for a and A, 25 for z and Z.
    """
    return string.ascii_lowercase.index(word.strip()[0].lower())


def _count_words(texts: Iterable[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_WORD.findall(text))
    return counts


def _repeats(counts: Counter[str], per_letter: int, common_rank: int) -> dict[str, int]:
    """Return how often to repeat which rare word, so that every letter has enough."""
    ranked = [word for word, _ in counts.most_common()]
    if not ranked:
        return {}
    enough = counts[ranked[min(common_rank, len(ranked)) - 1]]
    wanted = _spelling_tokens()
    for letter in range(26):
        best = (word for word in ranked if letter_index(word) == letter)
        wanted += islice(best, per_letter)
    return {w: enough - counts[w] for w in wanted if counts[w] < enough}


def _spelling_tokens() -> list[str]:
    """Return the words of SAEBench's prompt that it reads as one token each."""
    return _WORD.findall(SPELLING_TEMPLATE) + [f" {c}" for c in string.ascii_uppercase]


def _with_repeats(texts: Iterable[str], repeats: dict[str, int]) -> Iterator[str]:
    yield from texts
    for word, n in repeats.items():
        for _ in range(n):
            yield word
