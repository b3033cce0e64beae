"""Run a benchmark: check, prepare, run the jobs, compare."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from sae_lens_matryoshka.bench.config import DEMO, BenchConfig, checked_config
from sae_lens_matryoshka.bench.inputs.data import check_local, data_fingerprints
from sae_lens_matryoshka.bench.inputs.models import (
    check_same_model,
    check_source,
    demo_key,
    model_fingerprint,
)
from sae_lens_matryoshka.bench.inputs.saes import (
    bench_form,
    check_sae_folder,
    chosen_levels,
    demo_sae_folder,
    open_sae,
)
from sae_lens_matryoshka.bench.inputs.same_model import warn_of_identities, warn_of_names
from sae_lens_matryoshka.bench.jobs.disk import check_disk, in_gigabytes
from sae_lens_matryoshka.bench.jobs.output import (
    claim_output,
    collect_saebench,
    write_comparison,
    write_run,
)
from sae_lens_matryoshka.bench.jobs.plan import (
    Job,
    OpenedSAE,
    check_evals,
    make_jobs,
    needed_data,
)
from sae_lens_matryoshka.bench.jobs.processes import (
    WORK_CONTENTS,
    SetupError,
    python_path,
    run_jobs,
    threads_of,
)
from sae_lens_matryoshka.bench.jobs.stored_results import (
    is_finished,
    outcomes_of,
    published_outcomes,
    write_status,
)
from sae_lens_matryoshka.bench.outcome import FIDELITY, Outcome
from sae_lens_matryoshka.levels.fingerprint import fingerprint
from sae_lens_matryoshka.ownership import remove_scratch, replaced_folder
from sae_lens_matryoshka.settings.strict_models import did_you_mean
from sae_lens_matryoshka.settings.writable import check_output
from sae_lens_matryoshka.settings.yaml_file import ConfigError

logger = logging.getLogger(__name__)

REFRESH_SECONDS = 5.0


@dataclass(frozen=True)
class BenchReport:
    """
    What a benchmark found.

    Args:
        outcomes: One per SAE level, eval and seed.
        markdown: The comparison as text.
        folder: Where everything lies.
        only: The evals that this run was about; None for all.
        warnings: Which SAEs seem to belong to another model; also in the text.
    """

    outcomes: list[Outcome]
    markdown: str
    folder: Path

    only: Sequence[str] | None = None
    warnings: Sequence[str] = ()

    @property
    def failed(self) -> list[Outcome]:
        """Those of this run that have no number because something broke."""
        ran = [o for o in self.outcomes if self.only is None or o.eval in (FIDELITY, *self.only)]
        return [outcome for outcome in ran if outcome.status == "failed"]


def run(
    config: BenchConfig | dict[str, Any], only: Sequence[str] | None = None, verbose: bool = True
) -> BenchReport:
    """
    Run SAEBench's evals on SAEs, their nested levels and seeds, and compare.

    Finished results in the output folder are used again if model, SAE, data, config, seed and package
    versions are the same; all else is run.

    Args:
        config: The benchmark, or the settings as they stand in a YAML file.
        only: Evals to run of those in the config; of the others, finished results are shown. None: all.
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
    start = time.monotonic()
    check_input(config, only)
    with _locked(config.output):
        claim_output(config.output)
        model_key = model_fingerprint(config.model)
        data = needed_data(config)
        # before anything is trained, since there may be no network
        from_hub = data_fingerprints(None, data) if config.data_folder is None else None
        _prepare_demo(config)
        if config.data_folder is not None:
            for name in dict.fromkeys(chain.from_iterable(data.values())):
                check_local(config.data_folder, name)
        opened, d_in = _open_saes(config)
        warnings = warn_of_names(config, opened)
        data_keys = from_hub or data_fingerprints(config.data_folder, data)
        jobs = make_jobs(config, opened, model_key, data_keys)
        _remove_old_work(config, jobs)
        warnings += _run(config, opened, [j for j in jobs if _is_chosen(j, only)], d_in, verbose)
        jobs = [job for job in jobs if _is_chosen(job, only) or any(map(is_finished, job.items))]
        outcomes = outcomes_of(config, jobs)
        text = write_comparison(config, outcomes, jobs, warnings)
        collect_saebench(config, jobs)
        write_run(config, jobs, opened, model_key, data_keys, warnings, time.monotonic() - start)
    return BenchReport(outcomes, text, config.output, only, warnings)


def check_input(config: BenchConfig, only: Sequence[str] | None = None) -> None:
    """
    Check what can be checked before a model or an SAE is opened.

    Args:
        config: The benchmark.
        only: Evals to run of those in the config; None: all.

    Raises:
        ConfigError: Something cannot be used.
    """
    _check_only(config, only)
    check_evals(config)
    for source in config.published:
        list(published_outcomes(source))
    check_source(config.model)
    for source in config.saes:
        if source.folder is not None:
            check_sae_folder(source.name, source.folder, config.hook_name)
    if config.data_folder is not None and config.data != DEMO and not config.data_folder.is_dir():
        raise ConfigError(f"data: there is no folder {config.data_folder}.")
    try:
        check_output("output", config.output)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _check_only(config: BenchConfig, only: Sequence[str] | None) -> None:
    unknown = [name for name in only or [] if name not in config.evals]
    if unknown:
        raise ConfigError(
            f"--only {unknown[0]}: the config has no such eval.{did_you_mean(unknown[0], config.evals)}"
        )


def _is_chosen(job: Job, only: Sequence[str] | None) -> bool:
    """Whether the job is to run; L0 and FVU are measured always."""
    return only is None or job.eval in (FIDELITY, *only)


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
    wanted = dict.fromkeys(
        (source.demo, source.training_seed) for source in config.saes if source.demo
    )
    with ThreadPoolExecutor(config.jobs) as pool:  # each waits for a process
        list(pool.map(lambda one: _demo_sae(config, *one), wanted))


def _once(folder: Path, make: Callable[[Path], None]) -> None:
    """Write a complete folder, again when what makes it changed (demo_key)."""
    key, made_by = demo_key(), folder / ".made_by"
    if not made_by.exists() or made_by.read_text() != key:
        with replaced_folder(folder) as unfinished:
            make(unfinished)
            (unfinished / made_by.name).write_text(key)


def _demo_sae(config: BenchConfig, which: str, seed: int) -> None:
    folder = demo_sae_folder(config.demo_saes, which, seed)
    _once(folder, partial(_train_demo_sae, config, which, seed))


def _train_demo_sae(config: BenchConfig, which: str, seed: int, folder: Path) -> None:
    """In a process of its own: its memory comes back, what it prints goes to a log."""
    log = config.output / "logs" / f"training-{which}-seed_{seed}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    logger.info("Training the demo's %s SAE, seed %d (a minute or two); log: %s", which, seed, log)
    size = ["--small"] if config.quick else []
    with log.open("wb") as file:
        child = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "sae_lens_matryoshka.bench.inputs.demo_saes",
                which,
                str(folder),
                str(seed),
                *size,
            ],
            stdin=subprocess.PIPE,  # its end tells the child that we are gone
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": python_path()} | threads_of(config),
        )
        with child:
            child.wait()
    if child.returncode:
        raise RuntimeError(f"Training the demo's {which} SAE failed. The log: {log}")


def _open_saes(config: BenchConfig) -> tuple[list[OpenedSAE], int]:
    """Every SAE's levels and fingerprint; the hook's size."""
    opened: list[OpenedSAE] = []
    sizes: dict[str, int] = {}
    for source in config.saes:
        sae = open_sae(source, config.demo_saes)
        metadata = sae.cfg.metadata.to_dict()
        check_same_model(config.model, sae.cfg.metadata.model_name, source.name)
        sae = bench_form(sae, source.name, config.hook_name, config.model.label)
        opened.append(OpenedSAE(source, chosen_levels(sae, source), fingerprint(sae), metadata))
        sizes[source.name] = sae.cfg.d_in
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise ConfigError(
            f"The SAEs read activations of different sizes ({listed}), so they do not belong to one hook."
        )
    return opened, next(iter(sizes.values()))


def _remove_old_work(config: BenchConfig, jobs: list[Job]) -> None:
    """Caches of an interrupted benchmark that had other settings serve nobody."""
    wanted = {job.name for job in jobs}
    for folder in (config.output / "work").glob("*"):
        if folder.name not in wanted:
            remove_scratch(folder, WORK_CONTENTS)


def _run(
    config: BenchConfig, opened: list[OpenedSAE], jobs: list[Job], d_in: int, verbose: bool
) -> list[str]:
    """Run what is not finished; returns which SAEs were trained on another model."""
    for job in jobs:
        for item in job.items:
            if item.too_narrow and not is_finished(item):
                reason = f"{job.eval} needs {item.too_narrow} latents, the level has {item.width}"
                write_status(item, "not applicable", reason)
    left = [job for job in jobs if not all(map(is_finished, job.items))]
    items = sum(not is_finished(item) for job in left for item in job.items)
    if not left:
        return warn_of_identities(config, opened, jobs)
    needed = check_disk(config, left, d_in)
    label = f"{len(left)} jobs, up to {in_gigabytes(needed)} of disk for caches"
    with tqdm(total=items, desc=label, unit="level", disable=not verbose) as bar:
        shown = time.monotonic()

        def progress(ended: int, running: str) -> None:
            nonlocal shown
            bar.update(ended)
            bar.set_postfix_str(running, refresh=False)
            if time.monotonic() - shown > REFRESH_SECONDS:
                bar.refresh()
                shown = time.monotonic()

        try:
            # L0 and FVU first: what is wrong with model or hook shows before hours of work
            run_jobs(config, [job for job in left if job.eval == FIDELITY], progress)
            warnings = warn_of_identities(config, opened, jobs)
            run_jobs(config, [job for job in left if job.eval != FIDELITY], progress)
        except SetupError as error:
            raise ConfigError(str(error)) from error
    return warnings
