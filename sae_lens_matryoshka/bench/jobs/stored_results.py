"""Results on disk: one folder per finished item, SAEBench's own JSON in it; published files."""

import json
import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from sae_lens_matryoshka.atomic_files import write_json
from sae_lens_matryoshka.bench.config import BenchConfig, PublishedSource
from sae_lens_matryoshka.bench.evals.gaps import gaps, is_placeholder
from sae_lens_matryoshka.bench.jobs.plan import Item, Job
from sae_lens_matryoshka.bench.outcome import FIDELITY, Outcome
from sae_lens_matryoshka.settings.yaml_file import ConfigError

RESULT = "eval_results.json"
STATUS = "status.json"
CURRENT = "current.json"
"""In a job's working folder: the item that its worker is at."""
RESTART = 3
"""The code with which a worker ends that wants to go on in a fresh process."""
SETUP_ERROR = "setup_error.json"
"""In a job's working folder: why it could not begin."""
FINAL = ("done", "not applicable", "not measurable")
"""Statuses that another run would only repeat."""

OTHER_SETTINGS = "Published with other settings than those used here:"
"""Heads the list of settings in which published results differ."""

_NOT_COMPARED = (
    "random_seed",
    "llm_batch_size",
    "sae_batch_size",
    "results_path",
    "model_cache_path",
)
_EVAL_OF_TYPE = {"absorption_first_letter": "absorption", "sparse_probing_sae_probes": "sae_probes"}


def write_status(
    item: Item,
    status: str,
    reason: str = "",
    seconds: float = 0.0,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Say how an item ended, with notes on single metrics; the last thing written of it."""
    content: dict[str, Any] = {"status": status, "reason": reason, "seconds": seconds}
    if notes:
        content["notes"] = dict(notes)
    write_json(Path(item.folder, STATUS), content)


def read_status(item: Item) -> dict[str, Any] | None:
    """How an item ended; None if it has not, or if what it left is broken."""
    folder = Path(item.folder)
    try:
        status = json.loads((folder / STATUS).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return None if status["status"] == "done" and not (folder / RESULT).exists() else status


def identity_file(output: Path, job: Job) -> Path:
    """Where a job leaves the identity of the model that it measured on."""
    return output / "jobs" / job.name / "model.json"


def is_done(item: Item) -> bool:
    """Whether the item has a result."""
    return (read_status(item) or {}).get("status") == "done"


def is_finished(item: Item) -> bool:
    """Whether running the item again would only repeat its result."""
    status = read_status(item)
    return status is not None and status["status"] in FINAL


def read_metrics(path: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """
    The metrics and details of one of SAEBench's result files.

    Args:
        path: The JSON file.

    Returns:
        Key to value over all categories, NaN where SAEBench writes -1 for a number that it does not
        have; and `eval_result_details`.
    """
    result = json.loads(path.read_text())
    metrics: dict[str, float] = {}
    for category in cast(dict[str, dict[str, Any]], result["eval_result_metrics"]).values():
        for key, value in category.items():
            if isinstance(value, int | float):
                missing = is_placeholder(result["eval_type_id"], key, value)
                metrics[key] = math.nan if missing else float(value)
    return metrics, result.get("eval_result_details") or []


def _found(path: Path) -> dict[str, Any]:
    """What an outcome holds of one of SAEBench's result files."""
    metrics, details = read_metrics(path)
    return {"metrics": metrics, "details": details, "notes": gaps(json.loads(path.read_text()))}


def outcomes_of(config: BenchConfig, jobs: list[Job]) -> list[Outcome]:
    """What all items came to, in the order SAE, level, eval, seed; then the published results."""
    found = [_outcome(config, job, item) for job in jobs for item in job.items]
    order = [source.name for source in config.saes]
    found.sort(key=lambda outcome: (order.index(outcome.sae), outcome.level))
    return found + [o for source in config.published for o in published_outcomes(source)]


def _outcome(config: BenchConfig, job: Job, item: Item) -> Outcome:
    status = read_status(item) or {"status": "missing", "reason": "not run", "seconds": 0.0}
    found: dict[str, Any] = {}
    if status["status"] == "done":
        found = _found(Path(item.folder, RESULT))
        found["notes"] |= status.get("notes", {})
    return Outcome(
        sae=config.saes[item.sae].name,
        level=item.level,
        levels=item.levels,
        width=item.width,
        eval=job.eval,
        seed=job.seed,
        status=status["status"],
        reason=status["reason"],
        seconds=status["seconds"],
        **found,
    )


def published_outcomes(source: PublishedSource) -> Iterator[Outcome]:
    """
    Published results as outcomes of one level.

    Raises:
        ConfigError: A file is missing or is none of SAEBench's, or L0 and FVU are not given.
    """
    outcome = partial(
        Outcome, sae=source.name, level=0, levels=1, seed=None, status="done", published=True
    )
    found: dict[str, Outcome] = {}
    for path in source.files:
        try:
            result = json.loads(path.read_text())
            name, content = _eval_of(result), _found(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"published {source.name!r}: {path} is none of SAEBench's result files ({error!r})."
            ) from error
        if name in found:
            raise ConfigError(
                f"published {source.name!r}: {path} is a second result of {name}. Give one file per eval, "
                "or another entry under published."
            )
        width = int((result.get("sae_cfg_dict") or {}).get("d_sae") or 0)
        found[name] = outcome(width=width, eval=name, **content)
    core = found["core"].metrics if "core" in found else {}
    l0, fvu = source.l0 if source.l0 is not None else core.get("l0"), source.fvu
    if l0 is None or fvu is None:
        raise ConfigError(
            f"published {source.name!r}: there is no comparison without L0 and FVU. Give l0 (or a core "
            "result among its files) and fvu (core's own explained variance is wrong for large "
            "activations)."
        )
    width = max(one.width for one in found.values())
    yield outcome(width=width, eval=FIDELITY, metrics={"l0": l0, "fvu": fvu})
    yield from found.values()


def other_settings(config: BenchConfig, jobs: list[Job]) -> str:
    """A sentence per published eval on the settings in which it differs from the results found here."""
    ours = {job.eval: found for job in jobs if (found := _settings_here(job))}
    lines: list[str] = []
    for source in config.published:
        for path in source.files:
            result = json.loads(path.read_text())
            here = ours.get(_eval_of(result), {})
            theirs = _settings(result)
            differ = [
                f"{key} {theirs[key]} (here {value})"
                for key, value in here.items()
                if key in theirs and theirs[key] != value
            ]
            if differ:
                lines.append(f"- {source.name}, {_eval_of(result)}: {'; '.join(differ)}")
    if not lines:
        return ""
    return "\n".join([OTHER_SETTINGS, "", *lines]) + "\n"


def _settings_here(job: Job) -> dict[str, Any]:
    """The settings that SAEBench wrote into the first finished result of a job."""
    for item in job.items:
        if job.eval != FIDELITY and is_done(item):
            return _settings(json.loads(Path(item.folder, RESULT).read_text()))
    return {}


def _settings(result: dict[str, Any]) -> dict[str, Any]:
    given = dict(result.get("eval_config") or {})
    hook = (result.get("sae_cfg_dict") or {}).get("hook_name")
    settings = {"hook_name": hook, **given} if hook else given
    return {key: value for key, value in settings.items() if key not in _NOT_COMPARED}


def _eval_of(result: dict[str, Any]) -> str:
    return _EVAL_OF_TYPE.get(result["eval_type_id"], str(result["eval_type_id"]))
