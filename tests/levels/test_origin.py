"""A truncated SAE records where it comes from, and nothing that holds for its parent alone."""

import json

import pytest
import torch
from bench_helpers import WIDTHS, random_sae
from sae_lens import SAE

from sae_lens_matryoshka import MatryoshkaSAE, calibrate_threshold
from sae_lens_matryoshka.levels import measurements as level_results
from sae_lens_matryoshka.levels.fingerprint import fingerprint
from sae_lens_matryoshka.levels.measurements import measurement, record, results_of
from sae_lens_matryoshka.levels.origin import origin_of


@pytest.fixture
def parent() -> MatryoshkaSAE:
    sae = random_sae(widths=WIDTHS)
    sae.cfg.metadata.l0 = 24.0
    sae.cfg.metadata.num_dead_features = 3
    details = dict(sae.cfg.metadata.training_architecture_details)
    sae.cfg.metadata.training_architecture_details = {**details, "k": 24, "activation": "batchtopk"}
    return MatryoshkaSAE.from_sae(sae)


def test_a_saved_level_says_where_it_comes_from(parent, tmp_path):
    parent.level(1).save_model(tmp_path)
    metadata = SAE.load_from_disk(tmp_path).cfg.metadata
    assert origin_of(metadata) == {
        "level": 1,
        "width": parent.widths[1],
        "parent_widths": list(parent.widths),
        "parent_fingerprint": fingerprint(parent.sae),
        "parent_training": {"k": 24},
    }
    assert origin_of(json.loads((tmp_path / "cfg.json").read_text())["metadata"]) is not None
    details = metadata.training_architecture_details
    assert details == {"matryoshka_widths": list(parent.widths[:2]), "activation": "batchtopk"}
    assert metadata.l0 is metadata.num_dead_features is None
    assert origin_of(parent.cfg.metadata) is None
    assert parent.cfg.metadata.training_architecture_details["k"] == 24


def test_a_width_between_levels(parent):
    origin = origin_of(parent.truncate(parent.widths[0] + 1).cfg.metadata)
    assert origin is not None
    assert (origin["level"], origin["width"]) == (None, parent.widths[0] + 1)


def test_the_outermost_level_keeps_what_is_its_own(parent):
    metadata = parent.level(-1).cfg.metadata
    origin = origin_of(metadata)
    assert origin is not None
    assert origin["parent_fingerprint"] == fingerprint(parent.level(-1))
    assert (metadata.l0, metadata.num_dead_features) == (24, 3)
    assert metadata.training_architecture_details["k"] == 24


def test_a_level_of_a_level_and_its_copies(parent):
    level = MatryoshkaSAE.from_sae(parent.level(1))
    inner, copied = origin_of(level.level(0).cfg.metadata), origin_of(level.level(-1).cfg.metadata)
    assert inner is not None
    assert copied is not None
    assert inner["parent_fingerprint"] == fingerprint(level.sae) != fingerprint(parent.sae)
    assert copied["parent_fingerprint"] == fingerprint(parent.sae)


def test_what_was_measured_of_the_level(parent):
    width = parent.widths[0]
    record(parent.sae, {width: {"L0": measurement([3.5])}, parent.d_sae: {"L0": measurement([24])}})
    metadata = parent.level(0).cfg.metadata
    assert metadata.l0 == 3.5
    assert results_of(metadata, width) == {"L0": {"mean": 3.5}}
    parent.threshold.data += 1  # another SAE, of which nothing was measured
    metadata = parent.level(0).cfg.metadata
    assert metadata.l0 is None
    assert results_of(metadata, width) == {}


def test_a_calibrated_parent(parent):
    calibrated = calibrate_threshold(parent, torch.randn(200, parent.d_in), 7)
    assert calibrated.cfg.metadata.l0 == 7
    metadata = calibrated.level(0).cfg.metadata
    assert metadata.l0 is metadata[level_results.L0_IS_CALIBRATED] is None
