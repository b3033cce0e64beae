"""The model card: from what the repo holds to its README.md."""

import html
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from bench_helpers import D_MODEL, WIDTHS, random_sae
from huggingface_hub import ModelCard

from sae_lens_matryoshka import calibrate_threshold
from sae_lens_matryoshka.hub.card import BEGIN, END, build_card
from sae_lens_matryoshka.hub.card_entry import CardEntry
from sae_lens_matryoshka.hub.level_plot import MARK, PLOT, level_plot
from sae_lens_matryoshka.levels import measurements as level_results
from sae_lens_matryoshka.levels.measurements import measurement


def entry(sae_id: str = "a", widths: list[int] | None = WIDTHS, **metadata: Any) -> CardEntry:
    cfg = random_sae(widths=widths).cfg
    for key, value in metadata.items():
        cfg.metadata[key] = value
    return CardEntry(sae_id, cfg.to_dict(), {})


def measured(sae_id: str = "a", widths: list[int] | None = WIDTHS, **labels: Any) -> CardEntry:
    """An SAE of whose levels L0, FVU and other things are known."""
    made = random_sae(widths=widths)
    known = {
        width: {
            "L0": measurement([9.63 + i]),
            "FVU ↓": measurement([0.651 / (i + 1)]),
            **{label: measurement(value) for label, value in labels.items()},
        }
        for i, width in enumerate(widths or WIDTHS[-1:])
    }
    level_results.record(made, known)
    return CardEntry(sae_id, made.cfg.to_dict(), {})


def card(
    *entries: CardEntry,
    existing: str | None = None,
    license_id: str | None = None,
    published: set[str] = frozenset(),  # type: ignore[assignment]
) -> Any:
    return ModelCard(build_card("me/saes", entries, published, existing, license_id))


def shown(sae_id: str, cfg: dict[str, Any]) -> CardEntry | None:
    """Somebody's SAE, None if the card leaves it out."""
    return CardEntry.of_any_version(sae_id, cfg, {}, check=lambda one: card(one))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def row(text: str, start: str) -> list[str]:
    return cells(next(line for line in text.splitlines() if line.startswith(start)))


def section(text: str, sae_id: str) -> str:
    """What stands below an SAE's heading, up to the next one."""
    return re.split(r"\n##", text.split(f"### `{sae_id}`")[1])[0]


class TestFrontMatter:
    def test_what_the_hub_reads(self):
        data = card(
            entry(model_name="gemma-2-2b", dataset_path="monology/pile-uncopyrighted"),
            license_id="apache-2.0",
        ).data
        assert data.library_name == "saelens"
        assert data.license == "apache-2.0"
        assert data.base_model == "google/gemma-2-2b"
        assert data.datasets == ["monology/pile-uncopyrighted"]
        assert data.tags == ["saelens", "sparse-autoencoder", "matryoshka"]

    def test_a_model_and_data_that_are_not_on_the_hub(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "data" / "text").mkdir(parents=True)
        data = card(entry(model_name="my-own", dataset_path="data/text")).data
        assert data.base_model is None
        assert data.datasets is None

    @pytest.mark.parametrize(
        "name", ["a/b/c", "/a", "a/", "a b/c", "a/b..c", "ä/ö", "a/" + "b" * 200, "a/b.git"]
    )
    def test_names_that_the_hub_refuses(self, name):
        data = card(entry(model_name=name, dataset_path=name)).data
        assert data.base_model is None and data.datasets is None

    def test_several_models(self):
        data = card(entry("a", model_name="pythia-70m"), entry("b", model_name="some/model")).data
        assert data.base_model == ["EleutherAI/pythia-70m", "some/model"]

    @pytest.mark.parametrize("widths", [None, WIDTHS[-1:]])
    def test_a_flat_sae_is_no_matryoshka(self, widths: list[int] | None):
        flat = card(entry(widths=widths))
        assert flat.data.tags == ["saelens", "sparse-autoencoder"]
        written = flat.text.split("<!--")[1].split("-->", 1)[1]
        assert "atryoshka" not in written and "level" not in written

    def test_what_stands_there_is_kept(self):
        existing = "---\nlicense: mit\nlanguage: en\ntags: [mine, saelens]\n---\n\nHello.\n"
        data = card(entry(), existing=existing).data
        assert (data.license, data.language) == ("mit", "en")
        assert data.tags == ["mine", "saelens", "sparse-autoencoder", "matryoshka"]


class TestFirstScreen:
    def test_title_and_what_it_was_trained_on(self):
        made = entry(model_name="gemma-2-2b", dataset_path="monology/pile-uncopyrighted")
        made.runner_cfg.update(training_tokens=500_000_000)
        first = "\n".join(card(made).text.splitlines()[:20])
        assert "# Matryoshka SAE for gemma-2-2b\n" in first
        assert "[gemma-2-2b](https://huggingface.co/google/gemma-2-2b)" in first
        assert "`blocks.1.hook_resid_post` (256 dimensions)" in first
        assert "500,000,000 tokens of [monology/pile-uncopyrighted](https://hugg" in first
        assert "64 tokens, the first of them BOS" in first
        assert "16 · 64 · 160" in first

    @pytest.mark.parametrize(
        ("entries", "title"),
        [
            ([entry()], "Matryoshka SAE for demo"),
            ([entry("a"), entry("b")], "Matryoshka SAEs for demo"),
            ([entry(widths=None)], "Sparse autoencoder for demo"),
            ([entry("a"), entry("b", widths=None)], "Sparse autoencoders for demo"),
            ([entry("a"), entry("b", model_name="gpt2")], "Matryoshka SAEs for demo and gpt2"),
            ([entry(model_name=None)], "Matryoshka SAE: saes"),
            ([entry(str(i), model_name=f"m{i}") for i in range(4)], "Matryoshka SAEs: saes"),
            ([entry(model_name="/home/alice/my-llama")], "Matryoshka SAE for my-llama"),
        ],
    )
    def test_title(self, entries, title):
        assert f"\n# {title}\n" in card(*entries).text

    def test_of_a_checkpoint_the_tokens_that_it_has_seen(self):
        made = entry(trained_tokens=1_000)
        made.runner_cfg.update(training_tokens=500_000_000)
        assert "1,000 tokens" in card(made).text and "500,000,000" not in card(made).text

    def test_a_level_that_was_published_on_its_own_names_its_parent(self):
        origin = {"level": 1, "width": 64, "parent_widths": WIDTHS}
        made = entry(widths=[64], matryoshka_level=origin)
        made.cfg["d_sae"] = 64
        assert "**Part of:** level 1 of an SAE with 160 latents" in card(made).text

    def test_facts_that_differ_are_in_the_overview(self):
        a = entry("a", hook_name="blocks.0.hook_resid_post")
        text = card(a, entry("b")).text
        assert row(text, "| sae_id") == ["sae_id", "Hook"]
        assert row(text, "| `b`") == ["`b`", "`blocks.1.hook_resid_post` (256 dimensions)"]
        assert "**Latents:** 160" in text


class TestTable:
    def test_levels_in_rows_and_what_is_known_in_columns(self):
        sae = random_sae(widths=WIDTHS)
        level_results.record(
            sae,
            {
                16: {"L0": measurement([9.63]), "FVU ↓": measurement([0.651])},
                160: {"FVU ↓": measurement([0.263]), "TPP ↑": measurement([0.1, 0.2, 0.3])},
            },
        )
        text = card(CardEntry("a", sae.cfg.to_dict(), {})).text
        assert row(text, "| level") == ["level", "width", "L0", "FVU ↓", "TPP ↑"]
        assert row(text, "| 0 (innermost)") == ["0 (innermost)", "16", "9.6", "0.651", "-"]
        assert row(text, "| 2 (outermost)") == [
            *("2 (outermost)", "160", "-", "0.263", "0.200 ± 0.100")
        ]

    def test_a_table_per_sae(self):
        """No row can be read as a level of another SAE."""
        topk = measured("topk", widths=[8, 160])
        topk.cfg["architecture"] = "topk"
        flat, other = measured("flat", widths=None, **{"TPP ↑": [0.5]}), measured("b/c", [32, 160])
        text = card(flat, other, topk, entry("unmeasured")).text
        assert "32" in section(text, "b/c") and "8" not in section(text, "b/c").split("160")[0]
        assert cells(section(text, "topk").strip().splitlines()[2])[:2] == ["0 (innermost)", "8"]
        assert section(text, "flat").count("\n|") == 3 and "level" not in section(text, "flat")
        assert "### `unmeasured`" not in text
        assert row(text, "| `unmeasured`")[-2:] == ["-", "-"]

    def test_many_measurements_stay_within_a_page(self):
        labels = {f"metric {i} ↑": [0.1] for i in range(9)}
        text = card(measured(**labels)).text
        tables = [line for line in text.splitlines() if line.startswith("| level")]
        assert max(len(cells(head)) for head in tables) <= 6
        assert [label for head in tables for label in cells(head)[2:]] == ["L0", "FVU ↓", *labels]

    def test_levels_that_are_published_say_how_to_load_them(self):
        ids = [f"a/level_{i}_width_{w}" for i, w in enumerate(WIDTHS[:-1])]
        text = card(entry(), published={"a", *ids}).text
        names = text.split("| sae_id")[1]
        for line, sae_id in zip(["| 0 (inn", "| 1 ", "| 2 (out"], [*ids, "a"], strict=True):
            assert row(names, line)[-1] == f"`{sae_id}`"  # the outermost level is the SAE itself
        assert f'SAE.from_pretrained("me/saes", "{ids[0]}")' in text

    def test_legends_of_columns_that_are_there_only(self):
        converted = card(entry(model_name="gpt2")).text
        for absent in ("L0", "FVU", "Dead", "lower is better", "## Levels"):
            assert absent not in converted
        only_l0 = card(entry(l0=24.0)).text
        assert "**L0**" in only_l0 and "FVU" not in only_l0 and "is better" not in only_l0
        full = card(measured(**{"TPP ↑": [0.1]})).text
        assert "**FVU**" in full and "↓ lower is better, ↑ higher is better." in full

    def test_l0_of_training_says_so(self):
        assert row(card(entry(l0=24.0)).text, "| 2 (outermost)")[2] == "24.0 (in training)"

    def test_l0_that_was_calibrated_says_so(self):
        x = torch.randn(500, D_MODEL)
        sae = calibrate_threshold(random_sae(widths=WIDTHS), x, 7)
        made = CardEntry("a", sae.cfg.to_dict(), {})
        assert row(card(made).text, "| 2 (outermost)")[2] == "7.0 (calibrated)"

    def test_dead_latents_are_counted_once(self):
        both = measured(**{"dead latents": [0]})
        both.metadata["num_dead_features"] = 41
        assert "num_dead_features" not in card(both).text
        one = entry(num_dead_features=41)
        assert "num_dead_features" in card(one).text

    def test_of_another_branch(self):
        text = build_card("me/saes", [entry()], set(), None, None, "next")
        assert 'revision="next"' in text
        assert "From this branch, `next`" in text
        assert "SAE.from_pretrained(" not in text.replace("MatryoshkaSAE.from_pretrained(", "")

    @pytest.mark.parametrize(
        "strange",
        [
            {"l0": "24"},
            {"training_architecture_details": "x"},
            {"model_name": 7},
            {"level_results_notes": 5},
            {"level_results": {"16": {"L0": {"mean": "many"}}}},
            {"matryoshka_level": {"parent_widths": "wide"}},
            {"needs_package": "os; print(1)"},
            {"needs_package": "x\n```\n<script>"},
        ],
        ids=str,
    )
    def test_somebody_elses_odd_metadata_is_left_out(self, strange):
        cfg = random_sae(widths=WIDTHS).cfg.to_dict()
        cfg["metadata"] = {**cfg["metadata"], **strange}
        assert shown("odd", cfg) is None

    def test_several_data_sets_are_named(self):
        cfg = random_sae(widths=WIDTHS).cfg.to_dict()
        cfg["metadata"] = {**cfg["metadata"], "dataset_path": ["a/b", "c/d"]}
        made = shown("several", cfg)
        assert made is not None and "`['a/b', 'c/d']`" in card(made).text

    def test_notes(self):
        made = entry(l0=1.0, level_results_notes=["TPP: an audit found it unreliable"])
        assert "\n- TPP: an audit found it unreliable.\n" in card(made).text

    def test_notes_of_some_saes_only(self):
        a = entry("a", l0=1.0, level_results_notes=["on gpt2", "the same"])
        b = entry("b", l0=1.0, level_results_notes=["on pythia", "the same"])
        text = card(a, b, entry("c")).text
        assert "- `a`: on gpt2." in text and "- `b`: on pythia." in text and "- the same." in text


class TestPlot:
    def test_a_relative_link_and_a_file_that_no_one_has_to_fetch(self):
        made = measured()
        assert f"]({PLOT})" in card(made).text and "/" not in PLOT
        svg = level_plot([made])
        assert svg is not None and svg == level_plot([made])  # the same again is no commit
        assert "<text" not in svg  # letters are drawn: no font is needed
        assert not re.search(r"(href|url|src)\s*[=(]\s*[\"']?http", svg)
        assert "#ffffff" in svg  # a background of its own, for pages that are dark

    @pytest.mark.parametrize(
        "made", [entry(), entry(l0=24.0), measured(widths=None)], ids=["nothing", "l0", "flat"]
    )
    def test_none_without_levels_that_were_measured(self, made):
        assert level_plot([made]) is None
        assert PLOT not in card(made).text

    def test_names_are_no_markup(self):
        names = ["$x_1$", "<b>&", "a" * 200, "\x00\n"]
        svg = level_plot([measured(name) for name in names])
        assert svg is not None and "<b>" not in svg.split("</metadata>")[1]

    def test_many_saes(self):
        assert level_plot([measured(f"sae_{i}") for i in range(30)]) is not None


HOSTILE = (
    "x|y`z`` <script>alert(1)</script> ![i](http://evil.example/i.png) **b** [l](http://e.example)"
    "\n# heading\n\n- item\n```\n</details>\n" + END + "\n| a | b |\n&lt; @user www.evil.example"
)


@pytest.mark.parametrize(
    "hostile",
    [
        {"model_name": HOSTILE},
        {"hook_name": HOSTILE},
        {"dataset_path": HOSTILE},
        {"training_architecture": HOSTILE},
        {"training_architecture_details": {HOSTILE: HOSTILE, "k": HOSTILE, "activation": HOSTILE}},
        {"l0": 1.0, "level_results_notes": [HOSTILE]},
        {"level_results": {"160": {HOSTILE: {"mean": 1.5}}}},
        {"sae_lens_version": HOSTILE},
    ],
    ids=lambda hostile: next(iter(hostile)),
)
def test_others_text_is_shown_and_never_read_as_markup(hostile):
    made = entry("a", widths=None, **hostile)
    text = build_card("me/saes", [made, measured("b")], set(), None, None)
    assert build_card("me/saes", [made, measured("b")], set(), text, None) == text  # marks hold
    body = text.split(BEGIN)[1].split(END)[0]
    for markup in ("<script", "![i]", "[l]", "**b**", "\n- item", "@user", "www.evil", "://e.ex"):
        assert markup not in body
    fences = [line for line in body.splitlines() if line.startswith("```")]
    assert len(fences) == 6 and body.count("<details>") == body.count("</details>") == 1
    for table in re.findall(r"(?:^\|.*\n)+", body, flags=re.MULTILINE):
        assert len({len(cells(line)) for line in table.splitlines()}) == 1  # no cell too many
    assert "alert(1)</script>" in html.unescape(body)


class TestText:
    def test_how_to_load(self):
        text = card(entry("deep/er")).text
        assert 'SAE.from_pretrained("me/saes", "deep/er")' in text
        assert 'MatryoshkaSAE.from_pretrained("me/saes", "deep/er")' in text
        assert "matryoshka.level(0)" in text and "matryoshka.truncate(" in text
        assert "acts[:, :16] @ sae.W_dec[:16] + sae.b_dec" in text
        assert "bussmann2025" in text

    @pytest.mark.parametrize(
        "changes", [{"normalize_activations": "layer_norm"}, {"reshape_activations": "hook_z"}]
    )
    def test_decoding_a_prefix_by_hand_is_shown_where_it_is_right(self, changes):
        made = entry()
        made.cfg.update(changes)
        assert "sae.W_dec[:16]" not in card(made).text

    def test_common_settings_once_and_differing_ones_in_a_table(self):
        a = entry("a", training_architecture_details={"aux": 20, "matryoshka_widths": WIDTHS})
        b = entry("b", training_architecture_details={"aux": 40, "matryoshka_widths": WIDTHS})
        text = card(a, b).text.split("<details>")[1]
        assert text.count("prepend_bos") == 1
        assert row(text, "| sae_id") == ["sae_id", "`aux`"]
        assert row(text, "| `b`") == ["`b`", "`40`"]

    def test_settings_are_folded_away(self):
        made = entry()
        made.runner_cfg.update(lr=3e-4, train_batch_size_tokens=4096, wandb_id="secret")
        text = card(made).text
        folded = text.split("<details>")[1].split("</details>")[0]
        assert row(folded, "| `lr`") == ["`lr`", "`0.0003`"]
        assert text.replace(folded, "").count("4096") == 0
        assert "secret" not in text

    def test_an_sae_that_needs_a_package(self):
        text = card(entry("a", needs_package="their_package"), entry("b")).text
        assert "Not for stock SAELens:** `a` needs the package `their_package`." in text
        assert 'SAE.from_pretrained("me/saes", "b")' in text

    def test_an_sae_that_needs_this_package(self):
        ours = entry("a", needs_package="sae_lens_matryoshka")
        ours.cfg.update(architecture="matryoshka_refined", refinement_step=0.3)
        text = card(ours).text
        assert (
            "Not for stock SAELens:** `a` needs the package `sae_lens_matryoshka`.\n"
            "Call `import sae_lens_matryoshka` before `SAE.from_pretrained`.\n"
        ) in text
        assert "With SAELens alone" not in text
        loading = 'import sae_lens_matryoshka\nfrom sae_lens import SAE\n\nsae = SAE.from_pretrained("me/saes", "a")'
        assert text.count(loading) == 1
        assert "matryoshka.level(0)  # an SAE of the first 16 latents" in text
        assert row(text, "| `refinement_step`") == ["`refinement_step`", "`0.3`"]

    def test_one_example_per_needed_package(self):
        others = [entry(sae_id, needs_package="theirs") for sae_id in ("b", "c")]
        text = card(entry("a"), *others).text
        assert (
            'import theirs\nfrom sae_lens import SAE\n\nsae = SAE.from_pretrained("me/saes", "b")'
            in text
        )
        assert text.count("import theirs") == 2 and "pip install" not in text

    @pytest.mark.parametrize("existing", ["", "# Mine\n", "---\nlicense: mit\n---\n# Mine\n"])
    def test_building_it_again_changes_nothing(self, existing):
        first = build_card("me/saes", [entry()], set(), existing or None, None)
        assert build_card("me/saes", [entry()], set(), first, None) == first
        assert ("# Mine" in first) == bool(existing)

    def test_a_topk_sae_has_no_levels_to_cut(self):
        made = entry()
        made.cfg["architecture"] = "topk"
        text = card(made).text
        assert "level(0)" not in text and "as_jumprelu=True" in text
        assert "acts[:, :16] @ sae.W_dec[:16]" in text  # the nested reconstruction, though
        assert "bussmann2025" in text

    def test_local_paths_are_left_out(self):
        text = card(entry(dataset_path="/home/alice/data", model_name="./mine")).text
        assert "alice" not in text and "./mine" not in text
        windows = card(entry(dataset_path="C:\\alice\\data", model_name="C:\\alice\\mine")).text
        assert "alice" not in windows and "mine" in windows


def test_the_example_in_the_documentation_is_of_today():
    """docs/publish.md says how it is written anew; numbers are a real run's, words are the template's."""
    docs = Path(__file__).parents[2] / "docs" / "results"
    example = (docs / "quickstart-card.txt").read_text(encoding="utf-8")
    widths = [64, 192, 448, 960, 2048]
    made = measured("blocks.1.hook_resid_post", widths, **{"cross-entropy ↑": [0.9]})
    made.cfg["d_sae"] = 2048
    made.metadata.update(model_name="demo-neox-5m", context_size=128)
    levels = {f"{made.sae_id}/level_{i}_width_{w}" for i, w in enumerate(widths)}
    today = build_card("me/x", [made], levels, None, "mit")

    def words(text: str) -> list[str]:
        return [line for line in text.splitlines() if line and line[0] not in "-|"]

    assert words(example) == words(today)
    assert MARK in (docs / "quickstart-levels.svg").read_text(encoding="utf-8")


class TestWhatIsThere:
    @pytest.mark.parametrize(
        "spoil",
        [
            lambda text: text.replace(END, ""),
            lambda text: text.replace(BEGIN, ""),
            lambda text: text.replace(BEGIN, "x").replace(END, BEGIN).replace("x", END),
            lambda text: text + text.split("---\n", 2)[2],
        ],
    )
    def test_marks_that_are_not_a_pair(self, spoil):
        text = spoil(build_card("me/saes", [entry()], set(), None, None))
        with pytest.raises(ValueError, match="Leave one of each, in this order"):
            build_card("me/saes", [entry()], set(), text, None)

    def test_front_matter_that_is_not_ours_to_read(self):
        index = (
            "model-index:\n- name: one\n  results: [{anything: 1}]\n- name: two\n  results: []\n"
        )
        text = build_card("me/saes", [entry()], set(), f"---\n{index}---\n", None)
        front = yaml.safe_load(text.split("---\n")[1])
        assert front["model-index"] == yaml.safe_load(index)["model-index"]
        with pytest.raises(ValueError, match="front matter of README.md cannot be read"):
            build_card("me/saes", [entry()], set(), "---\na: [\n---\n", None)

    @pytest.mark.parametrize(
        "cfg", [{}, {"d_sae": "many"}, {"architecture": "nobodys", "d_sae": 8, "metadata": None}]
    )
    def test_a_strange_sae_is_left_out(self, cfg, caplog):
        assert shown("strange", cfg) is None and "leaves out 'strange'" in caplog.text

    def test_an_sae_of_an_old_saelens(self):
        cfg = {
            "d_in": 8,
            "d_sae": 16,
            "hook_point": "blocks.0.hook_resid_pre",
            "model_name": "gpt2",
        }
        found = shown("old", {**cfg, "dtype": "float32"})
        assert found is not None
        text = card(found).text
        assert "`blocks.0.hook_resid_pre` (8 dimensions)" in text and "**Latents:** 16" in text
        assert "6.54" not in text  # it says nothing of its version, so the card does not either
