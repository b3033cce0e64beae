"""A benchmark's results on the card: of the very SAE that is published, or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest
from bench_helpers import WIDTHS, random_sae

from sae_lens_matryoshka.fingerprint import fingerprint
from sae_lens_matryoshka.hub.scores import attach_scores
from sae_lens_matryoshka.level_results import results_of

METRICS = [
    ("fidelity", "l0", "L0", None, "", True),
    ("fidelity", "fvu", "FVU", "lower", "", True),
    ("tpp", "tpp_5", "TPP, n=5", "higher", "an audit found it unreliable", True),
    ("tpp", "tpp_2", "TPP, n=2", "higher", "an audit found it unreliable", False),
]
HEADER = "sae,level,width,seed,eval,metric,value,status,reason,seconds,published\n"


def results(folder: Path, sae: Any, rows: str) -> Path:
    """The two files of a benchmark's output that are read."""
    names = ("eval", "key", "label", "better", "caveat", "in_table")
    run = {
        "fingerprints": {"saes": {"nested": fingerprint(sae), "other": "1234"}},
        "versions": {"sae-bench": "0.6.0", "sae-lens": "6.54.12"},
        "config": {"model": {"name": "demo", "folder": None}},
        "metrics": [dict(zip(names, metric, strict=True)) for metric in METRICS],
    }
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "results.csv").write_text(HEADER + rows)
    return folder


def test_mean_and_spread_by_level(tmp_path: Path):
    sae, other = random_sae(widths=WIDTHS), random_sae(seed=1)
    rows = """\
nested,0,16,,fidelity,l0,9.5,done,,1,false
nested,0,16,,fidelity,fvu,0.6,done,,1,false
nested,2,160,0,tpp,tpp_5,0.1,done,,1,false
nested,2,160,1,tpp,tpp_5,0.3,done,,1,false
nested,2,160,0,tpp,tpp_2,0.9,done,,1,false
nested,1,64,0,tpp,tpp_5,nan,done,,1,false
nested,1,64,1,tpp,,,failed,broke,1,false
other,0,160,,fidelity,fvu,0.9,done,,1,false
nested,2,160,,fidelity,fvu,0.9,done,,1,true
"""
    attach_scores({"a": sae, "b": other}, results(tmp_path, sae, rows))
    metadata = sae.cfg.metadata
    assert results_of(metadata, 16) == {"L0": {"mean": 9.5}, "FVU ↓": {"mean": 0.6}}
    assert results_of(metadata, 160) == {
        "TPP, n=5 ↑": {"mean": 0.2, "std": pytest.approx(0.2**0.5 * 0.1**0.5), "seeds": 2}
    }
    assert results_of(metadata, 64) == {}
    notes = metadata.level_results_notes
    assert "sae-bench 0.6.0" in notes[0] and "on demo" in notes[0]
    assert notes[1] == "TPP, n=5: an audit found it unreliable"
    assert other.cfg.metadata.level_results is None


def test_results_of_other_weights(tmp_path: Path):
    folder = results(tmp_path, random_sae(seed=1), "")
    with pytest.raises(ValueError, match="measured nested, other.*run the benchmark on what you"):
        attach_scores({"a": random_sae()}, folder)


def test_no_results(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="run.json is missing"):
        attach_scores({"a": random_sae()}, tmp_path)
