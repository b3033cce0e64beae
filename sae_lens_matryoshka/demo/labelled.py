"""Labelled data sets for SAEBench's probing evals, made on this machine without a network.

They lie under the names that SAEBench downloads, so that `datasets.load_dataset` finds
them where the working folder is theirs. Text and label are real where sae_probes has
both, else they are generated; `SOURCES.md`, written beside them, says which is which.
"""

import csv
import io
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from sae_lens_matryoshka.atomic_files import whole_files

from .biographies import GENDERS, PROFESSIONS, biography
from .product_reviews import CATEGORIES, RATINGS, product_sentences
from .text import NOT_SHOWN, OPENING, data_folder, decompress, shuffled, texts

Part = Literal["train", "test"]
Row = dict[str, Any]

BIOGRAPHIES = "LabHC/bias_in_bios"
REVIEWS = "canrager/amazon_reviews_mcauley_1and5"
NEWS = "fancyzhx/ag_news"
HELDOUT_TEXT = "demo/heldout_text"

QUADRANT_ROWS: dict[Part, int] = {"train": 520, "test": 220}
"""Texts per profession and gender, or category and rating.

SCR with `train_set_size` T needs more than T / 2: T = 1,000 and a test size of 400 fit.
"""

NEWS_ROWS: dict[Part, int] = {"train": 1_000, "test": 200}
"""Texts per class; sae_probes has about 1,220 distinct ones."""

NEWS_CLASSES = {"Politics": 0, "Sport": 1, "Technology": 2, "Entertainment": 3}
"""sae_probes' names for AG News' World, Sports, Business and Sci/Tech.

Two of them mislead. Its sets 161 to 163, which keep AG News' own numbers, share texts
with this one, and the shared texts show what the names stand for.
"""

YELP = "111_yelp_data"
STARS = {"0": 1.0, "4": 5.0}
"""sae_probes' targets of the Yelp reviews used here, in stars."""

TEST_REVIEWS_ONE_IN = 3
PIECE_CHARS = (110, 220)
"""Shortest and longest piece of a review, in characters."""

SOURCES = f"""\
# Where these texts come from

Made by `sae_lens_matryoshka.demo.labelled` so that SAEBench's evals run without a
download. They are stand-ins: scores on them compare SAEs of the demo model with each
other, not with scores on the data sets whose names they bear.
"Real" texts come from the installed package sae-probes. The demo model was trained on
99 in 100 of that package's texts, so it has seen most of them.

| data set | text | labels |
|---|---|---|
| {BIOGRAPHIES} | generated | generated |
| {REVIEWS} | half generated, half real | category generated, rating real |
| {NEWS} | real | real |
| {HELDOUT_TEXT} | real | none |

## {BIOGRAPHIES}

Generated from templates and word lists; no real person is described. Every profession
has as many texts of each gender. Gender shows in pronouns and titles only. The text
tells of the profession without its name, and one text in eight does not tell of it.
Train and test draw on the same word lists and share no text.

## {REVIEWS}

Two generated sentences, which name a product of the category (in one text of eight they
name none), then the first or last piece of a real Yelp review, mostly of a restaurant,
as its writer wrote it. The rating, one or five stars, is that of the whole review, so a
piece need not show it. The same piece may stand under several categories. No review is in
both train and test.

## {NEWS}

Real news of AG News with their real labels, from sae-probes' "97_news_class", near-copies
left out: 0 world, 1 sports, 2 business, 3 science and technology. That set calls business
"Technology" and science "Entertainment"; here they bear AG News' numbers.

## {HELDOUT_TEXT}

Real texts of all kinds that the demo model was not trained on, near-copies left out.
Used to measure L0 and the unexplained variance, not for probes.
"""


def write_data_sets(folder: Path) -> None:
    """Write the labelled data sets, the held-out texts and `SOURCES.md`.

    Files that are there are replaced by files with the same rows. Takes some seconds.

    Args:
        folder: Where to write; made if missing. SAEBench finds the data sets when this
            is the working folder.

    Raises:
        ImportError: If sae-probes, which brings the real texts, is not installed.
    """
    for name, make in ((BIOGRAPHIES, _biographies), (REVIEWS, _reviews), (NEWS, _news)):
        for part, rows in make().items():
            _write_parquet(folder / name / f"{part}.parquet", shuffled(rows))
    heldout = [{"text": text} for text in texts("heldout", without=NOT_SHOWN)]
    _write_parquet(folder / HELDOUT_TEXT / "train.parquet", shuffled(heldout))
    with whole_files(folder) as staging:
        (staging / "SOURCES.md").write_text(SOURCES, encoding="utf-8")


def _biographies() -> dict[Part, list[Row]]:
    rng, seen = random.Random(0), set[str]()

    def rows(profession: int, gender: int, n: int) -> Iterator[Row]:
        for text in _distinct(lambda: biography(rng, profession, gender), n, seen):
            yield {"hard_text": text, "profession": profession, "gender": gender}

    return {
        part: [row for p in PROFESSIONS for g in GENDERS for row in rows(p, g, n)]
        for part, n in QUADRANT_ROWS.items()
    }


def _reviews() -> dict[Part, list[Row]]:
    rng, seen = random.Random(0), set[str]()
    pieces = _review_pieces()

    def rows(part: Part, category: int, rating: float, n: int) -> Iterator[Row]:
        chosen = iter(rng.sample(pieces[part, rating], len(pieces[part, rating])))
        for text in _distinct(
            lambda: f"{product_sentences(rng, category)} {next(chosen)}", n, seen
        ):
            yield {"text": text, "category": category, "rating": rating}

    return {
        part: [row for c in CATEGORIES for r in RATINGS for row in rows(part, c, r, n)]
        for part, n in QUADRANT_ROWS.items()
    }


def _news() -> dict[Part, list[Row]]:
    rows: dict[Part, list[Row]] = {"train": [], "test": []}
    by_class: dict[str, list[str]] = {name: [] for name in NEWS_CLASSES}
    for text, name in shuffled(_real_texts("97_news_class")):
        by_class[name].append(text)
    for name, label in NEWS_CLASSES.items():
        n = NEWS_ROWS["train"]
        train, test = by_class[name][:n], by_class[name][n : n + NEWS_ROWS["test"]]
        rows["train"] += [{"text": text, "label": label} for text in train]
        rows["test"] += [{"text": text, "label": label} for text in test]
    return rows


def _distinct(make: Callable[[], str], n: int, seen: set[str]) -> Iterator[str]:
    """Yield n texts with openings that are not in `seen`, and add them to it."""
    while n:
        text = make()
        if text[:OPENING] not in seen:
            seen.add(text[:OPENING])
            yield text
            n -= 1


def _review_pieces() -> dict[tuple[Part, float], list[str]]:
    """Cut the real reviews into pieces; no review serves both parts."""
    pieces: dict[tuple[Part, float], list[str]] = {
        (part, rating): [] for part in QUADRANT_ROWS for rating in RATINGS
    }
    reviews = [(text, STARS[target]) for text, target in _real_texts(YELP) if target in STARS]
    for i, (text, rating) in enumerate(shuffled(reviews)):
        part: Part = "train" if i % TEST_REVIEWS_ONE_IN else "test"
        cut = _cut(text)
        # praise and blame stand at both ends more often than in between
        pieces[part, rating] += cut if len(cut) < 2 else [cut[0], cut[-1]]
    return pieces


def _cut(review: str) -> list[str]:
    """Return runs of whole sentences, each `PIECE_CHARS` long; what does not fit is left out."""
    shortest, longest = PIECE_CHARS
    # the set holds escaped line breaks and quotation marks
    plain = " ".join(review.replace("\\n", " ").replace("\\", "").split())
    pieces, piece = list[str](), ""
    for sentence in re.split(r"(?<=[.!?]) ", plain):
        piece = f"{piece} {sentence}".lstrip()
        if len(piece) >= shortest:
            pieces += [piece] if len(piece) <= longest else []
            piece = ""
    return pieces


def _real_texts(name: str) -> list[tuple[str, str]]:
    """Return text and target of one data set of sae_probes, near-copies left out."""
    content = decompress(data_folder() / f"{name}.csv.zst")
    by_opening: dict[str, tuple[str, str]] = {}
    for row in csv.DictReader(io.StringIO(content, newline="")):
        text = row["prompt"].strip()
        by_opening.setdefault(text[:OPENING], (text, row["target"]))
    return list(by_opening.values())


def _write_parquet(path: Path, rows: list[Row]) -> None:
    import pandas as pd

    with whole_files(path.parent) as staging:
        pd.DataFrame(rows).to_parquet(staging / path.name, index=False)
