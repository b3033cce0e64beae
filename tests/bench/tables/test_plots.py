import json
import math
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from matplotlib import image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from plotly.offline import get_plotlyjs

from sae_lens_matryoshka.bench.outcome import Metric, Outcome
from sae_lens_matryoshka.bench.tables.plot_data import Chart, Series
from sae_lens_matryoshka.bench.tables.plot_html import Heading
from sae_lens_matryoshka.bench.tables.plot_png import figure
from sae_lens_matryoshka.bench.tables.plot_series import COLORS, charts
from sae_lens_matryoshka.bench.tables.plots import write_plots

WIDTHS = {"flat": (64,), "nested": (16, 32, 64)}
L0S = {"flat": (9.0,), "nested": (3.25, 5.5, 8.75)}
HEADING = Heading("tiny-model", "blocks.1.hook_resid_post", ("sae-bench 0.6.0",))
FRACTION = Metric(
    "absorption", "fraction", "absorption fraction", "lower", axis="absorption, mean over letters"
)
FULL = Metric("absorption", "full", "full absorption", "lower", in_table=False)
ACCURACY = Metric("probing", "accuracy", "probing k=1", "higher")
METRICS = [FRACTION, FULL, ACCURACY]


def outcome(sae: str, level: int, name: str, seed: int | None, **rest: Any) -> Outcome:
    rest = {"status": "done", **rest}
    widths = WIDTHS.get(sae, (128,))
    return Outcome(sae, level, len(widths), widths[level], name, seed, **rest)


def letters(level: int, seed: int) -> list[dict[str, Any]]:
    return [
        {
            "first_letter": letter,
            "mean_absorption_fraction": 0.1 * level + 0.01 * seed + 0.001 * i,
            "full_absorption_rate": math.nan if letter == "c" else 0.05,
            "num_probe_true_positives": 40 + i,
        }
        for i, letter in enumerate("acz")
    ]


def made_up() -> list[Outcome]:
    found: list[Outcome] = []
    for sae, widths in WIDTHS.items():
        for level in range(len(widths)):
            fidelity = {"l0": L0S[sae][level], "fvu": 0.3}
            found.append(outcome(sae, level, "fidelity", None, metrics=fidelity))
            for seed in (0, 1):
                values = {"fraction": 0.2 + 0.03 * level + 0.01 * seed, "full": 0.1}
                found.append(
                    outcome(
                        sae, level, "absorption", seed, metrics=values, details=letters(level, seed)
                    )
                )
                accuracy = {"accuracy": 0.7 + 0.0625 * level}
                found.append(outcome(sae, level, "probing", seed, metrics=accuracy))
    return found


def by_name(outcomes: list[Outcome], metrics: list[Metric] = METRICS) -> dict[str, Chart]:
    return {chart.name: chart for chart in charts(outcomes, metrics)}


def places(series: Series) -> list[tuple[float | str, Any]]:
    return [(point.x, pytest.approx(point.y)) for point in series.points]


# ---- what is shown


def test_each_metric_has_a_panel_against_l0_and_against_width():
    found = by_name(made_up())
    assert list(found) == [
        "absorption_by_l0",
        "absorption_by_width",
        "probing_by_l0",
        "probing_by_width",
        "absorption_by_letter",
    ]
    chart = found["absorption_by_l0"]
    assert [panel.metric for panel in chart.panels] == [FRACTION, FULL]
    assert "lower is better" in chart.panels[0].title
    assert chart.title == "First-letter absorption against L0"  # words, no key
    flat, nested = chart.panels[0].series
    assert places(flat) == [(9.0, 0.205)]
    assert places(nested) == [(3.25, 0.205), (5.5, 0.235), (8.75, 0.265)]
    assert nested.points[0].sd == pytest.approx(0.01 / math.sqrt(2))
    assert [point.is_outermost for point in nested.points] == [False, False, True]
    assert [x for x, _ in places(found["absorption_by_width"].panels[0].series[1])] == [16, 32, 64]
    assert found["absorption_by_width"].x_ticks == (16, 32, 64)


def test_levels_without_value_or_l0_are_left_out():
    outcomes = [
        o
        for o in made_up()
        if (o.sae, o.level, o.eval) not in {("nested", 0, "fidelity"), ("nested", 1, "probing")}
    ]
    outcomes.append(outcome("nested", 1, "probing", 0, metrics={"accuracy": math.nan}))
    found = by_name(outcomes)
    assert [p.x for p in found["probing_by_l0"].panels[0].series[1].points] == [8.75]
    assert [p.x for p in found["probing_by_width"].panels[0].series[1].points] == [16, 64]


def test_letters_are_those_of_the_outermost_level_averaged_over_seeds():
    chart = by_name(made_up())["absorption_by_letter"]
    assert chart.letters == ["a", "c", "z"]
    fraction, full = chart.panels
    assert places(fraction.series[1]) == [("a", 0.205), ("c", 0.206), ("z", 0.207)]
    assert places(full.series[1]) == [("a", 0.05), ("z", 0.05)]  # c has no value
    assert "No value: flat: c, nested: c." in chart.note  # and not 0, as other missing bars
    assert fraction.series[1].points[0].sd == pytest.approx(0.01 / math.sqrt(2))


def test_letters_carry_the_words_that_their_bars_rest_on():
    chart = by_name(made_up())["absorption_by_letter"]
    assert chart.positives == {"a": "40", "c": "41", "z": "42"}
    fewer = [
        replace(o, details=[{**one, "num_probe_true_positives": 7} for one in o.details])
        if o.sae == "flat"
        else o
        for o in made_up()
    ]
    assert (by_name(fewer)["absorption_by_letter"].positives or {})["a"] == "7-40"
    unknown = [
        replace(o, details=[{"first_letter": "a", "mean_absorption_fraction": 0.1}]) for o in fewer
    ]
    assert by_name(unknown)["absorption_by_letter"].positives == {"a": "?"}


def test_notes_tell_of_error_bars_where_there_are_some():
    assert "2 seeds" in by_name(made_up())["absorption_by_letter"].note
    assert "2 seeds" in by_name(made_up())["absorption_by_width"].note
    one_seed = by_name([o for o in made_up() if o.seed in (None, 0)])
    assert not any("Error bars" in chart.note for chart in one_seed.values())
    [axes, *_] = figure(one_seed["absorption_by_letter"]).axes
    assert not any(isinstance(one, ErrorbarContainer) for one in axes.containers)


def test_saes_of_one_colour_differ_in_the_pattern_of_their_bars():
    base = [o for o in made_up() if o.sae == "flat"]
    many = [replace(o, sae=f"flat-{i}") for i in range(9) for o in base]
    styles = [one.style for one in by_name(many)["absorption_by_letter"].series]
    assert len({(style.color, style.hatch) for style in styles}) == 9


def test_an_inner_levels_letters_never_stand_in_for_the_whole_sae():
    outcomes = [o for o in made_up() if (o.sae, o.level) != ("nested", 2)]
    chart = by_name(outcomes)["absorption_by_letter"]
    assert [series.name for series in chart.series] == ["flat"]


def test_an_sae_looks_the_same_in_every_chart():
    outcomes = [o for o in made_up() if (o.sae, o.eval) != ("flat", "probing")]
    styles = {
        (series.name, series.style)
        for chart in charts(outcomes, METRICS)
        for panel in chart.panels
        for series in panel.series
    }
    assert {(name, style.color) for name, style in styles} == {
        ("flat", COLORS[0]),
        ("nested", COLORS[1]),
    }
    assert len(styles) == 2


def test_published_results_are_dashed():
    published = [
        outcome("paper", 0, "fidelity", None, metrics={"l0": 12.0, "fvu": 0.3}, published=True),
        outcome("paper", 0, "absorption", None, metrics={"fraction": 0.5}, published=True),
    ]
    chart = by_name([*made_up(), *published])["absorption_by_l0"]
    flat, _, paper = chart.panels[0].series
    assert (paper.name, places(paper)) == ("paper (published)", [(12.0, 0.5)])
    assert paper.style.is_dashed and not flat.style.is_dashed


def test_a_published_result_without_a_width_is_not_drawn_against_it():
    published = outcome("paper", 0, "absorption", None, metrics={"fraction": 0.5}, published=True)
    charts = by_name([*made_up(), replace(published, width=0)])
    drawn = charts["absorption_by_width"].panels[0].series
    assert [series.name for series in drawn] == ["flat", "nested"]


def test_saes_of_one_width_are_drawn_apart_but_near():
    chart = by_name(made_up())["probing_by_width"]
    flat, nested = chart.panels[0].series
    left, right = chart.place(flat, flat.points[0]), chart.place(nested, nested.points[-1])
    assert isinstance(left, float) and isinstance(right, float)
    assert 60 < left < 64 < right < 68
    by_l0 = by_name(made_up())["probing_by_l0"]
    assert by_l0.place(flat, by_l0.panels[0].series[0].points[0]) == 9.0


# ---- the files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("plots") / "new"
    return write_plots(made_up(), METRICS, folder, HEADING, baseline="flat")


def test_files_are_those_returned(files: list[Path]):
    assert [path.name for path in files] == [
        "plots.html",
        "absorption_by_l0.png",
        "absorption_by_width.png",
        "probing_by_l0.png",
        "probing_by_width.png",
        "absorption_by_letter.png",
    ]
    assert sorted(files[0].parent.iterdir()) == sorted(files)


def test_pngs_show_both_saes_in_their_colours(files: list[Path]):
    for path in files[1:]:
        pixels = image.imread(path)[::2, ::2, :3]  # [height, width, 3]
        assert min(pixels.shape[:2]) > 150
        for color in COLORS[:2]:
            rgb = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
            assert (abs(pixels - rgb).max(-1) < 0.01).sum() > 25, (path.name, color)


def test_png_points_carry_their_spread():
    chart = by_name(made_up())["absorption_by_l0"]
    bars = figure(chart).axes[0].containers
    assert all(isinstance(bar, ErrorbarContainer) for bar in bars)
    segments = [bar[2][0].get_segments()[0] for bar in bars]  # [[x, low], [x, high]]
    sd = 0.01 / math.sqrt(2)
    middles = [(9.0, 0.205), (3.25, 0.205), (5.5, 0.235), (8.75, 0.265)]
    assert len(segments) == len(middles)
    for segment, (x, y) in zip(segments, middles, strict=True):
        assert segment.tolist() == [pytest.approx([x, y - sd]), pytest.approx([x, y + sd])]


def test_png_axes_tell_units_and_nothing_overlaps():
    chart = by_name(made_up())["absorption_by_width"]
    drawn = figure(chart)
    canvas = drawn.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    first, second = drawn.axes
    assert first.get_xlabel() == "width (latents of the level)"
    assert first.get_ylabel() == "absorption, mean over letters"
    assert [label.get_text() for label in first.get_xticklabels()] == ["16", "32", "64"]
    renderer = canvas.get_renderer()
    parts = (first, second, drawn.legends[0])
    boxes = [box for part in parts if (box := part.get_tightbbox(renderer)) is not None]
    assert len(boxes) == 3
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert all(box.x0 >= 0 and box.x1 <= drawn.bbox.width for box in boxes)


def test_png_bars_carry_their_spread_and_words():
    drawn = figure(by_name(made_up())["absorption_by_letter"])
    first = drawn.axes[0]
    bars = [one for one in first.containers if isinstance(one, ErrorbarContainer)]
    low, high = bars[1][2][0].get_segments()[0][:, 1]  # of the nested SAE's "a"
    sd = 0.01 / math.sqrt(2)
    assert [low, high] == [pytest.approx(0.205 - sd), pytest.approx(0.205 + sd)]
    assert [label.get_text() for label in first.get_xticklabels()] == ["a\n40", "c\n41", "z\n42"]
    assert "words" in drawn.axes[-1].get_xlabel()
    assert first.get_ylim()[0] == 0


def figures(html: str) -> dict[str, list[dict[str, Any]]]:
    """The traces of every plotly figure on the page."""
    starts = re.finditer(r'Plotly\.newPlot\(\s*"(\w+)",\s*(?=\[\{)', html)
    decoder = json.JSONDecoder()
    return {start[1]: decoder.raw_decode(html, start.end())[0] for start in starts}


def text_of(html: str) -> str:
    """What a reader sees of a page."""
    seen = re.sub(r"<(script|style)>.*?</\1>", "", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", seen)).split())


def test_html_holds_the_data(files: list[Path]):
    found = figures(files[0].read_text(encoding="utf-8"))
    assert {name.rpartition("_")[0] for name in found} == {path.stem for path in files[1:]}
    flat, nested = found["probing_by_l0_0"]
    assert (flat["name"], nested["name"]) == ("flat", "nested")
    assert nested["x"] == [3.25, 5.5, 8.75]
    assert nested["y"] == [0.7, 0.7625, 0.825]
    error = found["absorption_by_l0_0"][1]["error_y"]["array"]
    assert error == pytest.approx([0.01 / math.sqrt(2)] * 3)
    bars = found["absorption_by_letter_0"]
    assert {bar["type"] for bar in bars} == {"bar"} and len(bars) == 2
    assert bars[0]["x"] == ["a", "c", "z"]
    assert bars[1]["error_y"]["array"] == pytest.approx([0.01 / math.sqrt(2)] * 3)
    assert "40 words" in bars[0]["hovertext"][0]


def test_html_has_a_heading_an_index_and_the_tables(files: list[Path]):
    html = files[0].read_text(encoding="utf-8")
    title = re.search("<title>(.*)</title>", html)
    assert title and "tiny-model" in title[1] and "blocks.1.hook_resid_post" in title[1]
    for target in re.findall('<a href="#([^"]+)"', html):
        assert html.count(f'id="{target}"') == 1
    assert '<a href="#absorption">First-letter absorption</a>' in html
    seen = text_of(html)
    assert "tiny-model" in seen and "blocks.1.hook_resid_post" in seen
    assert "absorption_by" not in seen  # keys are no words
    rows = re.findall("<tr[^>]*>(.*?)</tr>", html, re.DOTALL)
    cells = [re.findall("<t[hd]>(.*?)</t[hd]>", row) for row in rows]
    assert ["nested", "0", "16", "3.2", "0.300", "0.205±0.007"] in [row[:6] for row in cells]
    assert "Difference to flat" in seen and "sae-bench 0.6.0" in seen


def test_html_escapes_names(tmp_path: Path):
    nasty = "</script><b>x</b>&\"'"
    outcomes = [replace(o, sae=nasty if o.sae == "flat" else o.sae) for o in made_up()]
    outcomes.append(outcome("nested", 1, "probing", 2, status="failed", reason="<i>torn</i>"))
    [path, *_] = write_plots(outcomes, METRICS, tmp_path, Heading(nasty, nasty, (nasty,)), nasty)
    ours = path.read_text(encoding="utf-8").replace(get_plotlyjs(), "")
    assert "<b>" not in ours and "<i>" not in ours
    assert ours.count("<script") == ours.count("</script>")
    assert nasty in text_of(ours)


def test_html_needs_no_network(files: list[Path]):
    html = files[0].read_text(encoding="utf-8")
    script = get_plotlyjs()
    assert html.count(script) == 1
    ours = html.replace(script, "")
    assert not re.search(r'https?:|//\w|\bsrc=|\bhref=(?!"#)|@import|<link', ours)


def test_nothing_to_plot_is_said(tmp_path: Path):
    failed = outcome("flat", 0, "probing", 0, status="failed", reason="out of memory")
    [path] = write_plots([failed], METRICS, tmp_path, HEADING)
    seen = text_of(path.read_text(encoding="utf-8"))
    assert "No values to plot." in seen and "out of memory" in seen


def test_a_failed_write_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "plots.html").write_text("old")

    def broken(_chart: Chart) -> None:
        raise RuntimeError("no font")

    monkeypatch.setattr("sae_lens_matryoshka.bench.tables.plots.figure", broken)
    with pytest.raises(RuntimeError, match="no font"):
        write_plots(made_up(), METRICS, tmp_path, HEADING)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
