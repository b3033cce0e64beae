import torch

from sae_lens_matryoshka.training.adam import (
    STEPS_BETWEEN_LOOKS,
    VANISHING,
    speed_up_adam,
    use_fused_adam,
)

SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


# ---- the fused kernel


def test_fused_adam_keeps_loaded_state():
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizers = [torch.optim.Adam([weight], lr=0.1) for weight in weights]
    for step in range(4):
        for weight, optimizer in zip(weights, optimizers):
            weight.grad = torch.tensor([1.0, -2.0, float(step)])
            optimizer.step()
        if step == 1:
            assert use_fused_adam(optimizers[1])
    assert optimizers[1].param_groups[0]["fused"] is True
    torch.testing.assert_close(weights[1], weights[0])


def test_fused_adam_only_where_it_is_supported():
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
    optimizer = torch.optim.Adam([weight])
    assert not use_fused_adam(optimizer)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert not torch.equal(weight, torch.ones_like(weight))


# ---- moments that vanish


def trained(fast: bool) -> tuple[torch.nn.Parameter, int]:
    """Weights of which half are silent for long, and how many moments were denormal at most."""
    weight = torch.nn.Parameter(torch.linspace(-1.0, 1.0, 40))
    optimizer = torch.optim.Adam([weight], lr=1e-3, fused=True)
    if fast:
        speed_up_adam(optimizer)
    generator, denormal = torch.Generator().manual_seed(0), []
    for step in range(1_500):
        weight.grad = torch.randn(40, generator=generator)
        if 0 < step < 1_400:
            weight.grad[:20] = 0.0
        optimizer.step()
        state = optimizer.state[weight]
        denormal.append(sum(count_denormal(state[name]) for name in ("exp_avg", "exp_avg_sq")))
    return weight, max(denormal)


def count_denormal(moment: torch.Tensor) -> int:
    sizes = moment.abs()
    return int(((sizes > 0) & (sizes < SMALLEST_NORMAL)).sum())


def test_moments_never_become_denormal_and_the_weights_stay_the_same():
    slow, denormal = trained(fast=False)
    assert denormal == 20
    fast, denormal = trained(fast=True)
    assert denormal == 0
    assert torch.equal(fast, slow)


def optimizer_with(first: list[float], second: list[float], step: int) -> torch.optim.Adam:
    weight = torch.nn.Parameter(torch.ones(len(first)))
    weight.grad = torch.zeros_like(weight)
    optimizer = torch.optim.Adam([weight])
    moments = {"exp_avg": torch.tensor(first), "exp_avg_sq": torch.tensor(second)}
    optimizer.state[weight] = {"step": torch.tensor(float(step)), **moments}
    speed_up_adam(optimizer)
    return optimizer


def test_both_moments_are_cleared_and_only_vanishing_ones():
    first = [1.0, -1e-20, 1e-40, -0.5 * VANISHING]
    second = [1.0, 1e-20, 1e-40, 0.5 * VANISHING]
    optimizer = optimizer_with(first, second, STEPS_BETWEEN_LOOKS - 1)
    optimizer.step()
    (state,) = optimizer.state.values()
    torch.testing.assert_close(
        state["exp_avg"], torch.tensor([0.9, -0.9e-20, 0.0, 0.0]), atol=0.0, rtol=1e-5
    )
    torch.testing.assert_close(
        state["exp_avg_sq"], torch.tensor([0.999, 0.999e-20, 0.0, 0.0]), atol=0.0, rtol=1e-5
    )


def test_it_looks_at_the_steps_that_the_optimizer_counts():
    optimizer = optimizer_with([1e-35], [1.0], STEPS_BETWEEN_LOOKS - 2)
    optimizer.step()
    (state,) = optimizer.state.values()
    assert state["exp_avg"].item() > 0
    optimizer.step()
    assert state["exp_avg"].item() == 0


def test_weights_without_a_gradient_are_no_matter():
    used, unused = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = torch.optim.Adam([used, unused])
    speed_up_adam(optimizer)
    used.grad = torch.ones(2)
    for _ in range(STEPS_BETWEEN_LOOKS):
        optimizer.step()
    assert unused not in optimizer.state
