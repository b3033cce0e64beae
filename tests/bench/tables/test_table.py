import csv
import math
import re
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from sae_lens_matryoshka.bench.outcome import Metric, Outcome
from sae_lens_matryoshka.bench.tables.rows import DECODER_MAX_COSINE
from sae_lens_matryoshka.bench.tables.table import markdown, write_csv

FRACTION = Metric("absorption", "fraction", "absorption fraction", "lower")
TPP = [
    Metric("tpp", f"total_{n}", f"TPP n={n}", "higher", "reseeding moves it") for n in (2, 10, 50)
]
PROBING = Metric("probing", "accuracy", "probing k=1", "higher")
SPLIT = Metric("probing", "splits", "splits", None, "never seen", in_table=False)
METRICS = [FRACTION, *TPP[:2], PROBING, SPLIT]

WIDTHS = {"flat": (64,), "nested": (16, 32, 64)}
FLAT = {0: 0.20, 1: 0.22, 2: 0.27}
OUTER = {0: 0.10, 1: 0.15, 2: 0.14}


def outcome(sae: str, level: int, name: str, seed: int | None = None, **rest: Any) -> Outcome:
    widths = WIDTHS.get(sae, (128,))
    rest = {"status": "done", **rest}
    return Outcome(sae, level, len(widths), widths[level], name, seed, **rest)


def fidelity(sae: str, level: int, l0: float, fvu: float) -> Outcome:
    return outcome(sae, level, "fidelity", metrics={"l0": l0, "fvu": fvu})


def seeds(sae: str, level: int, values: dict[int, float]) -> list[Outcome]:
    return [
        outcome(sae, level, "absorption", seed, metrics={"fraction": value})
        for seed, value in values.items()
    ]


def two_saes() -> list[Outcome]:
    """The nested SAE's levels come outermost first: the table must sort them."""
    return [
        fidelity("flat", 0, 31.26, 0.2),
        *seeds("flat", 0, FLAT),
        fidelity("nested", 2, 30.0, 0.25),
        *seeds("nested", 2, OUTER),
        fidelity("nested", 0, 8.04, 0.6),
        *seeds("nested", 0, {0: 0.05, 1: 0.05, 2: 0.08}),
    ]


def tables(text: str) -> list[list[dict[str, str]]]:
    """Every pipe table as rows of header to cell."""
    found: list[list[dict[str, str]]] = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        lines = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in block.splitlines()
        ]
        found.append([dict(zip(lines[0], line, strict=True)) for line in lines[2:]])
    return found


def numbers(cell: str) -> list[float]:
    return [float(number) for number in re.findall(r"[-+]?\d+\.\d+", cell)]


def footnotes(text: str) -> dict[str, str]:
    return dict(re.findall(r"^- \[(\d+)\] (.*)$", text, re.MULTILINE))


# ---- the comparison


def test_cells_are_mean_and_sample_standard_deviation_over_seeds():
    [table] = tables(markdown(two_saes(), METRICS, None, ""))
    assert list(table[0]) == ["SAE", "level", "width", "L0", "FVU ↓", "absorption fraction ↓"]
    assert table[0]["absorption fraction ↓"] == "0.230 ± 0.036"
    assert table[0]["L0"] == "31.3" and table[0]["FVU ↓"] == "0.200"
    assert table[2]["absorption fraction ↓"] == "0.130 ± 0.026"


def test_rows_follow_the_saes_and_then_the_levels():
    [table] = tables(markdown(two_saes(), METRICS, None, ""))
    assert [(row["SAE"], row["level"], row["width"]) for row in table] == [
        ("flat", "-", "64"),
        ("nested", "0 (innermost)", "16"),
        ("nested", "2 (outermost)", "64"),
    ]


def test_one_seed_has_no_spread_and_nan_is_shown():
    outcomes = [*seeds("flat", 0, {0: 0.2}), *seeds("nested", 2, {0: math.nan})]
    table, differences = tables(markdown(outcomes, METRICS, "flat", ""))
    assert [row["absorption fraction ↓"] for row in table] == ["0.200", "NaN"]
    assert differences[0]["absorption fraction ↓"] == "NaN"
    [table] = tables(markdown(seeds("flat", 0, {0: 0.2, 1: math.nan}), METRICS, None, ""))
    assert table[0]["absorption fraction ↓"] == "NaN"


def test_l0_and_fvu_are_never_left_out():
    outcomes = [
        *seeds("flat", 0, {0: 0.2}),
        outcome("nested", 2, "fidelity", status="failed", reason="no text"),
    ]
    text = markdown(outcomes, METRICS, None, "")
    [table] = tables(text)
    assert table[0]["L0"] == table[0]["FVU ↓"] == "not measured"
    assert table[1]["L0"] == "failed [1]" and footnotes(text) == {"1": "no text"}


def test_callers_own_fidelity_metrics_are_not_doubled():
    metrics = [
        Metric("fidelity", "fvu", "unexplained", "lower", "of held-out text"),
        Metric("fidelity", "l0", "active", None),
        FRACTION,
    ]
    text = markdown(two_saes(), metrics, None, "")
    header = list(tables(text)[0][0])
    assert header == ["SAE", "level", "width", "active", "unexplained ↓", "absorption fraction ↓"]
    assert "- unexplained: of held-out text" in text


def test_decoder_max_cosine_stands_beside_l0_and_fvu():
    one_latent = {"l0": 1.0, "fvu": 0.9, "decoder_max_cosine": math.nan}
    whole = {"l0": 30.0, "fvu": 0.25, "decoder_max_cosine": 0.1484}
    published = {"l0": 31.0, "fvu": 0.2}  # as earlier results, too
    outcomes = [
        outcome("nested", 0, "fidelity", metrics=one_latent),
        outcome("nested", 2, "fidelity", metrics=whole),
        outcome("paper", 0, "fidelity", metrics=published, published=True),
    ]
    text = markdown(outcomes, [DECODER_MAX_COSINE, FRACTION], "nested", "")
    table, differences = tables(text)
    assert list(table[0])[3:] == ["L0", "FVU ↓", "decoder max cosine ↓"]
    cells = [row["decoder max cosine ↓"] for row in table]
    assert cells == ["NaN", "0.148", "not measured"]
    assert [row["decoder max cosine ↓"] for row in differences] == ["NaN", "not measured"]
    assert "arXiv 2509.22033" in text


def test_levels_without_numbers_say_why_with_each_reason_once():
    too_narrow = {"status": "not applicable", "reason": "fewer latents\n  than k"}
    outcomes = [
        *two_saes(),
        *(outcome("nested", level, "tpp", 0, **too_narrow) for level in (0, 2)),
        outcome("nested", 1, "tpp", 0, status="failed", reason="out of memory"),
        outcome("flat", 0, "tpp", 0, metrics={"total_2": 0.5}),
    ]
    text = markdown(outcomes, METRICS, "flat", "")
    table, differences = tables(text)
    assert [row["TPP n=2 ↑"] for row in table] == ["0.500", "n/a [1]", "failed [2]", "n/a [1]"]
    assert table[0]["TPP n=10 ↑"] == "not reported"
    assert table[2]["absorption fraction ↓"] == "not run"
    assert footnotes(text) == {"1": "fewer latents than k", "2": "out of memory"}
    assert [row["TPP n=2 ↑"] for row in differences] == ["n/a [1]", "failed [2]", "n/a [1]"]


def test_a_seed_for_which_no_sae_has_the_metric_is_missed():
    """SAEBench drops SCR where its two probes tie."""
    outcomes = [
        outcome(sae, 0, "tpp", seed, metrics={"total_2": seed / 10} if seed else {"other": 1.0})
        for sae in ("flat", "other")
        for seed in (0, 1, 2)
    ]
    table, differences = tables(markdown(outcomes, METRICS, "flat", ""))
    assert [row["TPP n=2 ↑"] for row in table] == ["0.150 ± 0.071 (n=2)"] * 2
    assert differences[0]["TPP n=2 ↑"].endswith("(n=2)")


def test_a_failed_seed_among_others_is_named():
    outcomes = [
        *two_saes(),
        *seeds("nested", 1, {0: 0.2, 2: 0.4}),
        outcome("nested", 1, "absorption", 1, status="failed", reason="killed"),
    ]
    text = markdown(outcomes, METRICS, "flat", "")
    table, differences = tables(text)
    assert table[2]["absorption fraction ↓"] == "0.300 ± 0.141 (n=2) [1]"
    assert differences[1]["absorption fraction ↓"].endswith("(n=2)")
    assert footnotes(text) == {"1": "killed"}


@pytest.mark.parametrize(
    ("values", "cells"),
    [
        ({0: 1234.5}, "1234"),
        ({0: 56.7891}, "56.79"),
        ({0: 0.0}, "0.000"),
        ({0: 0.00034567}, "0.00035"),
        ({0: -0.5}, "-0.500"),
    ],
)
def test_precision_follows_the_column(values: dict[int, float], cells: str):
    [table] = tables(markdown(seeds("flat", 0, values), METRICS, None, ""))
    assert table[0]["absorption fraction ↓"] == cells


def test_table_is_aligned_and_escapes_pipes():
    outcomes = [*two_saes(), *seeds("a|b", 0, {0: 0.5})]
    text = markdown(outcomes, METRICS, None, "")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    assert tables(text)[0][3]["SAE"] == r"a\|b"


def test_caveats_seeds_and_versions_stand_below():
    outcomes = [
        *two_saes(),
        outcome("flat", 0, "tpp", 0, metrics={"total_2": 0.5, "total_10": 0.5}),
    ]
    text = markdown(outcomes, METRICS, None, "sae-bench 0.6.0")
    assert text.count("reseeding moves it") == 1
    assert "- TPP n=2, TPP n=10: reseeding moves it" in text
    assert "never seen" not in text
    assert "Seeds: none for fidelity; 3 (0, 1, 2) for absorption; 1 (0) for tpp." in text
    assert text.rstrip().endswith("sae-bench 0.6.0")


def test_two_outcomes_for_one_seed_are_refused():
    outcomes = [*two_saes(), *seeds("flat", 0, {1: 0.3})]
    with pytest.raises(ValueError, match="flat, level 0, has absorption twice for seed 1"):
        markdown(outcomes, METRICS, None, "")


# ---- differences


def test_differences_are_paired_with_the_baselines_outermost_level():
    text = markdown(two_saes(), METRICS, "nested", "")
    rows = tables(text)[1]
    assert [(row["SAE"], row["level"]) for row in rows] == [
        ("flat", "-"),
        ("nested", "0 (innermost)"),
    ]
    flat, outer = list(FLAT.values()), list(OUTER.values())
    expected = stats.ttest_rel(flat, outer).confidence_interval(0.95)
    cell = rows[0]["absorption fraction ↓"]
    assert numbers(cell) == pytest.approx([0.1, expected.low, expected.high], abs=5e-4)
    assert re.fullmatch(r"\+0\.100 \[[-+]\d\.\d{3}, [-+]\d\.\d{3}\]", cell)
    assert numbers(rows[1]["absorption fraction ↓"])[0] == -0.07
    assert (rows[0]["L0"], rows[0]["FVU ↓"]) == ("31.3", "0.200")  # not differences
    assert "Each row less nested, level 2 (outermost), 64 latents." in text
    assert "not that of training another SAE" in " ".join(text.split())


def test_one_seed_gives_no_interval_and_a_missing_baseline_is_said():
    outcomes = [
        *seeds("flat", 0, {0: 0.2}),
        *seeds("nested", 2, {0: 0.1}),
        outcome("nested", 2, "probing", 0, metrics={"accuracy": 0.9}),
    ]
    [_, rows] = tables(markdown(outcomes, METRICS, "flat", ""))
    assert rows[0]["absorption fraction ↓"] == "-0.100"
    assert rows[0]["probing k=1 ↑"] == "no baseline"


def test_published_baseline_is_held_fixed_and_marked():
    published = outcome(
        "paper", 0, "absorption", metrics={"fraction": 0.25}, details=[], published=True
    )
    text = markdown([*two_saes(), published], METRICS, "paper", "")
    table, rows = tables(text)
    assert table[-1]["SAE"] == "paper (published)"
    assert table[-1]["absorption fraction ↓"] == "0.250"
    expected = stats.ttest_1samp(list(FLAT.values()), 0.25).confidence_interval(0.95)
    ends = [-0.02, expected.low - 0.25, expected.high - 0.25]
    assert numbers(rows[0]["absorption fraction ↓"]) == pytest.approx(ends, abs=5e-4)
    assert "## Difference to paper (published)" in text


def test_unknown_baseline_is_refused_with_the_names():
    with pytest.raises(ValueError, match="'flatt' is not among the SAEs: flat, nested"):
        markdown(two_saes(), METRICS, "flatt", "")


def test_baseline_alone_makes_no_second_table():
    assert len(tables(markdown(seeds("flat", 0, FLAT), METRICS, "flat", ""))) == 1


# ---- CSV


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv_holds_every_number_to_the_last_digit(tmp_path: Path):
    value = 0.1 + 0.2
    outcomes = [
        outcome("nested", 2, "probing", 4, metrics={"zzz": math.nan, "accuracy": value}, seconds=2),
        outcome("nested", 0, "probing", 4, status="failed", reason='no "text",\nat all'),
        outcome("paper", 0, "absorption", metrics={"fraction": 1}, published=True),
    ]
    path = tmp_path / "new" / "outcomes.csv"
    write_csv(outcomes, METRICS, path)
    rows = read(path)
    assert rows[0]["reason"] == 'no "text",\nat all'
    assert (rows[0]["status"], rows[0]["metric"], rows[0]["value"]) == ("failed", "", "")
    assert rows[1] == {
        "sae": "nested",
        "level": "2",
        "width": "64",
        "seed": "4",
        "eval": "probing",
        "metric": "accuracy",
        "value": "0.30000000000000004",
        "status": "done",
        "reason": "",
        "seconds": "2.0",
        "published": "false",
    }
    assert (rows[2]["metric"], rows[2]["value"]) == ("zzz", "nan")  # has no Metric
    assert (rows[3]["seed"], rows[3]["published"], rows[3]["value"]) == ("", "true", "1.0")
    assert len(rows) == 4
    assert list(path.parent.iterdir()) == [path]


def test_csv_order_does_not_depend_on_when_a_seed_was_run(tmp_path: Path):
    outcomes = [
        fidelity("flat", 0, 1.0, 0.5),
        outcome("flat", 0, "other", 0, metrics={"x": 1.0}),
        outcome("flat", 0, "tpp", 0, metrics={"total_10": 1.0, "total_2": 2.0, "extra": 3.0}),
        *seeds("flat", 0, {2: 0.1, 10: 0.3}),
    ]
    write_csv(outcomes, METRICS, tmp_path / "a.csv")
    write_csv(outcomes[::-1], METRICS, tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert [(row["eval"], row["seed"], row["metric"]) for row in read(tmp_path / "a.csv")] == [
        ("fidelity", "", "fvu"),
        ("fidelity", "", "l0"),
        ("absorption", "2", "fraction"),
        ("absorption", "10", "fraction"),
        ("tpp", "0", "total_2"),
        ("tpp", "0", "total_10"),
        ("tpp", "0", "extra"),
        ("other", "0", "x"),
    ]
