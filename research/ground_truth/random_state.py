"""Random numbers for each user of torch's global generator as if it were alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


class OwnRandomness:
    """
    A state of torch's global CPU generator that only its owner draws from.

    SAELens's synthetic data and many SAEs draw from the global generator. Side by side in one process, what
    one of them draws would otherwise depend on the others.

    Args:
        purpose: A number for what it is for.
        seed: At most 32 bits. Each pair of purpose and seed is another stream.
    """

    state: torch.Tensor
    """Where the stream is, as torch.get_rng_state gives it; may be set."""

    def __init__(self, purpose: int, seed: int = 0):
        # torch's CPU generator takes 32 bits of a seed; sums of seeds would meet
        derived = int(np.random.SeedSequence((purpose, seed)).generate_state(1)[0])
        self.state = torch.Generator().manual_seed(derived).get_state()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within, the global generator goes on where it stopped here; outside, as if nothing had been."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.state)
            try:
                yield
            finally:
                self.state = torch.get_rng_state()
