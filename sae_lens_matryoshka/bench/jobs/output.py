"""What a benchmark leaves in its output folder: table, CSV, plots, SAEBench's own files, run.json."""

import json
import os
import platform
import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sae_lens_matryoshka.atomic_files import whole_files, write_json
from sae_lens_matryoshka.bench.config import BenchConfig
from sae_lens_matryoshka.bench.evals.catalogue import eval_config
from sae_lens_matryoshka.bench.evals.metrics import metrics_of
from sae_lens_matryoshka.bench.inputs.models import device_of
from sae_lens_matryoshka.bench.jobs.plan import Job, OpenedSAE, package_versions
from sae_lens_matryoshka.bench.jobs.stored_results import (
    RESULT,
    is_done,
    other_settings,
    read_status,
)
from sae_lens_matryoshka.bench.outcome import FIDELITY, Metric, Outcome
from sae_lens_matryoshka.bench.tables.plot_html import Heading
from sae_lens_matryoshka.bench.tables.plots import write_plots
from sae_lens_matryoshka.bench.tables.rows import DECODER_MAX_COSINE, FVU, L0
from sae_lens_matryoshka.bench.tables.table import markdown, seeds_of, write_csv
from sae_lens_matryoshka.ownership import check_replaceable, claim, replaced_folder

RECORD = "run.json"
NAMES = ("results.md", "results.csv", RECORD, "plots", "saebench", "jobs", "work", "logs", "demo")
"""What a benchmark writes into its output folder."""
_REPLACED = ("plots", "saebench", "work/*", "demo/data", "demo/*/*/*")


def claim_output(output: Path) -> None:
    """
    Reserve the names that a benchmark writes, before it begins.

    Raises:
        ConfigError: Something else has one of these names, or is in a folder that is replaced.
    """
    claim(output, "saebench", NAMES, RECORD, _REPLACED)
    for name in ("plots", "saebench"):
        check_replaceable(output / name)


def compared_metrics(config: BenchConfig) -> list[Metric]:
    """What is measured of every SAE, L0 and FVU first, then the metrics of the config's evals."""
    found = [L0, FVU, DECODER_MAX_COSINE]
    for name, given in config.evals.items():
        found += metrics_of(name, eval_config(name, given))
    return found


def versions_line() -> str:
    """The software that gave the numbers."""
    return f"sae-bench {version('sae-bench')}, sae-lens {version('sae-lens')}"


def write_comparison(
    config: BenchConfig, outcomes: list[Outcome], jobs: list[Job], warnings: list[str]
) -> str:
    """Write results.md, results.csv and plots; returns the table, with the warnings below."""
    metrics = compared_metrics(config)
    text = markdown(outcomes, metrics, config.baseline, versions_line())
    if note := other_settings(config, jobs):
        text += f"\n{note}"
    if warnings:
        text += "\n".join(["", "Warnings:", "", *(f"- {one}" for one in warnings)]) + "\n"
    with whole_files(config.output) as staging:
        (staging / "results.md").write_text(text, encoding="utf-8")
    write_csv(outcomes, metrics, config.output / "results.csv")
    heading = Heading(
        config.model.label, config.hook_name, (seeds_of(outcomes), f"{versions_line()}.")
    )
    with replaced_folder(config.output / "plots") as staging:  # no picture of another config
        write_plots(outcomes, metrics, staging, heading, config.baseline)
    return text


def collect_saebench(config: BenchConfig, jobs: list[Job]) -> None:
    """SAEBench's own JSON files, named as SAEBench names them, in a folder per eval and seed."""
    with replaced_folder(config.output / "saebench") as tree:
        for job in jobs:
            if job.eval == FIDELITY:
                continue
            folder = tree / job.eval / ("no_seed" if job.seed is None else f"seed_{job.seed}")
            folder.mkdir(parents=True)
            for item in filter(is_done, job.items):
                name = f"{item.name}_custom_sae_eval_results.json"
                shutil.copy(Path(item.folder, RESULT), folder / name)


def write_run(
    config: BenchConfig,
    jobs: list[Job],
    opened: list[OpenedSAE],
    model_key: str,
    data_keys: dict[str, str],
    warnings: list[str],
    seconds: float,
) -> None:
    """Write run.json: everything that decides the numbers, and how long they took."""
    content = {
        "config": config.model_dump(mode="json"),
        "versions": {"python": platform.python_version(), **package_versions()},
        "machine": {
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "device": _device_name(config),
        },
        "fingerprints": {
            "model": model_key,
            "saes": {one.source.name: one.fingerprint for one in opened},
            "data": data_keys,
        },
        "trained_on": {one.source.name: one.metadata.get("model_name") for one in opened},
        "warnings": warnings,
        "metrics": [asdict(metric) for metric in compared_metrics(config)],
        "jobs": [_job_record(config, job) for job in jobs],
        "seconds": round(seconds, 1),
    }
    with whole_files(config.output) as staging:
        write_json(staging / RECORD, content)


def _job_record(config: BenchConfig, job: Job) -> dict[str, Any]:
    """Wall time of a job and of its items; what is left is loading, caches and probes."""
    try:
        wall = json.loads((config.output / "jobs" / job.name / "job.json").read_text())["seconds"]
    except FileNotFoundError:
        wall = 0.0
    statuses = {item.name: read_status(item) or {} for item in job.items}
    return {"eval": job.eval, "seed": job.seed, "wall_seconds": wall, "levels": statuses}


def _device_name(config: BenchConfig) -> str:
    device = device_of(config.model)
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device
