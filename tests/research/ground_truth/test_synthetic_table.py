"""The tables of `kind: synthetic`, by hand."""

from dataclasses import replace

from research.ground_truth.synthetic_measures import Measures
from research.ground_truth.synthetic_table import tables

ONE = Measures(0.5, 0.6, 0.7, 0.8, 0.9, 0.75, 0.125, 0.25, 10, 4.9, 0.55)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_means_and_sample_standard_deviations():
    other = replace(ONE, f1=0.7, dead=0.375, n_parents=11)
    lines = tables({"flat": [ONE, other]}, None).splitlines()
    row = dict(zip(cells(lines[0]), cells(lines[2]), strict=True))
    assert row["SAE"] == "flat"
    assert row["F1 ↑"] == "0.600 ± 0.141"
    assert row["dead latents, % ↓"] == "25.00 ± 17.68"
    assert row["of parents"] == "10.5 ± 0.7"
    assert row["L0"] == "4.90 ± 0.00"
    assert "over 2 seeds" in lines[4]


def test_f1_stands_beside_mcc_and_uniqueness():
    text = tables({"flat": [ONE], "copies": [replace(ONE, f1=0.9, uniqueness=0.02)]}, "flat")
    measures, differences = (line for line in text.splitlines() if line.startswith("| SAE"))
    assert cells(measures)[1:4] == ["F1 ↑", "MCC ↑", "uniqueness ↑"]
    assert cells(differences)[1::2][:3] == ["Δ F1", "Δ MCC", "Δ uniqueness"]
    assert "copy one another" in " ".join(text.split())


def test_one_seed_and_no_absorption_rate():
    lines = tables({"flat": [replace(ONE, absorption=None)]}, None).splitlines()
    row = dict(zip(cells(lines[0]), cells(lines[2]), strict=True))
    assert row["F1 ↑"] == "0.500"
    assert row["absorption rate ↓"] == "n/a"
    assert lines[4].startswith("One seed.")


def test_differences_are_paired_over_seeds():
    base = [replace(ONE, f1=f1, f1_in_training=f1) for f1 in (0.1, 0.3)]
    ours = [replace(ONE, f1=f1, f1_in_training=f1 + 0.1) for f1 in (0.2, 0.5)]
    lines = tables({"base": base, "ours": ours}, "base").splitlines()
    start = next(i for i, line in enumerate(lines) if "less base" in line)
    assert len(lines) == start + 5  # one row and a note
    name, f1, in_sd, mcc, mcc_in_sd, unique, _, trained_f1, _ = cells(lines[start + 2])
    assert unique == "+0.000 ± 0.000"
    assert (name, f1) == ("ours", "+0.150 ± 0.071")
    assert trained_f1 == "+0.250 ± 0.071"
    # standard deviations .1414 and .2121, pooled .1803
    assert in_sd == "+0.8"
    assert (mcc, mcc_in_sd) == ("+0.000 ± 0.000", "n/a")


def test_a_baseline_alone_has_nothing_to_differ_from():
    assert tables({"base": [ONE]}, "base") == tables({"base": [ONE]}, None)
