"""Disk is counted before it is used."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sae_lens_matryoshka.bench.config import checked_config
from sae_lens_matryoshka.bench.jobs.disk import cache_bytes, check_disk
from sae_lens_matryoshka.bench.jobs.plan import Job
from sae_lens_matryoshka.settings.yaml_file import ConfigError


def job(name: str, **fields: Any) -> Job:
    return Job(name, 0, fields, "key", "work")


def test_bounds_follow_the_sizes():
    small = job(
        "tpp", train_set_size=100, test_set_size=20, dataset_names=["LabHC/bias_in_bios_class_set1"]
    )
    # 5 classes x 60 texts x 128 tokens x 8 numbers x 4 bytes
    assert cache_bytes(small, 8) == 5 * 60 * 128 * 8 * 4
    pair = {"LabHC/bias_in_bios_class_set1": [["professor", "nurse"]]}
    scr = job("scr", **small.fields, column1_vals_lookup=pair)
    assert cache_bytes(scr, 8) == 6 * 60 * 128 * 8 * 4
    text = job("fidelity", dataset="a/b", sequences=3, context_size=5)
    assert cache_bytes(text, 8) == 15 * 8 * 4
    assert cache_bytes(job("core"), 8) == 0


def test_too_little_disk_is_refused_beforehand(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    config = checked_config({**settings, "jobs": 2})
    jobs = [job("tpp"), job("scr"), job("core")]
    needed = cache_bytes(jobs[0], 256) + cache_bytes(jobs[1], 256)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    assert check_disk(config, jobs, 256) == needed
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    with pytest.raises(ConfigError, match="need up to .* GB in .*out, but .* GB are free"):
        check_disk(config, jobs, 256)


def test_what_an_interrupted_run_has_left_counts(settings: dict[str, Any], tmp_path: Path):
    config = checked_config(settings)
    one = replace(job("fidelity", dataset="a/b", sequences=3, context_size=5), work=str(tmp_path))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "a").write_bytes(b"0" * 100)
    assert check_disk(config, [one], 8) == 15 * 8 * 4 - 100
