"""Run a benchmark: check, prepare, run the jobs, compare."""

import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from sae_lens_matryoshka import __version__
from sae_lens_matryoshka.bench.config import DEMO, BenchConfig, checked_config, did_you_mean
from sae_lens_matryoshka.bench.data import check_local, data_fingerprint
from sae_lens_matryoshka.bench.disk import check_disk, in_gigabytes
from sae_lens_matryoshka.bench.evals import (
    data_sets,
    eval_config,
    fidelity_metrics,
    metrics_of,
)
from sae_lens_matryoshka.bench.models import device_of, model_fingerprint
from sae_lens_matryoshka.bench.outcome import FIDELITY, Metric, Outcome
from sae_lens_matryoshka.bench.plan import (
    Job,
    OpenedSAE,
    check_evals,
    make_jobs,
    needed_data,
    package_versions,
)
from sae_lens_matryoshka.bench.plots import write_plots
from sae_lens_matryoshka.bench.process import SetupError, run_jobs
from sae_lens_matryoshka.bench.results import (
    RESULT,
    is_finished,
    outcomes_of,
    published_outcomes,
    read_status,
    write_json,
    write_status,
)
from sae_lens_matryoshka.bench.sources import bench_form, chosen_levels, fingerprint, open_sae
from sae_lens_matryoshka.bench.table import markdown, write_csv
from sae_lens_matryoshka.config_file import ConfigError


@dataclass(frozen=True)
class BenchReport:
    """
    What a benchmark found.

    Args:
        outcomes: One per SAE level, eval and seed.
        markdown: The comparison as text.
        folder: Where everything lies.
    """

    outcomes: list[Outcome]
    markdown: str
    folder: Path

    @property
    def failed(self) -> list[Outcome]:
        """Those that have no number because something broke."""
        return [outcome for outcome in self.outcomes if outcome.status == "failed"]


def run(
    config: BenchConfig | dict[str, Any], only: Sequence[str] | None = None, verbose: bool = True
) -> BenchReport:
    """
    Run SAEBench's evals on SAEs, their nested levels and seeds, and compare.

    Finished results in the output folder are used again if model, SAE, data, config, seed and package
    versions are the same; all else is run.

    Args:
        config: The benchmark, or the settings as they stand in a YAML file.
        only: Evals to run of those in the config. None: all.
        verbose: Whether to show a progress bar.

    Returns:
        The comparison; also written to the output folder.

    Raises:
        ConfigError: The config cannot be used.
        ImportError: The extra [bench] is not installed.
        RuntimeError: Another process is at work in the output folder.
    """
    if isinstance(config, dict):
        config = checked_config(config)
    config = _only(config, only)
    start = time.monotonic()
    check_evals(config)
    for source in config.published:
        list(published_outcomes(source))
    with _locked(config.output):
        model_key = model_fingerprint(config.model)
        _prepare_demo(config)
        for name in needed_data(config) if config.data_folder else []:
            check_local(config.data_folder, name)
        opened, d_in = _open_saes(config)
        data_keys = _data_keys(config)
        jobs = make_jobs(config, opened, model_key, data_keys)
        _run(config, jobs, d_in, verbose)
        outcomes = outcomes_of(config, jobs)
        text = _write_comparison(config, outcomes)
        _collect_saebench(config, jobs)
        _write_run(config, jobs, opened, model_key, data_keys, time.monotonic() - start)
    return BenchReport(outcomes, text, config.output)


def _only(config: BenchConfig, only: Sequence[str] | None) -> BenchConfig:
    if only is None:
        return config
    unknown = [name for name in only if name not in config.evals]
    if unknown:
        raise ConfigError(
            f"--only {unknown[0]}: the config has no such eval.{did_you_mean(unknown[0], config.evals)}"
        )
    return config.model_copy(update={"evals": {k: v for k, v in config.evals.items() if k in only}})


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise RuntimeError(f"Another benchmark is running in {output}.") from None
    except OSError as error:
        raise ConfigError(f"output: {output} cannot be written to: {error}") from error
    try:
        yield
    finally:
        lock.release()


def _prepare_demo(config: BenchConfig) -> None:
    """Make the demo's data sets and SAEs, once per output folder."""
    if config.data == DEMO:
        from sae_lens_matryoshka.demo.labelled import write_data_sets

        _once(config.output / "demo" / "data", write_data_sets)
    for source in config.saes:
        if source.demo:
            from sae_lens_matryoshka.demo.bench_saes import train_sae

            which, small = source.demo, config.quick
            _once(
                config.demo_saes / which,
                lambda folder, which=which, small=small: train_sae(which, folder, small),
            )


def _once(folder: Path, make: Any) -> None:
    """Make a folder as a whole or not at all."""
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        make(partial)
        os.replace(partial, folder)


def _open_saes(config: BenchConfig) -> tuple[list[OpenedSAE], int]:
    """Every SAE's levels and fingerprint; the hook's size."""
    opened: list[OpenedSAE] = []
    sizes: dict[str, int] = {}
    for source in config.saes:
        sae = open_sae(source, config.demo_saes)
        sae = bench_form(sae, source.name, config.hook_name, config.model.label)
        opened.append(OpenedSAE(source, chosen_levels(sae, source), fingerprint(sae)))
        sizes[source.name] = sae.cfg.d_in
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise ConfigError(
            f"The SAEs read activations of different sizes ({listed}), so they do not belong to one hook."
        )
    return opened, next(iter(sizes.values()))


def _data_keys(config: BenchConfig) -> dict[str, str]:
    wanted = {FIDELITY: [config.text.dataset]}
    for name, given in config.evals.items():
        wanted[name] = data_sets(name, eval_config(name, given))
    return {name: data_fingerprint(config.data_folder, names) for name, names in wanted.items()}


def _run(config: BenchConfig, jobs: list[Job], d_in: int, verbose: bool) -> None:
    for job in jobs:
        for item in job.items:
            if item.too_narrow and not is_finished(item):
                reason = f"{job.eval} needs {item.too_narrow} latents, the level has {item.width}"
                write_status(item, "not applicable", reason)
    left = [job for job in jobs if not all(map(is_finished, job.items))]
    items = sum(not is_finished(item) for job in left for item in job.items)
    if not left:
        return
    needed = check_disk(config, left, d_in)
    label = f"{len(left)} jobs, up to {in_gigabytes(needed)} of disk for caches"
    with tqdm(total=items, desc=label, unit="level", disable=not verbose) as bar:
        shown = ""

        def progress(ended: int, running: str) -> None:
            nonlocal shown
            bar.update(ended)
            if running != shown:
                bar.set_postfix_str(shown := running)

        try:
            # L0 and FVU first: what is wrong with model or hook shows before hours of work
            run_jobs(config, [job for job in left if job.eval == FIDELITY], progress)
            run_jobs(config, [job for job in left if job.eval != FIDELITY], progress)
        except SetupError as error:
            raise ConfigError(str(error)) from error


def compared_metrics(config: BenchConfig) -> list[Metric]:
    """The metrics of the config's evals, L0 and FVU first."""
    found = fidelity_metrics()
    for name, given in config.evals.items():
        found += metrics_of(name, eval_config(name, given))
    return found


def _write_comparison(config: BenchConfig, outcomes: list[Outcome]) -> str:
    metrics = compared_metrics(config)
    versions = f"sae-bench {version('sae-bench')}, sae-lens {version('sae-lens')}"
    text = markdown(outcomes, metrics, config.baseline, versions)
    partial = config.output / "results.md.partial"
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, config.output / "results.md")
    write_csv(outcomes, metrics, config.output / "results.csv")
    write_plots(outcomes, metrics, config.output / "plots")
    return text


def _collect_saebench(config: BenchConfig, jobs: list[Job]) -> None:
    """SAEBench's own JSON files, named as SAEBench names them, in a folder per eval and seed."""
    tree = config.output / "saebench"
    partial = tree.with_name("saebench.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for job in jobs:
        if job.eval == FIDELITY:
            continue
        folder = partial / job.eval / ("no_seed" if job.seed is None else f"seed_{job.seed}")
        folder.mkdir(parents=True)
        for item in job.items:
            result = Path(item.folder, RESULT)
            if result.exists() and (read_status(item) or {}).get("status") == "done":
                shutil.copy(result, folder / f"{item.name}_custom_sae_eval_results.json")
    shutil.rmtree(tree, ignore_errors=True)
    if partial.exists():
        os.replace(partial, tree)


def _write_run(
    config: BenchConfig,
    jobs: list[Job],
    opened: list[OpenedSAE],
    model_key: str,
    data_keys: dict[str, str],
    seconds: float,
) -> None:
    content = {
        "config": config.model_dump(mode="json"),
        "versions": {
            "sae-lens-matryoshka": __version__,
            "python": platform.python_version(),
            **package_versions(),
        },
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
        "jobs": [_job_record(config, job) for job in jobs],
        "seconds": round(seconds, 1),
    }
    write_json(config.output / "run.json", content)


def _job_record(config: BenchConfig, job: Job) -> dict[str, Any]:
    """Wall time of a job and of its items; what is left is loading, caches and probes."""
    try:
        path = config.output / "jobs" / Path(job.work).name / "job.json"
        wall = json.loads(path.read_text())["seconds"]
    except FileNotFoundError:
        wall = 0.0
    statuses = {item.name: read_status(item) or {} for item in job.items}
    return {"eval": job.eval, "seed": job.seed, "wall_seconds": wall, "levels": statuses}


def _device_name(config: BenchConfig) -> str:
    device = device_of(config.model)
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device
