"""Tasks for processes of their own, which can only be given what they can import."""

import time
from collections.abc import Callable
from pathlib import Path


def count(file: Path, tell: Callable[[], None]) -> None:
    for _ in range(3):
        tell()
    file.write_text("done")


def fail_or_go_on(file: Path, tell: Callable[[], None]) -> None:
    if file.name == "fails":
        raise ValueError("no such thing")
    for _ in range(6_000):
        tell()
        time.sleep(0.01)
    file.write_text("done")
