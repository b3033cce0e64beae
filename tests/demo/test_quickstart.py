"""The README's first command, in its small size, and the snippets that it shows."""

from pathlib import Path

import pytest
import torch
from sae_lens import SAE

from sae_lens_matryoshka.demo import quickstart
from sae_lens_matryoshka.demo.contexts import LatentActivity, latent_activity, top_snippets
from sae_lens_matryoshka.demo.model import load_model
from sae_lens_matryoshka.settings.yaml_file import ConfigError


class Characters:
    """A tokenizer whose tokens are letters; 0 begins a text."""

    def decode(self, ids):
        return "".join(" " if i == 27 else chr(96 + i) if i else "|" for i in ids)


def ids(text: str) -> list[int]:
    return [0, *(27 if letter == " " else ord(letter) - 96 for letter in text)]


def activity(firing: list[tuple[int, int, int, float]], texts: list[str]) -> LatentActivity:
    rows, positions, latents, values = zip(*firing)
    tokens = torch.tensor([ids(text) for text in texts])
    return LatentActivity(
        tokens,
        tokens != 0,
        torch.tensor(rows),
        torch.tensor(positions),
        torch.tensor(latents),
        torch.tensor(values),
        d_sae=4,
    )


def test_an_sae_of_the_users_is_not_replaced(tmp_path: Path):
    (tmp_path / "sae").mkdir()
    (tmp_path / "sae" / "cfg.json").write_text("mine")
    with pytest.raises(ConfigError, match="already holds sae"):
        quickstart.run(tmp_path, small=True)
    assert (tmp_path / "sae" / "cfg.json").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]


def test_snippets_are_the_strongest_of_different_texts():
    seen = activity(
        [(0, 1, 2, 1.0), (0, 3, 2, 5.0), (1, 2, 2, 3.0), (1, 1, 3, 9.0)], ["abcd", "efgh"]
    )
    first, second = top_snippets(seen, 2, Characters())
    assert (first.before, first.token, first.after, first.activation) == ("ab", "c", "d", 5.0)
    assert (second.before, second.token, second.after) == ("e", "f", "gh")
    assert top_snippets(seen, 2, Characters(), n=1) == [first]
    assert top_snippets(seen, 0, Characters()) == []


def test_long_context_is_cut_between_words():
    text = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    position = text.index("twelve") + 1
    snippet = top_snippets(activity([(0, position, 1, 1.0)], [text]), 1, Characters())[0]
    assert snippet.before == "... four five six seven eight nine ten eleven "
    assert snippet.token == "t"
    assert snippet.after == "welve thirteen fourteen fifteen ..."


def test_a_snippet_ends_where_its_text_ends():
    seen = activity([(0, 4, 2, 1.0)], ["abcdef"])
    seen.tokens[0, 2] = seen.tokens[0, 6] = 0  # a text of three letters between two others
    seen.counted[:] = seen.tokens != 0
    (snippet,) = top_snippets(seen, 2, Characters())
    assert (snippet.before, snippet.token, snippet.after) == ("c", "d", "e")


def test_frequency_leaves_the_first_token_out():
    seen = activity([(0, 1, 2, 1.0), (0, 3, 2, 5.0), (1, 2, 3, 3.0)], ["abcd", "efgh"])
    assert seen.frequency.tolist() == [0, 0, 2 / 8, 1 / 8]


def test_typical_latents_are_spread_over_those_that_fire():
    firing = [(0, 1, 1, 3.0), (0, 2, 2, 9.0), (0, 3, 3, 5.0)]
    dense = [(0, position, 0, 7.0) for position in range(1, 30)]
    seen = activity([*firing, *dense], ["abcdefghijklmnopqrstuvwxyzabcdefgh"])
    assert list(quickstart._typical_latents(seen, 0, 4)) == [3, 1]


@pytest.mark.slow
def test_small_quickstart_end_to_end(tmp_path, capsys):
    results = quickstart.run(tmp_path / "out", small=True)

    assert [result.width for result in results] == [8, 24, 56, 120, 256]
    for inner, outer in zip(results, results[1:]):
        assert outer.l0 > inner.l0
        assert outer.fvu < inner.fvu
        assert outer.ce_recovered > inner.ce_recovered
    assert results[-1].l0 == pytest.approx(8, rel=0.1)  # held-out text, a short run
    assert results[-1].fvu < 0.8
    assert 0.5 < results[-1].ce_recovered < 1

    printed = capsys.readouterr().out
    assert "Latents of the first level (0-7)" in printed
    assert "Latents of the last level (120-255)" in printed
    assert printed.count("fires on") >= 5

    sae = SAE.load_from_disk(tmp_path / "out" / "sae")
    assert sae.cfg.architecture() == "jumprelu"
    assert sae.cfg.metadata.hook_name == quickstart.HOOK_NAME
    model = load_model()
    tokens = model.to_tokens("The president said that the company would pay.")
    shown = latent_activity(model, sae, tokens)
    assert shown.row.unique().tolist() == [0]
    assert (shown.position > 0).all()
    _, cache = model.run_with_cache(tokens)
    acts = sae.encode(cache[quickstart.HOOK_NAME])[0, 1:]
    assert shown.activation.sum().item() == pytest.approx(acts.sum().item(), rel=1e-4)
