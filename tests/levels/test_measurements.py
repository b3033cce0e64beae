"""What is known of levels travels with the SAE, and only as far as the levels do."""

import json
import math
from pathlib import Path

import pytest
import torch
from bench_helpers import WIDTHS, random_sae
from sae_lens import SAE

from sae_lens_matryoshka import MatryoshkaSAE, calibrate_threshold
from sae_lens_matryoshka.levels.measurements import (
    drop_outdated,
    measurement,
    record,
    results_of,
)
from sae_lens_matryoshka.saes.inference_sae import copy_of


def test_several_seeds():
    assert measurement([0.5]) == {"mean": 0.5}
    assert measurement([1.0, 2.0, 3.0]) == {"mean": 2.0, "std": 1.0, "seeds": 3}


def test_saved_loaded_and_cut(tmp_path: Path):
    matryoshka = MatryoshkaSAE.from_sae(random_sae(widths=WIDTHS))
    record(matryoshka.sae, {width: {"FVU ↓": measurement([1 / width])} for width in WIDTHS})
    record(matryoshka.sae, {16: {"L0": measurement([3])}})
    matryoshka.save(tmp_path)
    loaded = MatryoshkaSAE.load_from_disk(tmp_path)
    assert results_of(loaded.sae.cfg.metadata, 16) == {"FVU ↓": {"mean": 1 / 16}, "L0": {"mean": 3}}
    level = loaded.level(1)
    assert results_of(level.cfg.metadata, 64) == {"FVU ↓": {"mean": 1 / 64}}
    assert results_of(level.cfg.metadata, 160) == {}
    assert not drop_outdated(level)
    assert results_of(SAE.load_from_disk(tmp_path).cfg.metadata, 160)  # stock SAELens keeps it


def test_numbers_hold_for_what_was_measured_only():
    sae = random_sae(widths=WIDTHS)
    record(sae, {160: {"L0": measurement([5.0])}})
    sae.cfg.metadata.level_results_notes = ["a note"]
    assert not drop_outdated(sae)
    sparser = calibrate_threshold(sae, torch.randn(200, 256), target_l0=3)
    assert drop_outdated(sparser)
    assert results_of(sparser.cfg.metadata, 160) == {}
    assert sparser.cfg.metadata.level_results_notes is None
    assert results_of(sae.cfg.metadata, 160) == {"L0": {"mean": 5.0}}
    changed = copy_of(sae)
    changed.W_dec.data[0, 0] += 0.1
    record(changed, {16: {"L0": measurement([1.0])}})
    assert results_of(changed.cfg.metadata, 160) == {}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_has_no_such_numbers(value: float):
    sae = random_sae()
    record(sae, {16: {"FVU ↓": measurement([value]), "L0": measurement([1.0])}})
    metadata = sae.cfg.metadata
    assert results_of(metadata, 16) == {"L0": {"mean": 1.0}}
    json.dumps(metadata.to_dict(), allow_nan=False)
