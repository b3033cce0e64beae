"""Spelling prompts: texts that name the first letters of words."""

import random
from collections.abc import Sequence

SPELLING_TEMPLATE = "{word} has the first letter:"
SPELLING_LINES = 11
"""SAEBench asks for one word after ten solved examples."""


def spelling_prompts(words: Sequence[str], n: int, seed: int) -> list[str]:
    r"""Return texts that name the first letters of words.

    Each is a prompt of SAEBench's first-letter absorption with its answer:
    eleven lines "\n{word} has the first letter: {LETTER}", all words different.

    Args:
        words: Words, with or without a leading space; at least eleven.
        n: Number of texts.
        seed: Seed of the draw.

    Returns:
        The texts.
    """
    if len(words) < SPELLING_LINES:
        raise ValueError(f"need at least {SPELLING_LINES} words, got {len(words)}")
    rng = random.Random(seed)
    return [
        "".join(_spelling_line(word) for word in rng.sample(words, SPELLING_LINES))
        for _ in range(n)
    ]


def _spelling_line(word: str) -> str:
    letter = word.strip()[0].upper()
    return f"\n{SPELLING_TEMPLATE.format(word=word)} {letter}"
