import pytest

from research.demo_model.spelling import spelling_prompts

WORDS = ["cat", " Dog", "x", " apple", "Zoo", "ing", " the", "Quick", " B", "over", " jump"]


def test_spelling_prompts_have_saebench_format():
    [prompt] = spelling_prompts(WORDS, n=1, seed=0)
    # base and answer of SAEBench's create_icl_prompt with ten examples, verbose template,
    # first_letter_formatter, separator before the first example
    assert sorted(prompt.split("\n")) == sorted(
        [
            "",
            "cat has the first letter: C",
            " Dog has the first letter: D",
            "x has the first letter: X",
            " apple has the first letter: A",
            "Zoo has the first letter: Z",
            "ing has the first letter: I",
            " the has the first letter: T",
            "Quick has the first letter: Q",
            " B has the first letter: B",
            "over has the first letter: O",
            " jump has the first letter: J",
        ]
    )
    assert prompt.startswith("\n")


def test_spelling_prompts_follow_the_seed():
    first = spelling_prompts(WORDS, n=5, seed=1)
    assert len(set(first)) == 5
    assert first == spelling_prompts(WORDS, n=5, seed=1)
    assert first != spelling_prompts(WORDS, n=5, seed=2)
    with pytest.raises(ValueError, match="at least 11 words, got 3"):
        spelling_prompts(WORDS[:3], n=1, seed=0)
