from pathlib import Path
from typing import Any

import numpy as np
import pytest

from research.demo_model.tokenizer import train_tokenizer
from research.demo_model.windows import BatchStream, Documents, encode, pack
from sae_lens_matryoshka.demo.text import texts


@pytest.fixture(scope="module")
def train_texts(small_text: Path) -> list[str]:
    return texts("train", folder=small_text)[:800]


@pytest.fixture(scope="module")
def tokenizer(train_texts: list[str]) -> Any:
    return train_tokenizer(train_texts, vocab_size=700, words_per_letter=2)


def stream(tokenizer: Any, documents: Documents, **changes: Any) -> BatchStream:
    settings = {"context": 32, "windows_per_batch": 4, "spelling_share": 0.2, "seed": 0}
    return BatchStream(documents, tokenizer, **{**settings, **changes})


def test_documents_keep_their_texts(tokenizer: Any, train_texts: list[str]):
    documents = encode(train_texts, tokenizer)
    for i in (0, 17, 799):
        row = documents.tokens[documents.starts[i] : documents.starts[i + 1]]
        assert row[0] == 0
        assert tokenizer.decode(row[1:].tolist()) == train_texts[i]


def test_windows_begin_with_bos_once_and_lose_nothing():
    tokens = np.array([0, 1, 2, 3, 4, 5, 0, 6, 7, 8, 0, 9, 10, 11, 12], dtype=np.uint16)
    assert pack(tokens, context=4, bos=0).tolist() == [
        [0, 1, 2, 3],
        [0, 4, 5, 0],
        [0, 6, 7, 8],
        [0, 9, 10, 11],
    ]


def test_an_epoch_holds_every_document_in_a_new_order(tokenizer: Any, train_texts: list[str]):
    documents = encode(train_texts, tokenizer)
    batches = stream(tokenizer, documents, spelling_share=0.0)
    counts = np.bincount(documents.tokens, minlength=700)[1:]
    epochs = []
    for epoch in range(2):
        first = epoch * batches.steps_per_epoch
        steps = range(first, first + batches.steps_per_epoch)
        epochs.append(np.stack([batches.batch(step).numpy() for step in steps]))
        seen = np.bincount(epochs[-1].ravel(), minlength=700)[1:]
        assert (seen <= counts).all()  # nothing twice
        assert seen.sum() > 0.95 * counts.sum()  # little left over at the end
    assert not np.array_equal(epochs[0], epochs[1])


def test_batches_depend_on_step_and_seed_only(tokenizer: Any, train_texts: list[str]):
    documents = encode(train_texts, tokenizer)
    one, other = stream(tokenizer, documents), stream(tokenizer, documents)
    late = one.steps_per_epoch + 3
    for step in range(3):
        one.batch(step)
    assert one.batch(late).equal(other.batch(late))
    assert not one.batch(late).equal(stream(tokenizer, documents, seed=1).batch(late))
    assert one.batch(0).shape == (4, 32)


def test_share_of_spelling_prompts(tokenizer: Any, train_texts: list[str]):
    documents = encode(train_texts, tokenizer)
    letter = tokenizer(" letter", add_special_tokens=False)["input_ids"]
    lines = 0
    batches = stream(tokenizer, documents)
    for step in range(batches.steps_per_epoch):
        lines += int((batches.batch(step) == letter[0]).sum())
    tokens_per_line = 8 + 1 / 11
    share = lines * tokens_per_line / (batches.steps_per_epoch * 4 * 32)
    assert share == pytest.approx(0.2, abs=0.03)


def test_too_little_text_is_refused(tokenizer: Any):
    documents = encode(["a few words"], tokenizer)
    with pytest.raises(ValueError, match="do not fill one batch"):
        stream(tokenizer, documents)
