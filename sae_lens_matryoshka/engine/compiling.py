"""What torch.compile is to leave alone."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])


def not_compiled(function: F) -> F:
    """Keep what updates state, decides in Python or has shapes that depend on data out of graphs."""
    return cast(F, torch.compiler.disable(function))
