"""The model card: from what the repo holds to its README.md."""

from typing import Any

import pytest
import torch
import yaml
from bench_helpers import D_MODEL, WIDTHS, random_sae
from huggingface_hub import ModelCard

from sae_lens_matryoshka import calibrate_threshold, level_results
from sae_lens_matryoshka.hub.card import BEGIN, END, CardEntry, build_card
from sae_lens_matryoshka.level_results import measurement


def entry(sae_id: str = "a", widths: list[int] | None = WIDTHS, **metadata: Any) -> CardEntry:
    cfg = random_sae(widths=widths).cfg
    for key, value in metadata.items():
        cfg.metadata[key] = value
    return CardEntry(sae_id, cfg.to_dict(), {})


def card(
    *entries: CardEntry,
    existing: str | None = None,
    license_id: str | None = None,
    published: set[str] = frozenset(),  # type: ignore[assignment]
) -> Any:
    return ModelCard(build_card("me/saes", entries, published, existing, license_id))


def row(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(start))
    return [cell.strip() for cell in line.strip("|").split("|")]


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

    def test_several_models(self):
        data = card(entry("a", model_name="pythia-70m"), entry("b", model_name="some/model")).data
        assert data.base_model == ["EleutherAI/pythia-70m", "some/model"]

    @pytest.mark.parametrize("widths", [None, WIDTHS[-1:]])
    def test_a_flat_sae_is_no_matryoshka(self, widths: list[int] | None):
        flat = card(entry(widths=widths))
        assert flat.data.tags == ["saelens", "sparse-autoencoder"]
        written = flat.text.split("<!--")[1].split("-->", 1)[1]
        setting = f"- matryoshka_widths: {widths}\n" if widths else ""
        assert "atryoshka" not in written.replace(setting, "")

    def test_what_stands_there_is_kept(self):
        existing = "---\nlicense: mit\nlanguage: en\ntags: [mine, saelens]\n---\n\nHello.\n"
        data = card(entry(), existing=existing).data
        assert (data.license, data.language) == ("mit", "en")
        assert data.tags == ["mine", "saelens", "sparse-autoencoder", "matryoshka"]


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
        assert row(text, "| sae_id") == ["sae_id", "level", "width", "L0", "FVU ↓", "TPP ↑"]
        rows = [
            line for line in text.splitlines() if "(innermost)" in line or "(outermost)" in line
        ]
        assert [cell.strip() for cell in rows[0].strip("|").split("|")] == [
            *("", "0 (innermost)", "16", "9.6", "0.651", "-")
        ]
        assert row(text, "| `a`") == [
            *("`a`", "2 (outermost)", "160", "-", "0.263", "0.200 ± 0.100")
        ]

    def test_levels_that_are_published_say_how_to_load_them(self):
        levels = {f"a/level_{i}_width_{w}" for i, w in enumerate(WIDTHS)}
        text = card(entry(), published={"a", *levels}).text
        assert row(text, "| `a/level_0_width_16`")[1:] == ["0 (innermost)", "16"]
        assert "`a/level_2_width_160`" not in text  # that is `a`
        assert text.count("(innermost)") == 1

    def test_l0_of_training_says_so(self):
        assert row(card(entry(l0=24.0)).text, "| `a`")[3] == "24.0 (in training)"

    def test_l0_that_was_calibrated_says_so(self):
        x = torch.randn(500, D_MODEL)
        sae = calibrate_threshold(random_sae(widths=WIDTHS), x, 7)
        made = CardEntry("a", sae.cfg.to_dict(), {})
        assert row(card(made).text, "| `a`")[3] == "7.0 (calibrated)"

    def test_of_another_branch(self):
        text = build_card("me/saes", [entry()], set(), None, None, "next")
        assert 'revision="next"' in text
        assert "From this branch, `next`" in text
        assert "SAE.from_pretrained(" not in text.replace("MatryoshkaSAE.from_pretrained(", "")

    @pytest.mark.parametrize(
        "strange",
        [
            {"dataset_path": ["a/b", "c/d"]},
            {"l0": "24"},
            {"training_architecture_details": "x"},
            {"model_name": 7},
            {"level_results_notes": 5},
        ],
        ids=str,
    )
    def test_somebody_elses_odd_metadata_is_left_out(self, strange):
        cfg = random_sae(widths=WIDTHS).cfg.to_dict()
        cfg["metadata"] = {**cfg["metadata"], **strange}
        assert CardEntry.of_any_version("odd", cfg, {}) is None

    def test_notes(self):
        made = entry(level_results_notes=["TPP: an audit found it unreliable"])
        assert "\n- TPP: an audit found it unreliable" in card(made).text

    def test_notes_of_some_saes_only(self):
        a = entry("a", level_results_notes=["on gpt2", "the same"])
        b = entry("b", level_results_notes=["on pythia", "the same"])
        text = card(a, b, entry("c")).text
        assert "- `a`: on gpt2" in text and "- `b`: on pythia" in text and "- the same" in text


class TestText:
    def test_how_to_load(self):
        text = card(entry("deep/er")).text
        assert 'SAE.from_pretrained("me/saes", "deep/er")' in text
        assert 'MatryoshkaSAE.from_pretrained("me/saes", "deep/er", revision="main")' in text
        assert "bussmann2025" in text

    def test_common_settings_once_and_differing_ones_in_a_table(self):
        a = entry("a", training_architecture_details={"k": 20, "matryoshka_widths": WIDTHS})
        b = entry("b", training_architecture_details={"k": 40, "matryoshka_widths": WIDTHS})
        text = card(a, b).text.split("## Training")[1]
        assert text.count("context_size: 64") == 1
        assert row(text, "| sae_id") == ["sae_id", "k"]
        assert row(text, "| `b`") == ["`b`", "40"]

    def test_settings_of_the_runner(self):
        made = entry()
        made.runner_cfg.update(lr=3e-4, training_tokens=1000, wandb_id="secret")
        text = card(made).text
        assert "- lr: 0.0003" in text and "- training_tokens: 1000" in text
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
        assert "With stock SAELens" not in text
        loading = 'import sae_lens_matryoshka\nfrom sae_lens import SAE\n\nsae = SAE.from_pretrained("me/saes", "a")'
        assert text.count(loading) == 1
        assert "matryoshka.level(0)  # an SAE of the first 16 latents" in text
        assert "- refinement_step: 0.3" in text

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
        assert "level(0)" not in text
        assert "bussmann2025" in text

    def test_local_paths_are_nobodys_business(self):
        text = card(entry(dataset_path="/home/alice/data", model_name="./mine")).text
        assert "alice" not in text and "./mine" not in text


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
        found = CardEntry.of_any_version("strange", cfg, {})
        assert found is None and "says nothing of 'strange'" in caplog.text

    def test_an_sae_of_an_old_saelens(self):
        cfg = {
            "d_in": 8,
            "d_sae": 16,
            "hook_point": "blocks.0.hook_resid_pre",
            "model_name": "gpt2",
        }
        found = CardEntry.of_any_version("old", {**cfg, "dtype": "float32"}, {})
        assert found is not None
        text = card(found).text
        assert row(text, "| `old`") == ["`old`", "-", "16"]
        assert "6.54" not in text  # it says nothing of its version, so the card does not either
