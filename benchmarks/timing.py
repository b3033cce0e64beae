"""Times steps in turn, so that whatever slows the machine slows all of them."""

import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def interleaved(
    steps: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 3
) -> dict[str, list[float]]:
    """Milliseconds of every step in every round; each round runs each step once.

    Args:
        steps: What to time, by name.
        rounds: How often.
        warm_up: Untimed runs of each step before.
    """
    for step in steps.values():
        for _ in range(warm_up):
            step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            _wait()
            start = time.perf_counter()
            step()
            _wait()
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(times: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """How many times longer one takes than another: the median over rounds."""
    return statistics.median(a / b for a, b in zip(times[slow], times[fast]))


def say(line: str = "") -> None:
    """Print at once, so that a long run shows where it is."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def table(header: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    say("| " + " | ".join(header) + " |")
    say("|---" * len(header) + "|")
    for row in rows:
        say("| " + " | ".join(row) + " |")


def machine(device: str) -> str:
    """What ran the numbers: processor or GPU, threads, versions, date."""
    if device == "cuda":
        chip = torch.cuda.get_device_name()
    else:
        threads = torch.get_num_threads()
        chip = (
            f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}, "
            f"{torch.backends.cpu.get_cpu_capability()}"
        )
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "sae-lens"))
    return f"{chip}; {packages}; {date.today()}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
