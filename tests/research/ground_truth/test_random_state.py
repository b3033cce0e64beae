"""Users of one generator as if each were alone."""

import torch

from research.ground_truth.random_state import OwnRandomness


def drawn(randomness: OwnRandomness) -> float:
    with randomness.active():
        return torch.rand(()).item()


def test_each_goes_on_where_it_stopped_whatever_happens_between():
    first, second = OwnRandomness(0), OwnRandomness(1)
    alone = [drawn(first) for _ in range(3)], [drawn(second) for _ in range(3)]
    first, second = OwnRandomness(0), OwnRandomness(1)
    mixed: tuple[list[float], list[float]] = ([], [])
    for _ in range(3):
        mixed[0].append(drawn(first))
        torch.rand(7)
        mixed[1].append(drawn(second))
    assert mixed == alone
    assert len({*alone[0], *alone[1]}) == 6


def test_outside_nothing_changes():
    before = torch.get_rng_state()
    drawn(OwnRandomness(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_purposes_and_seeds_that_add_up_to_the_same_differ():
    pairs = [(0, 1), (1, 0), (0, 0), (0, 2**32 - 1), (1, 2**32 - 1)]
    assert len({drawn(OwnRandomness(*pair)) for pair in pairs}) == len(pairs)
