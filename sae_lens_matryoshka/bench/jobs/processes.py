"""Worker processes: started with an environment of their own, watched, and started again after a crash."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from sae_lens_matryoshka.atomic_files import write_json
from sae_lens_matryoshka.bench.config import BenchConfig
from sae_lens_matryoshka.bench.inputs.data import link_data
from sae_lens_matryoshka.bench.jobs.plan import Item, Job
from sae_lens_matryoshka.bench.jobs.stored_results import (
    CURRENT,
    RESTART,
    SETUP_ERROR,
    STATUS,
    is_finished,
    read_status,
    write_status,
)
from sae_lens_matryoshka.bench.outcome import FIDELITY
from sae_lens_matryoshka.ownership import new_scratch, remove_scratch

WORK_CONTENTS = (
    *("cwd", "cache", "cache.partial", "scratch", "datasets"),
    *("job.json*", f"{CURRENT}*", f"{SETUP_ERROR}*"),
)
"""What a job and its worker write into the job's working folder."""
POLL_SECONDS = 0.2
TAIL_BYTES, TAIL_CHARS = 20_000, 1_000


class SetupError(RuntimeError):
    """A job could not begin: model, hook or data cannot be used."""


@dataclass
class Running:
    """A job and its process."""

    job: Job
    left: list[Item]
    process: "subprocess.Popen[bytes]"
    log_starts_at: int
    started: float = field(default_factory=time.monotonic)


def run_jobs(config: BenchConfig, jobs: list[Job], progress: Callable[[int, str], None]) -> None:
    """
    Run jobs in processes of their own, `config.jobs` side by side.

    Args:
        config: The benchmark.
        jobs: The jobs; their finished items are not run again.
        progress: Called with the number of items that ended since the last call, and what is running.

    Raises:
        SetupError: The first job of all, which measures L0 and FVU, could not begin.
    """
    queue = [(job, left) for job in jobs if (left := _unfinished(job))]
    for _, left in queue:
        for item in left:
            Path(item.folder, STATUS).unlink(missing_ok=True)  # failed the last time
    running: list[Running] = []
    to_end = sum(len(left) for _, left in queue)
    try:
        while queue or running:
            while queue and len(running) < config.jobs:
                running.append(_start(config, *queue.pop(0)))
            time.sleep(POLL_SECONDS)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                again = _ended(config, one)
                if again:
                    queue.insert(0, (one.job, again))
            open_items = [item for one in running for item in one.left] + [
                item for _, left in queue for item in left
            ]
            now_open = sum(read_status(item) is None for item in open_items)
            progress(to_end - now_open, ", ".join(one.job.label for one in running))
            to_end = now_open
    finally:
        for one in running:
            with suppress(ProcessLookupError):  # it has just ended
                os.killpg(one.process.pid, signal.SIGKILL)  # with whatever it started
            one.process.wait()


def log_of(config: BenchConfig, job: Job) -> Path:
    """The log of a job: what SAEBench and its libraries print."""
    return config.output / "logs" / f"{job.name}.log"


def _unfinished(job: Job) -> list[Item]:
    return [item for item in job.items if not item.too_narrow and not is_finished(item)]


def _start(config: BenchConfig, job: Job, left: list[Item]) -> Running:
    work = Path(job.work)
    new_scratch(work)
    cwd = work / "cwd"
    cwd.mkdir(parents=True, exist_ok=True)
    for name in (CURRENT, SETUP_ERROR):
        (work / name).unlink(missing_ok=True)
    if config.data_folder is not None:
        link_data(config.data_folder, cwd)
    spec = work / "job.json"
    rest = asdict(replace(job, items=left))
    write_json(spec, {"config": json.loads(config.model_dump_json()), "job": rest})
    log = log_of(config, job)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        log_starts_at = file.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "sae_lens_matryoshka.bench.jobs.worker", str(spec)],
            cwd=cwd,
            env=_environment(config, work),
            stdin=subprocess.PIPE,  # its end tells the worker that we are gone
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is ours
        )
    return Running(job, left, process, log_starts_at)


def python_path() -> str:
    """A PYTHONPATH with which a child finds this package from any folder."""
    package_home = str(Path(__file__).parents[3])
    return os.pathsep.join(filter(None, [package_home, os.environ.get("PYTHONPATH")]))


def threads_of(config: BenchConfig) -> dict[str, str]:
    """The environment of a child that shares the processor with others of its kind."""
    if config.jobs == 1 and "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // config.jobs))}


def _environment(config: BenchConfig, work: Path) -> dict[str, str]:
    ours = {
        "JAXTYPING_DISABLE": "1",  # sparse probing's annotations fail with beartype >= 0.18
        "PYTHONPATH": python_path(),
        "PYTHONHASHSEED": "0",  # sets in the same order every time
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OPENBLAS_NUM_THREADS": "1",  # scikit-learn's many small fits only wait for threads
        "MPLBACKEND": "Agg",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        # SAEBench would report the commit of whatever repository lies above as its own
        "GIT_CEILING_DIRECTORIES": str(work),
    }
    ours |= threads_of(config)
    if config.data_folder is not None:
        ours["HF_DATASETS_CACHE"] = str(work / "datasets")
    if config.is_offline:
        ours["HF_HUB_OFFLINE"] = "1"
    return os.environ | ours


def _ended(config: BenchConfig, one: Running) -> list[Item]:
    """Settle a job whose process ended; returns what is left to run of it."""
    assert one.process.stdin is not None
    one.process.stdin.close()
    work = Path(one.job.work)
    again = _settle(config, one, [item for item in one.left if read_status(item) is None])
    _add_seconds(config.output / "jobs" / one.job.name / "job.json", one.started)
    if all(map(is_finished, one.job.items)):
        remove_scratch(work, WORK_CONTENTS)  # else its caches serve the next try
    return again


def _settle(config: BenchConfig, one: Running, open_items: list[Item]) -> list[Item]:
    if not open_items or one.process.returncode == RESTART:
        return open_items
    work, log = Path(one.job.work), log_of(config, one.job)
    setup_error = work / SETUP_ERROR
    if setup_error.exists():
        reason = json.loads(setup_error.read_text())["reason"]
        if one.job.eval == FIDELITY:
            raise SetupError(f"{reason}\nThe whole log: {log}")
        for item in open_items:
            write_status(item, "failed", reason)
        return []
    reason = (
        f"{_how_it_ended(one.process.returncode)}; the log ends: {_tail(log, one.log_starts_at)}"
    )
    at = _current_item(work, open_items)
    if at is None:  # while it was setting up
        for item in open_items:
            write_status(item, "failed", f"while the job was set up, {reason}")
        return []
    write_status(at, "failed", reason)
    return [item for item in open_items if item is not at]


def _add_seconds(path: Path, started: float) -> None:
    """Keep the wall time of a job over restarts."""
    before = json.loads(path.read_text())["seconds"] if path.exists() else 0.0
    write_json(path, {"seconds": before + time.monotonic() - started})


def _current_item(work: Path, items: list[Item]) -> Item | None:
    try:
        folder = json.loads((work / CURRENT).read_text())["folder"]
    except FileNotFoundError:
        return None
    return next((item for item in items if item.folder == folder), None)


def _how_it_ended(code: int) -> str:
    if code < 0:
        return f"the process was killed by {signal.Signals(-code).name}"
    return f"the process ended with code {code}"


def _tail(log: Path, start: int) -> str:
    """The end of what a process wrote, on one line."""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - TAIL_BYTES))
        text = file.read().decode(errors="replace")
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return " | ".join(lines)[-TAIL_CHARS:] if lines else "(nothing)"
