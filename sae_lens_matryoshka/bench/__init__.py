"""SAEBench on SAELens SAEs: every nested level, several seeds, one file in, a comparison out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_lens_matryoshka.bench.config import BenchConfig, checked_config
    from sae_lens_matryoshka.bench.jobs.suite import BenchReport, run

__all__ = ["BenchConfig", "BenchReport", "checked_config", "run"]

_HOME_OF = {
    "BenchConfig": "config",
    "BenchReport": "jobs.suite",
    "checked_config": "config",
    "run": "jobs.suite",
}


def __getattr__(name: str) -> Any:
    """Import late: a worker needs neither the suite nor its plots."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
