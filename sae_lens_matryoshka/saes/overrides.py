"""What others change in an SAE in training: hooks, overridden methods, another activation function."""

from collections.abc import Callable
from typing import Any, TypeVar

from sae_lens.saes.sae import SAE
from torch import nn
from transformer_lens.hook_points import HookPoint

from sae_lens_matryoshka.engine.compiling import not_compiled

F = TypeVar("F", bound=Callable[..., Any])

_defaults: set[Callable[..., Any]] = {SAE.process_sae_in}


def overridable(method: F) -> F:
    """Mark a method that training may bypass for speed, unless `is_overridden`."""
    _defaults.add(method)
    return method


@not_compiled
def is_overridden(sae: SAE[Any], method: str) -> bool:
    """Return True if a subclass, or an attribute of the SAE, replaces an `overridable` method."""
    return getattr(getattr(sae, method), "__func__", None) not in _defaults


def is_hooked(point: nn.Module) -> bool:
    """Return True if a hook point does more than return its input: it has hooks, or was replaced."""
    hooks = (
        point._forward_hooks,
        point._forward_pre_hooks,
        point._backward_hooks,
        point._backward_pre_hooks,
    )
    return any(hooks) or type(point) not in (HookPoint, nn.Identity)
