"""The random generators of a run: seeded for it, and given back as they were."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from sae_lens_matryoshka.training.resuming.checkpoint import rng_state, set_rng_state


def seed_all(seed: int) -> None:
    """Seed the global random generators of PyTorch, NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@contextmanager
def kept_rng_state() -> Iterator[None]:
    """Restore the caller's global random generators at the end of the block."""
    before = rng_state()
    try:
        yield
    finally:
        set_rng_state(before)
