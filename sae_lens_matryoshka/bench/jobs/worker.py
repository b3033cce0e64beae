"""A process of its own for one eval and seed: `python -m sae_lens_matryoshka.bench.jobs.worker JOB.json`.

Its working folder, caches and environment are its own, and its standard output is the job's log. It goes
through the SAE levels in turn and leaves a result and a status for each; killed, it loses one level.
"""

import json
import os
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from sae_lens import SAE

from sae_lens_matryoshka.atomic_files import write_json
from sae_lens_matryoshka.bench.config import BenchConfig
from sae_lens_matryoshka.bench.evals.base import NotMeasurable, Runner, reset_random_state
from sae_lens_matryoshka.bench.evals.saebench import RUNNERS
from sae_lens_matryoshka.bench.inputs.models import check_hook, open_model
from sae_lens_matryoshka.bench.inputs.saes import Level, bench_form, cut, open_sae
from sae_lens_matryoshka.bench.jobs.parent_process import end_with_the_parent
from sae_lens_matryoshka.bench.jobs.plan import Item, Job
from sae_lens_matryoshka.bench.jobs.stored_results import (
    CURRENT,
    RESTART,
    RESULT,
    SETUP_ERROR,
    identity_file,
    read_metrics,
    write_status,
)
from sae_lens_matryoshka.bench.outcome import FIDELITY
from sae_lens_matryoshka.levels.fingerprint import fingerprint
from sae_lens_matryoshka.loading.model_identity import model_identity
from sae_lens_matryoshka.saes.inference_sae import copy_of


def main() -> None:
    """Run the job that the file describes."""
    end_with_the_parent()
    spec = json.loads(Path(sys.argv[1]).read_text())
    fields: dict[str, Any] = spec["job"]
    fields["items"] = [Item(**item) for item in fields["items"]]
    job = Job(**fields)
    run_job(BenchConfig.model_validate(spec["config"]), job)


def run_job(config: BenchConfig, job: Job) -> None:
    """Open the model, build the caches, measure the job's items."""
    saes, runner = _SAEs(config), None
    for number, item in enumerate(job.items):
        if runner is not None:
            _say_current(job, item)
        start = time.monotonic()
        try:
            sae = saes.cut(item)
            if runner is None:
                runner = _runner(config, job, sae)
                _say_current(job, item)
            _measure(job, runner, item, sae, time.monotonic())
        except NotMeasurable as reason:
            rest = job.items[number:] if runner is None else [item]
            for one in rest:
                write_status(one, "not measurable", str(reason), time.monotonic() - start)
            if runner is None:
                return
        except _SetupError as error:
            traceback.print_exc()
            write_json(Path(job.work, SETUP_ERROR), {"reason": str(error)})
            sys.exit(1)
        except Exception as error:
            traceback.print_exc()
            write_status(item, "failed", _in_short(error), time.monotonic() - start)
            sys.exit(RESTART)  # nobody knows what state it left behind


def _say_current(job: Job, item: Item) -> None:
    """From now on, a crash is this item's."""
    write_json(Path(job.work, CURRENT), {"folder": item.folder})


class _SetupError(Exception):
    """Model, hook, data or caches cannot be used, so that no SAE can be measured."""


class _SAEs:
    """The SAEs of the config, one at a time in memory."""

    def __init__(self, config: BenchConfig):
        self.config = config
        self.index, self.whole = -1, None

    def cut(self, item: Item) -> SAE[Any]:
        """The level of an item."""
        if item.sae != self.index:
            source = self.config.saes[item.sae]
            sae = open_sae(source, self.config.demo_saes)
            sae = bench_form(sae, source.name, self.config.hook_name, self.config.model.label)
            if fingerprint(sae) != item.fingerprint:
                raise RuntimeError(f"SAE {source.name!r} changed since the benchmark began.")
            self.index, self.whole = item.sae, sae
        assert self.whole is not None
        return cut(self.whole, Level(item.level, item.levels, item.width))


def _runner(config: BenchConfig, job: Job, like: SAE[Any]) -> Runner:
    try:
        model = open_model(config.model)
        if job.eval == FIDELITY:
            write_json(identity_file(config.output, job), model_identity(model))
        check_hook(model, config.hook_name, {config.saes[job.items[0].sae].name: like.cfg.d_in})
        cache = Path(job.work, "cache")
        runner = RUNNERS[job.eval](config, job, model, copy_of(like), cache)
        if not cache.exists():  # a cache that is half built stands under another name
            partial = cache.with_name("cache.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            runner.cache = partial
            runner.warm()
            os.replace(partial, cache)
            runner.cache = cache
    except NotMeasurable:
        raise
    except Exception as error:
        raise _SetupError(_in_short(error)) from error
    return runner


def _measure(job: Job, runner: Runner, item: Item, sae: SAE[Any], start: float) -> None:
    scratch = Path(job.work, "scratch")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    reset_random_state(runner.seed)
    runner.run(sae, item.name, scratch)
    results = list(scratch.rglob("*_eval_results.json"))
    if len(results) != 1 or not read_metrics(results[0])[0]:
        raise RuntimeError(
            f"SAEBench gave no result; what it printed is in the log of {job.label}."
        )
    Path(item.folder).mkdir(parents=True, exist_ok=True)
    unfinished = Path(item.folder, f"{RESULT}.partial")
    shutil.copy(results[0], unfinished)
    os.replace(unfinished, Path(item.folder, RESULT))
    write_status(item, "done", seconds=time.monotonic() - start, notes=runner.notes())


def _in_short(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text if len(text) <= 500 else f"{text[:500]} ..."


if __name__ == "__main__":
    main()
