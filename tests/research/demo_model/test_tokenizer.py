import string
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from research.demo_model.tokenizer import (
    alphabetic_tokens,
    alphabetic_words,
    letter_index,
    save_tokenizer,
    train_tokenizer,
)
from sae_lens_matryoshka.demo.model import MODEL_FOLDER
from sae_lens_matryoshka.demo.text import texts


@pytest.fixture(scope="session")
def small_tokenizer_folder(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = train_tokenizer(
        texts("train", folder=small_text), vocab_size=1_500, words_per_letter=8
    )
    save_tokenizer(tokenizer, folder)
    return folder


@pytest.fixture(params=["small", "shipped"])
def tokenizer(request: pytest.FixtureRequest, small_tokenizer_folder: Path) -> Any:
    if request.param == "small":
        return AutoTokenizer.from_pretrained(small_tokenizer_folder)
    return AutoTokenizer.from_pretrained(MODEL_FOLDER)


def test_opens_as_a_fast_tokenizer(tokenizer: Any):
    assert tokenizer.is_fast
    assert len(tokenizer) in (1_500, 4_096)
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    assert tokenizer.convert_ids_to_tokens(0) == "<|endoftext|>"


def test_transformers_4_knows_the_class(small_tokenizer_folder: Path):
    config = (small_tokenizer_folder / "tokenizer_config.json").read_text()
    assert '"tokenizer_class": "PreTrainedTokenizerFast"' in config


@pytest.mark.parametrize(
    "text", ["It's  a\ttab, 42 dogs.\n\n  def f(x):", " naïve 日本 🙂", "no prefix space"]
)
def test_decodes_what_it_encoded(tokenizer: Any, text: str):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert 0 not in ids


def test_every_word_is_one_token_where_saebench_looks(tokenizer: Any):
    words = alphabetic_words(tokenizer)
    assert len(words) > 900
    for word in words:
        base = f"\n{word} has the first letter:"
        ids = tokenizer(base, add_special_tokens=False)["input_ids"]
        assert [tokenizer.decode([i]) for i in ids] == [
            "\n",
            word,
            " has",
            " the",
            " first",
            " letter",
            ":",
        ]


def test_answers_are_single_tokens(tokenizer: Any):
    for letter in string.ascii_uppercase:
        assert len(tokenizer(f" {letter}", add_special_tokens=False)["input_ids"]) == 1


def test_every_letter_has_words_enough_for_a_test_split(tokenizer: Any):
    counts = Counter(letter_index(word) for word in alphabetic_words(tokenizer))
    assert sorted(counts) == list(range(26))
    assert min(counts.values()) >= (30 if len(tokenizer) == 4_096 else 8)


def test_words_are_saebench_s_words(tokenizer: Any):
    expected = []
    for token in tokenizer.get_vocab():  # its get_alpha_tokens, written out
        word = tokenizer.convert_tokens_to_string([token])
        bare = word[1:] if word.startswith(" ") else word
        if bare and all(c in string.ascii_letters for c in bare):
            expected.append(word)
    assert sorted(alphabetic_words(tokenizer)) == sorted(expected)


def test_token_ids_belong_to_their_words(tokenizer: Any):
    found = alphabetic_tokens(tokenizer)
    assert all(tokenizer.decode([index]) == word for index, word in found.items())
    assert [letter_index(word) for word in (" apple", "Zoo", "q")] == [0, 25, 16]
