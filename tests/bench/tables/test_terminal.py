"""The comparison on a terminal, with the results that docs/results holds."""

import csv
import io
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from sae_lens_matryoshka.bench import checked_config
from sae_lens_matryoshka.bench.jobs.output import compared_metrics
from sae_lens_matryoshka.bench.jobs.suite import BenchReport
from sae_lens_matryoshka.bench.outcome import Metric, Outcome
from sae_lens_matryoshka.bench.tables.comparison import Comparison
from sae_lens_matryoshka.bench.tables.table import markdown
from sae_lens_matryoshka.bench.tables.terminal import LONGEST_REASON, show, show_report
from sae_lens_matryoshka.settings.yaml_file import read_mapping

ROOT = Path(__file__).parents[3]
STORED = {
    "offline/results.csv": ("offline.yaml", "batchtopk"),
    "raw/demo_trainings.csv": ("demo_trainings.yaml", "matryoshka-0"),
}


def stored(name: str) -> list[Outcome]:
    """The outcomes of a results.csv."""
    with (ROOT / "docs/results" / name).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    levels: dict[str, int] = defaultdict(int)
    for row in rows:
        levels[row["sae"]] = max(levels[row["sae"]], int(row["level"]) + 1)
    found: dict[tuple[str, ...], Outcome] = {}
    for row in rows:
        sae, level, width = row["sae"], int(row["level"]), int(row["width"])
        seed = int(row["seed"]) if row["seed"] else None
        new = Outcome(sae, level, levels[sae], width, row["eval"], seed, "done")
        one = found.setdefault((sae, row["level"], row["eval"], row["seed"]), new)
        one.metrics[row["metric"]] = float(row["value"])
    return list(found.values())


def metrics_of(config: str) -> list[Metric]:
    return compared_metrics(checked_config(read_mapping(ROOT / "bench_configs" / config)))


def printed(
    outcomes: list[Outcome], metrics: list[Metric], baseline: str | None, width: int
) -> str:
    to = Console(width=width, file=io.StringIO(), highlight=False)
    show(Comparison.of(outcomes, metrics, baseline), ["sae-bench 0.6.0"], to)
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue()


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("name", STORED)
def test_every_number_of_the_file_stands_in_a_block_that_fits(name: str, width: int):
    config, baseline = STORED[name]
    outcomes, metrics = stored(name), metrics_of(config)
    text = printed(outcomes, metrics, baseline, width)
    assert max(map(len, text.splitlines())) <= width
    file = markdown(outcomes, metrics, baseline, "")
    for mean, sd in re.findall(r"(-?\d\.\d+) ± (\d\.\d+)", file):
        assert f"{mean}±{sd}" in text
    for value, low, high in re.findall(r"([-+]\d\.\d+) \[([-+]\d\.\d+), ([-+]\d\.\d+)\]", file):
        halves = re.findall(rf"{re.escape(value)}±(\d\.\d+)", text)
        half = (float(high) - float(low)) / 2
        assert any(float(one) == pytest.approx(half, abs=1.1e-3) for one in halves)


def test_a_block_per_eval_with_l0_and_fvu_beside_its_numbers():
    text = printed(stored("offline/results.csv"), metrics_of("offline.yaml"), "batchtopk", 80)
    assert text.count("Difference to batchtopk") == 6  # not of L0, FVU and the decoder
    for title in ("First-letter absorption", "Spurious correlation removal (SCR)"):
        assert text.count(title) == 1
    headings = [line for line in text.splitlines() if line.startswith("SAE  ")]
    assert len(headings) == 13
    assert all(line.split()[:6] == ["SAE", "level", "width", "L0", "FVU", "↓"] for line in headings)
    assert "k=5 ↑" in text and "sparse probing, k=5" not in text


def test_notes_are_short_and_stand_once():
    text = printed(stored("offline/results.csv"), metrics_of("offline.yaml"), "batchtopk", 80)
    notes = re.findall(r"^- .*(?:\n  .*)*", text, re.MULTILINE)
    assert len(set(notes)) == len(notes) and max(map(len, notes)) < 170
    flat = " ".join(text.split())
    assert flat.count("arXiv 2605.18229") == 1  # of TPP and SCR
    assert "n: seeds behind a number" in flat and "half of the 95 % interval" in flat


def test_notes_speak_of_nothing_that_is_not_there():
    one_seed = [o for o in stored("raw/demo_trainings.csv") if o.seed in (None, 0)]
    flat = [o for o in one_seed if o.sae.startswith("batchtopk")]
    text = printed(flat, metrics_of("demo_trainings.yaml"), None, 80)
    assert "±" not in text and "n:" not in text and "Difference" not in text
    assert "level" not in text.casefold()  # flat SAEs have none


def test_a_long_reason_keeps_its_ends_and_its_mark():
    reason = f"the process ended with code 1; the log ends: {'x | ' * 500}ValueError: the cause"
    outcomes = [
        replace(o, status="failed", reason=reason, metrics={}) if o.eval == "tpp" else o
        for o in stored("offline/results.csv")
    ]
    text = printed(outcomes, metrics_of("offline.yaml"), "batchtopk", 80)
    assert "failed [1]" in text
    note = re.search(r"^\[1\] (.*(?:\n    .*)*)", text, re.MULTILINE)
    assert note and len(note[1]) < LONGEST_REASON + 30
    flat = " ".join(note[1].split())
    assert flat.startswith("the process ended with code 1") and flat.endswith("the cause")


def test_warnings_stand_below_the_tables(capsys: pytest.CaptureFixture[str]):
    config = checked_config(read_mapping(ROOT / "bench_configs" / "offline.yaml"))
    warning = "SAE x was trained on another model."
    outcomes = stored("offline/results.csv")
    show_report(config, BenchReport(outcomes, "", config.output, None, [warning]))
    assert capsys.readouterr().out.count(warning) == 1
