"""The Adam that SAELens builds, made faster; what it computes stays the same."""

from typing import Any

import torch
from torch.nn.functional import hardshrink

# Moments this small move no weight: Adam adds 1e-8 to the root of the second one.
VANISHING = 1e-30
# Steps between two looks. In these a moment that gets nothing more shrinks from 1e-30 to 3e-35 (beta1 .9).
STEPS_BETWEEN_LOOKS = 100


def speed_up_adam(optimizer: torch.optim.Optimizer) -> None:
    """
    Take the steps in one fused kernel where there is one, and never on denormal numbers.

    The moments of a latent that has stopped firing shrink by a share in every step, and below 1.2e-38
    they become denormal, on which processors compute many times more slowly. So they are set to zero
    before that. GPUs do not mind.

    Args:
        optimizer: A torch.optim.Adam as SAELens builds it, fresh or with loaded state, which is kept.
    """
    use_fused_adam(optimizer)
    optimizer.register_step_post_hook(_clear_vanishing_moments)


def use_fused_adam(optimizer: torch.optim.Optimizer) -> bool:
    """
    Make a torch.optim.Adam take its steps in one fused kernel, where device and dtype allow it.

    Args:
        optimizer: As SAELens builds it, fresh or with loaded state, which is kept.

    Returns:
        Whether it is fused now.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    # None leaves the choice to torch, False would forbid its other fast path
    fused = all(map(_has_fused_adam, parameters)) or None
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["fused"] = fused
    optimizer.load_state_dict(state)  # moves the step counts to where the kernel needs them
    return fused is True


def _has_fused_adam(parameter: torch.Tensor) -> bool:
    # the constructor takes fused=True anywhere; only a step tells
    probe = torch.zeros(1, dtype=parameter.dtype, device=parameter.device, requires_grad=True)
    probe.grad = torch.zeros_like(probe)
    try:
        torch.optim.Adam([probe], fused=True).step()
    except RuntimeError:
        return False
    return True


@torch.no_grad()
def _clear_vanishing_moments(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for parameter, state in optimizer.state.items():
        # the optimizer's own count: a resumed run looks at the same steps
        if parameter.device.type == "cpu" and state["step"] % STEPS_BETWEEN_LOOKS == 0:
            for moment in (state["exp_avg"], state["exp_avg_sq"]):
                moment.copy_(hardshrink(moment, VANISHING))
