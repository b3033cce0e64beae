"""The exact cut between what fires and what does not."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_matryoshka.engine import Encoder
from sae_lens_matryoshka.saes import thresholds as threshold


def encoders_of(*blocks: torch.Tensor) -> list[Encoder]:
    """Encoders whose pre-activations are the given values, one latent each."""
    return [
        Encoder(block[:, None], block.new_ones(1, 1), block.new_zeros(1), None) for block in blocks
    ]


class TestCutForCount:
    @settings(deadline=None)
    @given(st.integers(0, 2**20), st.integers(0, 60), st.integers(1, 5), st.sampled_from([32, 16]))
    def test_exactly_count_entries_exceed_it(self, seed, count, n_blocks, bits):
        values = torch.randn(120, generator=torch.Generator().manual_seed(seed))
        values = values.to({32: torch.float32, 16: torch.bfloat16}[bits])
        cut = threshold.cut_for_count(encoders_of(*values.chunk(n_blocks)), count)
        assert cut >= 0
        wanted = min(count, int((values > 0).sum()))
        above = int((values > cut).sum())
        tied = int((values == values.sort(descending=True).values[max(wanted - 1, 0)]).sum())
        assert above == wanted or (bits == 16 and wanted - tied < above <= wanted)

    def test_survives_rounding_of_the_boundary(self):
        # the cut lies between two values, not on one that another chunking may round up
        assert threshold.cut_for_count(encoders_of(torch.tensor([1.0, 2.0, 4.0])), 2) == 1.5

    def test_neighbouring_floats_leave_no_middle(self):
        low = torch.tensor(1.0)
        high = torch.nextafter(low, torch.tensor(2.0))
        cut = threshold.cut_for_count(encoders_of(torch.stack([low, high])), 1)
        assert low <= cut < high

    def test_nothing_seen(self):
        assert threshold.cut_for_count([], 3) == 0

    def test_more_wanted_than_positive(self):
        assert threshold.cut_for_count(encoders_of(torch.tensor([-1.0, 2.0])), 2) == 0


class TestRecentActivations:
    def test_keeps_the_newest_batches_that_suffice(self, monkeypatch):
        monkeypatch.setattr(threshold, "N_CALIBRATION_TOKENS", 10)
        recent = threshold.RecentActivations()
        for index in range(5):
            recent.add(torch.full((4, 2), float(index)))
        assert len(recent) == 12  # three batches: two would hold 8, fewer than 10
        kept = torch.cat(list(recent.batches()))
        assert kept[:, 0].unique().tolist() == [2, 3, 4]

    def test_holds_copies(self):
        recent = threshold.RecentActivations()
        batch = torch.ones(4, 2)
        recent.add(batch)
        batch.zero_()
        assert recent.batches()[0].sum() == 8

    def test_follows_a_change_of_space(self):
        recent = threshold.RecentActivations()
        recent.add(torch.ones(4, 2))
        recent.transform(lambda x: x / 2)
        assert recent.batches()[0].sum() == 4
