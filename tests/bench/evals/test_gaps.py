"""Numbers that SAEBench leaves out or replaces, made by its own functions."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from sae_lens_matryoshka.atomic_files import write_json
from sae_lens_matryoshka.bench.config import PublishedSource
from sae_lens_matryoshka.bench.evals.catalogue import eval_config
from sae_lens_matryoshka.bench.evals.gaps import gaps, nothing_to_regain
from sae_lens_matryoshka.bench.evals.metrics import metrics_of
from sae_lens_matryoshka.bench.jobs.stored_results import published_outcomes, read_metrics
from sae_lens_matryoshka.bench.outcome import Outcome
from sae_lens_matryoshka.bench.tables.table import markdown, write_csv

BIOS, REVIEWS = "LabHC/bias_in_bios_class_set1", "canrager/amazon_reviews_mcauley_1and5"
BIASED = "male_professor / female_nurse probe on"
JOB, GENDER = "professor / nurse", "male / female"


def accuracies(
    job: float = 0.9, gender: float = 0.9, biased_job: float = 0.75, biased_gender: float = 0.8
) -> dict[str, float]:
    """Of the model's probes, as SAEBench names them."""
    biased = {f"{BIASED} {JOB} data": biased_job, f"{BIASED} {GENDER} data": biased_gender}
    return {JOB: job, GENDER: gender, **biased}


def scr_file(folder: Path, **pairs: dict[str, float]) -> Path:
    """What SAEBench writes when the model's probes have these accuracies and ablation helps by .1."""
    from sae_bench.evals.scr_and_tpp.eval_output import ScrMetrics, ScrResultDetail
    from sae_bench.evals.scr_and_tpp.main import get_scr_plotting_dict
    from sae_bench.sae_bench_utils.general_utils import average_results_dictionaries

    found: dict[str, Any] = {}
    for labels, clean in pairs.items():
        ablated = {key: value + 0.1 for key, value in clean.items()}
        by_class = {name: {2: ablated, 5: ablated} for name in (JOB, GENDER)}
        found[f"{BIOS}_scr_{labels}_results"] = get_scr_plotting_dict(by_class, clean)
    names = [name.removesuffix("_results") for name in found]
    mean = average_results_dictionaries(found, names)
    details = [asdict(ScrResultDetail(dataset_name=name, **one)) for name, one in found.items()]
    content = {
        "eval_type_id": "scr",
        "eval_config": {"n_values": [2, 5]},
        "eval_result_metrics": {"scr_metrics": asdict(ScrMetrics(**mean))},
        "eval_result_details": details,
        "sae_cfg_dict": {"d_sae": 64},
    }
    write_json(folder / "scr.json", content)
    return folder / "scr.json"


def outcome(path: Path) -> Outcome:
    source = PublishedSource(name="a", files=[path], l0=4, fvu=0.1)
    return next(one for one in published_outcomes(source) if one.eval == "scr")


def table(found: Outcome) -> str:
    metrics = metrics_of("scr", eval_config("scr", {"n_values": [2, 5]}))
    return markdown([found], metrics, None, "")


def test_scr_of_a_tie_is_not_measurable(tmp_path: Path):
    path = scr_file(tmp_path, attorney_teacher=accuracies(biased_gender=0.75))
    metrics, _ = read_metrics(path)
    assert "scr_metric_threshold_2" not in metrics  # SAEBench leaves it out
    assert metrics["scr_dir1_threshold_2"] == pytest.approx(2 / 3)
    text = table(outcome(path))
    assert "not measurable [1]" in text
    assert "not reported" not in text
    assert f"{BIOS} (attorney / teacher): the biased probe is equally accurate" in text
    write_csv([outcome(path)], [], tmp_path / "results.csv")
    assert ',scr_metric_threshold_2,,not measurable,"SAEBench' in (
        (tmp_path / "results.csv").read_text()
    )


def test_a_mean_over_fewer_pairs_says_so(tmp_path: Path):
    pairs = {"a_b": accuracies(), "c_d": accuracies(biased_gender=0.75), "e_f": accuracies()}
    found = outcome(scr_file(tmp_path, **pairs))
    assert found.metrics["scr_metric_threshold_2"] == pytest.approx(2 / 3)
    assert "mean over the other 2 of 3" in found.notes["scr_metric_threshold_2"]
    assert f"{BIOS} (c / d)" in found.notes["scr_metric_threshold_2"]
    assert "0.667 [1]" in table(found)


def test_scr_without_a_tie_has_no_note(tmp_path: Path):
    assert outcome(scr_file(tmp_path, a_b=accuracies())).notes == {}


def test_an_scr_of_zero_for_want_of_room_is_told(tmp_path: Path):
    pairs = {f"{BIOS}_a_b": accuracies(job=0.75), f"{REVIEWS}_c_d": accuracies()}
    path = scr_file(tmp_path, a_b=pairs[f"{BIOS}_a_b"])
    assert read_metrics(path)[0]["scr_metric_threshold_2"] == 0  # SAEBench's
    notes = nothing_to_regain(pairs, [2, 5])
    assert notes.keys() == {"scr_metric_threshold_2", "scr_metric_threshold_5"}
    assert "mean over the other 1 of 2" in notes["scr_metric_threshold_2"]
    assert nothing_to_regain({"a": accuracies(gender=0.8)}, [2]) == {}  # not the direction chosen
    assert nothing_to_regain({"a": accuracies(job=0.7, biased_gender=0.75)}, [2]) == {}  # a tie


def test_data_sets_without_a_result_are_named():
    details = [{"dataset_name": "a", "sae_top_1_test_auc": 0.7, "sae_top_5_test_auc": None}]
    result = {
        "eval_type_id": "sparse_probing_sae_probes",
        "eval_config": {"dataset_names": ["a", "b"], "ks": [1, 5]},
        "eval_result_metrics": {"sae": {"sae_top_1_test_auc": 0.7, "sae_top_5_test_auc": None}},
        "eval_result_details": details,
    }
    notes = gaps(result)
    assert (
        "no result for b. The number is the mean over the other 1 of 2"
        in (notes["sae_top_1_test_auc"])
    )
    assert "no result for a, b" in notes["sae_top_5_test_auc"]


def test_placeholders_are_no_numbers(tmp_path: Path):
    probing = {
        "eval_type_id": "sparse_probing",
        "eval_config": {"lower_vram_usage": True},
        "eval_result_metrics": {"sae": {"sae_test_accuracy": -1, "sae_top_1_test_accuracy": 0.7}},
    }
    core = {
        "eval_type_id": "core",
        "eval_result_metrics": {"a": {"ce_loss_score": -1, "kl_div_score": math.inf, "l0": 3}},
    }
    for content, missing in ((probing, {"sae_test_accuracy"}), (core, {"ce_loss_score"})):
        write_json(tmp_path / "a.json", content)
        metrics, _ = read_metrics(tmp_path / "a.json")
        assert {key for key, value in metrics.items() if math.isnan(value)} == missing
        assert missing <= gaps(json.loads((tmp_path / "a.json").read_text())).keys()
    assert gaps(core).keys() == {"ce_loss_score", "kl_div_score"}
