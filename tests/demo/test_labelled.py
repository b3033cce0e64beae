import re
from pathlib import Path
from random import Random

import pytest

from sae_lens_matryoshka.demo import labelled
from sae_lens_matryoshka.demo.biographies import PROFESSIONS, biography
from sae_lens_matryoshka.demo.labelled import BIOGRAPHIES, HELDOUT_TEXT, NEWS, REVIEWS
from sae_lens_matryoshka.demo.product_reviews import CATEGORIES, product_sentences

pd = pytest.importorskip("pandas")

TRAIN, TEST = 1_000, 400  # the sizes of train and test set that must be possible
PARTS = ("train", "test")
TEXT = {BIOGRAPHIES: "hard_text", REVIEWS: "text", NEWS: "text"}
LABELS = {BIOGRAPHIES: ["profession", "gender"], REVIEWS: ["category", "rating"], NEWS: ["label"]}


def few_heldout_texts(split: str, **_options: object) -> list[str]:
    """Stand in for the real ones, which take seconds to read."""
    return [f"{split} text number {i}" for i in range(50)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the data sets."""
    folder = tmp_path_factory.mktemp("labelled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labelled, "texts", few_heldout_texts)
        labelled.write_data_sets(folder)
    return folder


@pytest.fixture
def working_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in that folder, without a network and with an empty cache."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return folder


def read(folder: Path, name: str, part: str):
    return pd.read_parquet(folder / name / f"{part}.parquet")


def test_layout_and_nothing_else(folder: Path):
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    parts = [f"{name}/{part}.parquet" for name in TEXT for part in PARTS]
    assert sorted(files) == sorted([*parts, f"{HELDOUT_TEXT}/train.parquet", "SOURCES.md"])
    assert sum((folder / file).stat().st_size for file in files) < 6_000_000
    for name in TEXT:
        assert name in (folder / "SOURCES.md").read_text()


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("part", PARTS)
def test_all_groups_are_as_large_so_that_labels_are_independent(folder: Path, name: str, part: str):
    frame = read(folder, name, part)
    assert sorted(frame.columns) == sorted([TEXT[name], *LABELS[name]])
    counts = frame.groupby(LABELS[name]).size()
    assert len(counts) == {BIOGRAPHIES: 15 * 2, REVIEWS: 10 * 2, NEWS: 4}[name]
    assert counts.nunique() == 1
    # SCR's biased quadrants want more than half of the size; AG News' classes, half of it
    assert counts.min() > (TRAIN if part == "train" else TEST) / 2 - (name == NEWS)


def test_labels_have_the_codes_of_the_originals(folder: Path):
    biographies = read(folder, BIOGRAPHIES, "train")
    professions = {0, 1, 2, 6, 9, 11, 13, 14, 18, 19, 20, 21, 22, 25, 26}
    assert set(biographies["profession"]) == professions
    assert set(biographies["gender"]) == {0, 1}
    reviews = read(folder, REVIEWS, "train")
    assert set(reviews["category"]) == {1, 2, 3, 5, 6, 11, 18, 24, 26, 30}
    assert set(reviews["rating"]) == {1.0, 5.0}
    assert reviews["rating"].dtype == "float64"
    assert set(read(folder, NEWS, "train")["label"]) == {0, 1, 2, 3}


@pytest.mark.parametrize("name", TEXT)
def test_texts_are_distinct_and_test_has_no_near_copy_of_train(folder: Path, name: str):
    train, test = (read(folder, name, part)[TEXT[name]].str[:100] for part in PARTS)
    assert train.is_unique
    assert test.is_unique
    assert not set(train) & set(test)


@pytest.mark.parametrize("name", TEXT)
def test_rows_are_shuffled(folder: Path, name: str):
    first = read(folder, name, "train").head(200)
    assert (first.groupby(LABELS[name]).size() < 80).all()
    assert first[LABELS[name][0]].nunique() >= 4


def test_a_second_writing_gives_the_same_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(labelled, "texts", few_heldout_texts)
    first = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    labelled.write_data_sets(folder)
    assert first == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_heldout_texts_are_asked_for_and_shuffled(folder: Path):
    written = read(folder, HELDOUT_TEXT, "train")["text"].tolist()
    assert written != few_heldout_texts("heldout")
    assert sorted(written) == sorted(few_heldout_texts("heldout"))


def test_biographies_differ_by_gender_in_pronouns_and_titles_only():
    pronouns = {"She": "He", "she": "he", "Her": "His", "Ms.": "Mr."}
    for profession in PROFESSIONS:
        for seed in range(20):
            his, hers = (biography(Random(seed), profession, g).split() for g in (0, 1))
            assert his != hers
            for his_word, her_word in zip(his, hers, strict=True):
                allowed = ("his", "him") if her_word == "her" else (pronouns.get(her_word),)
                assert his_word == her_word or his_word in allowed


def test_biographies_do_not_name_the_profession():
    for code, profession in PROFESSIONS.items():
        texts = " ".join(biography(Random(seed), code, 0) for seed in range(100)).lower()
        assert not re.search(rf"\b{profession.name}\b", texts)


def test_professions_and_categories_bear_saebenchs_names():
    pytest.importorskip("sae_bench")
    from sae_bench.sae_bench_utils import dataset_info

    for code, profession in PROFESSIONS.items():
        assert dataset_info.profession_dict[profession.name] == code
    for code, category in CATEGORIES.items():
        assert dataset_info.amazon_category_dict[category.name] == code


def test_most_product_sentences_name_a_product_of_the_category():
    for code, category in CATEGORIES.items():
        texts = [product_sentences(Random(seed), code) for seed in range(200)]
        named = sum(any(product in text for product in category.products) for text in texts)
        assert 150 < named < 195


def test_reviews_end_with_a_real_review_of_that_rating(folder: Path):
    reviews = {
        rating: "\n".join(
            " ".join(text.replace("\\n", " ").replace("\\", "").split())
            for text, target in labelled._real_texts(labelled.YELP)
            if labelled.STARS.get(target) == rating
        )
        for rating in (1.0, 5.0)
    }
    rows = read(folder, REVIEWS, "test").head(200)
    for text, rating in zip(rows["text"], rows["rating"], strict=True):
        assert text[-80:] in reviews[rating]


def test_no_review_is_in_both_parts(monkeypatch: pytest.MonkeyPatch):
    pieces = labelled._review_pieces()
    assert all(len(of_kind) >= 400 for of_kind in pieces.values())
    train = {piece for (part, _), cut in pieces.items() if part == "train" for piece in cut}
    test = {piece for (part, _), cut in pieces.items() if part == "test" for piece in cut}
    assert not train & test
    reviews = [(f"{word}. " * 60 + f"End of {word}.", "0") for word in ("one", "two", "three")]
    monkeypatch.setattr(labelled, "_real_texts", lambda _name: reviews)
    pieces = labelled._review_pieces()
    words = {part: {p.split(".")[0] for p in pieces[part, 1.0]} for part in PARTS}
    assert len(words["train"]) == 2
    assert len(words["test"]) == 1
    assert not words["train"] & words["test"]


def test_reviews_are_cut_between_sentences():
    sentence = "This is a sentence of forty characters!!"
    assert len(sentence) == 40
    assert labelled._cut(" ".join([sentence] * 7)) == [" ".join([sentence] * 3)] * 2
    assert labelled._cut(r"A \"quoted\" word.\n\n" + "x" * 99 + ".") == [
        'A "quoted" word. ' + "x" * 99 + "."
    ]
    assert labelled._cut("x" * 400) == []


def test_news_labels_agree_with_ag_news_own_numbers(folder: Path):
    news = pd.concat([read(folder, NEWS, part) for part in PARTS])
    label_of = dict(zip(news["text"].str[:100], news["label"], strict=True))
    for label in (0, 1, 2):
        name = f"{161 + label}_agnews_{label}"
        members = [text[:100] for text, target in labelled._real_texts(name) if target == "1"]
        found = [label_of[opening] for opening in members if opening in label_of]
        assert len(found) > 50
        assert set(found) == {label}


def test_load_dataset_finds_them_offline(working_folder: Path):
    from datasets import load_dataset

    for name in TEXT:
        loaded = load_dataset(name)
        assert sorted(loaded) == sorted(PARTS)
        assert loaded["test"][0] == read(working_folder, name, "test").iloc[0].to_dict()
    stream = load_dataset(HELDOUT_TEXT, split="train", streaming=True)
    assert next(iter(stream))["text"].startswith("heldout text")


@pytest.mark.parametrize(
    "name",
    [
        *(f"{BIOGRAPHIES}_class_set{i}" for i in (1, 2, 3)),
        REVIEWS,
        f"{REVIEWS}_sentiment",
        NEWS,
    ],
)
@pytest.mark.usefixtures("working_folder")
def test_saebench_takes_its_classes_from_them(name: str):
    pytest.importorskip("sae_bench")
    from sae_bench.sae_bench_utils.dataset_info import chosen_classes_per_dataset
    from sae_bench.sae_bench_utils.dataset_utils import (
        filter_dataset,
        get_multi_label_train_test_data,
    )

    for size, data in zip(
        (TRAIN, TEST), get_multi_label_train_test_data(name, TRAIN, TEST, 42), strict=True
    ):
        chosen = filter_dataset(data, chosen_classes_per_dataset[name])
        assert {len(texts) for texts in chosen.values()} == {size // 2}


def test_saebench_takes_its_biased_pairs_from_them(folder: Path):
    pytest.importorskip("sae_bench")
    from sae_bench.evals.scr_and_tpp.dataset_creation import get_spurious_corr_data
    from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig

    pairs = ScrAndTppEvalConfig().column1_vals_lookup
    for name, groups in ((BIOGRAPHIES, ("male", "female")), (REVIEWS, (1.0, 5.0))):
        for part, size in zip(PARTS, (TRAIN, TEST), strict=True):
            frame = read(folder, name, part)
            lookup = name if name == REVIEWS else f"{name}_class_set1"
            for pair in pairs[lookup]:
                data = get_spurious_corr_data(frame, pair, groups, name, size // 4, 42)
                assert {len(texts) for texts in data.values()} == {size // 2}
