"""Work on the weights that needs the optimizer: done right after its step, whoever drives it.

SAELens's trainers own their optimizers and tell an SAE nothing of them. Torch calls a hook after every
step of every optimizer; the trainer that owns one is found among the living objects.
"""

import functools
import gc
import weakref
from typing import Any, Protocol

import torch
from sae_lens import SAETrainer
from torch.optim.optimizer import register_optimizer_step_post_hook


class Stepped(Protocol):
    """An SAE that has work to do after an optimizer's step."""

    W_dec: torch.nn.Parameter

    def after_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Do it; gradients are those of the step."""
        ...


_stepped: "weakref.WeakSet[Any]" = weakref.WeakSet()
_trainers: "weakref.WeakKeyDictionary[torch.optim.Optimizer, weakref.ref[Any] | None]"
_trainers = weakref.WeakKeyDictionary()


def call_after_steps(sae: Stepped) -> None:
    """From now on, call the SAE's after_optimizer_step after each step of the optimizer that trains it."""
    _watch_optimizers()
    _stepped.add(sae)


@functools.cache
def _watch_optimizers() -> None:
    register_optimizer_step_post_hook(_call_stepped)


def _call_stepped(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for sae in [sae for sae in _stepped if id(sae.W_dec) in trained]:
        sae.after_optimizer_step(optimizer)


def trainer_of(optimizer: torch.optim.Optimizer) -> SAETrainer[Any, Any] | None:
    """The SAELens trainer that owns an optimizer; None: another loop steps it."""
    if optimizer not in _trainers:
        # type(), since proxies answer isinstance by loading what they stand for
        living = (thing for thing in gc.get_objects() if issubclass(type(thing), SAETrainer))
        trainer = next((trainer for trainer in living if trainer.optimizer is optimizer), None)
        _trainers[optimizer] = None if trainer is None else weakref.ref(trainer)
    known = _trainers[optimizer]
    return None if known is None else known()
