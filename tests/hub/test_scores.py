"""A benchmark's results on the card: of the very SAE that is published, or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_helpers import HOOK, WIDTHS, random_sae
from sae_lens import SAE

from sae_lens_matryoshka.bench.inputs.saes import bench_form
from sae_lens_matryoshka.hub.scores import Scores
from sae_lens_matryoshka.hub.staging import stage
from sae_lens_matryoshka.levels.fingerprint import fingerprint
from sae_lens_matryoshka.levels.measurements import measurement, record, results_of
from sae_lens_matryoshka.saes.inference_sae import copy_of

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
    scores = Scores(results(tmp_path, sae, rows))
    for one in (sae, other):
        scores.attach(one)
    scores.require_any(["a", "b"])
    metadata = sae.cfg.metadata
    assert results_of(metadata, 16) == {"L0": {"mean": 9.5}, "FVU ↓": {"mean": 0.6}}
    assert results_of(metadata, 160) == {
        "TPP, n=5 ↑": {"mean": 0.2, "std": pytest.approx(0.2**0.5 * 0.1**0.5), "seeds": 2}
    }
    assert results_of(metadata, 64) == {}
    notes = metadata.level_results_notes
    assert "sae-bench 0.6.0" in notes[0] and "on demo" in notes[0]
    assert "leave out special tokens (BOS" in notes[1]
    assert notes[2] == "TPP, n=5: an audit found it unreliable"
    assert other.cfg.metadata.level_results is None


def test_results_of_other_weights(tmp_path: Path):
    scores = Scores(results(tmp_path, random_sae(seed=1), ""))
    scores.attach(random_sae())
    with pytest.raises(ValueError, match="measured nested, other.*run the benchmark on what you"):
        scores.require_any(["a"])


def test_no_results(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="run.json is missing"):
        Scores(tmp_path)


def zero_row() -> Any:
    sae = random_sae(widths=WIDTHS)
    sae.W_dec.data[7] = 0
    return sae


FORMS = {
    "float32": lambda: random_sae(widths=WIDTHS),
    "bfloat16": lambda: copy_of(random_sae(widths=WIDTHS)).to(dtype=torch.bfloat16),
    "zero row": zero_row,
}


@pytest.mark.parametrize("form", FORMS)
def test_what_the_benchmark_opened_is_what_is_published(tmp_path: Path, form: str):
    """From the folder, through the benchmark's own form of it, to the staged SAE."""
    FORMS[form]().save_model(tmp_path / "sae")
    opened = SAE.load_from_disk(tmp_path / "sae", dtype="float32")  # as the benchmark does
    measured = bench_form(opened, "nested", HOOK, "demo")
    scores = Scores(results(tmp_path, measured, "nested,0,16,,fidelity,l0,9.5,done,,1,false\n"))
    staged = stage("a", tmp_path / "sae").sae
    scores.attach(staged)
    assert results_of(staged.cfg.metadata, 16) == {"L0": {"mean": 9.5}}
    staged.save_model(tmp_path / "published")
    again = stage("a", tmp_path / "published").sae
    assert results_of(again.cfg.metadata, 16) == {"L0": {"mean": 9.5}}


def test_results_take_the_place_of_older_ones(tmp_path: Path):
    sae = random_sae(widths=WIDTHS)
    record(sae, {16: {"TPP, n=5 ↑": measurement([0.9])}, 64: {"L0": measurement([7])}})
    Scores(results(tmp_path, sae, "nested,0,16,,fidelity,l0,9.5,done,,1,false\n")).attach(sae)
    assert results_of(sae.cfg.metadata, 16) == {"L0": {"mean": 9.5}}
    assert results_of(sae.cfg.metadata, 64) == {}


def test_one_sae_under_two_names(tmp_path: Path):
    sae = random_sae(widths=WIDTHS)
    rows = """\
nested,0,16,0,tpp,tpp_5,0.1,done,,1,false
twin,2,160,0,tpp,tpp_5,0.3,done,,1,false
twin,0,16,0,tpp,tpp_5,0.1,done,,1,false
"""
    folder = results(tmp_path, sae, rows)
    run = json.loads((folder / "run.json").read_text())
    run["fingerprints"]["saes"]["twin"] = fingerprint(sae)
    (folder / "run.json").write_text(json.dumps(run))
    Scores(folder).attach(sae)
    assert results_of(sae.cfg.metadata, 16) == {"TPP, n=5 ↑": {"mean": 0.1}}
    assert results_of(sae.cfg.metadata, 160) == {"TPP, n=5 ↑": {"mean": 0.3}}
