"""Stored samples are the samples that were drawn."""

import torch
from sae_lens.synthetic import SyntheticModel
from synthetic_helpers import TINY

from research.ground_truth.stored_samples import Replay, StoredDraw


def test_what_was_drawn_comes_back_in_any_portion():
    model = SyntheticModel(TINY)
    torch.manual_seed(0)
    wanted = torch.cat([model.activation_generator.sample(n) for n in (40, 40, 20)])
    torch.manual_seed(0)
    draw = StoredDraw(model, 100, batch_size=40)
    torch.testing.assert_close(torch.cat(list(draw.batches(33))), wanted, rtol=0, atol=0)
    replay = Replay(draw)
    torch.testing.assert_close(
        torch.cat([replay.sample(n) for n in (1, 64, 35)]), wanted, rtol=0, atol=0
    )


def test_samples_without_any_feature():
    model = SyntheticModel(TINY)
    model.activation_generator.sample = lambda size: torch.zeros(size, 64)
    draw = StoredDraw(model, 5, batch_size=2)
    assert torch.equal(draw.samples(1, 4), torch.zeros(3, 64))
