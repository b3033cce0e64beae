"""The compared metrics are SAEBench's own, and mean what their columns say."""

from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sae_lens_matryoshka.bench.evals.catalogue import EVALS, counts, eval_config
from sae_lens_matryoshka.bench.evals.metrics import metrics_of
from sae_lens_matryoshka.bench.jobs.stored_results import read_metrics
from sae_lens_matryoshka.bench.outcome import Outcome
from sae_lens_matryoshka.bench.tables.table import markdown

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize("name", EVALS)
def test_every_metric_is_one_of_saebenchs(name: str):
    output = import_module(f"sae_bench.evals.{EVALS[name].module}.eval_output")
    classes = [getattr(output, EVALS[name].result_class)]
    if name == "core":
        classes = [output.ModelPerformancePreservationMetrics]
    known = {field.name for cls in classes for field in fields(cls)}
    metrics = metrics_of(name, eval_config(name, {}))
    assert metrics
    assert {metric.key for metric in metrics} <= known


def test_absorption_is_better_when_lower_and_others_carry_their_caveats():
    absorption = metrics_of("absorption", eval_config("absorption", {}))
    assert {metric.better for metric in absorption} == {"lower"}
    for name in ("tpp", "scr"):
        metrics = metrics_of(name, eval_config(name, {}))
        assert {metric.better for metric in metrics} == {"higher"}
        assert all("2605.18229" in metric.caveat for metric in metrics)
        assert sum(metric.in_table for metric in metrics) == 3
        assert len(metrics) == len(counts(name, eval_config(name, {}))) == 7


def test_feature_splitting_is_read_from_saebenchs_own_result(tmp_path: Path):
    config = eval_config("absorption", {})
    path = tmp_path / "nested_custom_sae_eval_results.json"
    absorption_result(config).to_json_file(str(path))
    metrics, details = read_metrics(path)
    assert metrics["mean_num_split_features"] == 1.5
    assert [entry["num_split_features"] for entry in details] == [1, 2]
    outcome = Outcome("nested", 0, 1, 64, "absorption", 0, "done", metrics=metrics)
    text = markdown([outcome], metrics_of("absorption", config), None, "")
    header, _, row = text.splitlines()[2:5]
    cells = dict(zip(header.split("|"), row.split("|"), strict=True))
    assert cells[" feature splitting ↓ "].strip() == "1.500"
    assert "- feature splitting: latents per first letter" in text


def absorption_result(config: Any) -> Any:
    """Two letters, one of them split, in SAEBench's classes."""
    output = import_module("sae_bench.evals.absorption.eval_output")
    letters = [
        output.AbsorptionResultDetail(
            first_letter=letter,
            mean_absorption_fraction=0.1,
            full_absorption_rate=0.05,
            num_full_absorption=2,
            num_probe_true_positives=40,
            num_split_features=n,
        )
        for letter, n in (("a", 1), ("b", 2))
    ]
    mean = output.AbsorptionMeanMetrics(
        mean_absorption_fraction_score=0.1,
        mean_full_absorption_score=0.05,
        mean_num_split_features=1.5,
        std_dev_absorption_fraction_score=0.0,
        std_dev_full_absorption_score=0.0,
        std_dev_num_split_features=0.7,
    )
    return output.AbsorptionEvalOutput(
        eval_config=config,
        eval_id="some id",
        datetime_epoch_millis=0,
        eval_result_metrics=output.AbsorptionMetricCategories(mean=mean),
        eval_result_details=letters,
        sae_bench_commit_hash="Unknown",
        sae_lens_id="custom_sae",
        sae_lens_release_id="nested",
        sae_lens_version="6",
        sae_cfg_dict={"d_sae": 64},
    )


def test_what_saebench_counts_as_splitting():
    """1 where a second latent adds nothing, and 1 where not even the first one knows the letter."""
    k_sparse = import_module("sae_bench.evals.absorption.k_sparse_probing")
    main = import_module("sae_bench.evals.absorption.main")
    f1 = {"a": (0.9, 0.92, 0.99), "b": (0.5, 0.6, 0.7), "c": (0.0, 0.0, 0.0)}
    probes = pd.DataFrame({"letter": list(LETTERS)})
    for k in (1, 2, 3):
        probes[f"f1_sparse_sae_{k}"] = [f1.get(letter, f1["c"])[k - 1] for letter in LETTERS]
        probes[f"sparse_sae_k_{k}_feats"] = [np.arange(k) for _ in LETTERS]
    k_sparse.add_feature_splits_to_metrics_df(probes, max_k_value=3, f1_jump_threshold=0.03)
    words = probes.assign(
        absorption_fraction=0.1, is_full_absorption=False, num_probe_true_positives=1
    )
    found = main._aggregate_results_df(words).set_index("letter")["num_split_feats"]
    assert found[["a", "b", "c"]].to_list() == [1, 3, 1]
