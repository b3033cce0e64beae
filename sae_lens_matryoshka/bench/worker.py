"""A process of its own for one eval and seed: `python -m sae_lens_matryoshka.bench.worker JOB.json`.

Its working folder, caches and environment are its own, and its standard output is the job's log. It goes
through the SAE levels in turn and leaves a result and a status for each; killed, it loses one level.
"""

import json
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae_lens_matryoshka.bench.config import BenchConfig
from sae_lens_matryoshka.bench.models import check_hook, open_model
from sae_lens_matryoshka.bench.plan import Item, Job
from sae_lens_matryoshka.bench.results import (
    CURRENT,
    RESULT,
    SETUP_ERROR,
    is_finished,
    write_json,
    write_status,
)
from sae_lens_matryoshka.bench.runners import (
    RUNNERS,
    NotMeasurable,
    Runner,
    reset_random_state,
)
from sae_lens_matryoshka.bench.sources import (
    Level,
    bench_form,
    chosen_levels,
    cut,
    fingerprint,
    open_sae,
)


def main() -> None:
    """Run the job that the file describes."""
    _die_with_the_parent()
    spec = json.loads(Path(sys.argv[1]).read_text())
    job = Job(**{**spec["job"], "items": [Item(**item) for item in spec["job"]["items"]]})
    run_job(BenchConfig.model_validate(spec["config"]), job)


def run_job(config: BenchConfig, job: Job) -> None:
    """Open the model, build the caches, measure every item that is not finished."""
    pending = [item for item in job.items if not item.too_narrow and not is_finished(item)]
    if not pending:
        return
    try:
        saes = _opened(config, pending)
        first_item, first = next(saes)
        runner = _runner(config, job, first)
    except NotMeasurable as reason:
        for item in pending:
            write_status(item, "not measurable", str(reason))
        return
    except Exception as error:
        traceback.print_exc()
        write_json(Path(job.work, SETUP_ERROR), {"reason": _in_short(error)})
        sys.exit(1)
    _measure(job, runner, first_item, first)
    for item, sae in saes:
        _measure(job, runner, item, sae)


def _opened(config: BenchConfig, items: list[Item]) -> Iterator[tuple[Item, Any]]:
    """Each item with its SAE, cut to the level; an SAE with several levels is opened once."""
    index, whole = -1, None
    for item in items:
        source = config.saes[item.sae]
        if item.sae != index:
            sae = open_sae(source, config.demo_saes)
            whole = bench_form(sae, source.name, config.hook_name, config.model.label)
            chosen_levels(whole, source)
            if fingerprint(whole) != item.fingerprint:
                raise RuntimeError(f"SAE {source.name!r} changed since the benchmark began.")
            index = item.sae
        assert whole is not None
        yield item, cut(whole, Level(item.level, item.levels, item.width))


def _runner(config: BenchConfig, job: Job, like: Any) -> Runner:
    model = open_model(config.model)
    check_hook(model, config.hook_name, {config.saes[job.items[0].sae].name: like.cfg.d_in})
    cache = Path(job.work, "cache")
    runner = RUNNERS[job.eval](config, job, model, like, cache)
    if not cache.exists():  # a cache that is half built stands under another name
        partial = cache.with_name("cache.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        runner.cache = partial
        runner.warm()
        os.replace(partial, cache)
        runner.cache = cache
    return runner


def _measure(job: Job, runner: Runner, item: Item, sae: Any) -> None:
    write_json(Path(job.work, CURRENT), {"folder": item.folder})
    scratch = Path(job.work, "scratch")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    start = time.monotonic()
    try:
        reset_random_state(runner.seed)
        runner.run(sae, item.name, scratch)
        [result] = scratch.rglob("*_eval_results.json")
        Path(item.folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(result, Path(item.folder, f"{RESULT}.partial"))
        os.replace(Path(item.folder, f"{RESULT}.partial"), Path(item.folder, RESULT))
        write_status(item, "done", seconds=time.monotonic() - start)
    except NotMeasurable as reason:
        write_status(item, "not measurable", str(reason), time.monotonic() - start)
    except Exception as error:
        traceback.print_exc()
        write_status(item, "failed", _in_short(error), time.monotonic() - start)


def _in_short(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text if len(text) <= 500 else f"{text[:500]} ..."


def _die_with_the_parent() -> None:
    """The parent holds the other end of standard input: at its end, however it came, stop."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
