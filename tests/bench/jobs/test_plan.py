"""A result's folder is named by everything that decides the result, and by nothing else."""

from typing import Any

import pytest

from sae_lens_matryoshka.bench.config import checked_config
from sae_lens_matryoshka.bench.inputs.saes import Level
from sae_lens_matryoshka.bench.jobs import plan
from sae_lens_matryoshka.bench.jobs.plan import (
    Job,
    OpenedSAE,
    check_evals,
    make_jobs,
    needed_data,
)
from sae_lens_matryoshka.settings.yaml_file import ConfigError

EVALS = {"sparse_probing": {"k_values": [1, 20]}, "absorption": {}, "core": {}}


def jobs(
    settings: dict[str, Any], sae: str = "s", model: str = "m", data: str = "d", **more: Any
) -> list[Job]:
    config = checked_config({**settings, "evals": EVALS, **more})
    opened = [OpenedSAE(config.saes[0], [Level(0, 2, 16), Level(1, 2, 160)], sae)]
    return make_jobs(config, opened, model, {name: data for name in ("fidelity", *config.evals)})


def folders(found: list[Job]) -> set[str]:
    return {item.folder for job in found for item in job.items}


def test_one_job_per_eval_and_seed_with_fidelity_first(settings: dict[str, Any]):
    found = jobs(settings, seeds=[3, 5])
    assert [(job.eval, job.seed) for job in found] == [
        ("fidelity", None),
        ("sparse_probing", 3),
        ("sparse_probing", 5),
        ("absorption", 3),
        ("absorption", 5),
        ("core", None),  # its seed cannot be chosen
    ]
    assert [item.too_narrow for item in found[1].items] == [20, 0]
    assert [item.width for item in found[1].items] == [16, 160]
    assert len(folders(found)) == 12


@pytest.mark.parametrize(
    "change",
    [
        {"sae": "other"},
        {"model": "other"},
        {"data": "other"},
        {"hook_name": "blocks.2.hook_resid_post"},
        {"text": {"dataset": "a/b"}},
    ],
)
def test_what_decides_a_number_decides_the_folder(settings: dict[str, Any], change: dict[str, Any]):
    before = folders([job for job in jobs(settings) if job.eval == "fidelity"])
    after = folders([job for job in jobs(settings, **change) if job.eval == "fidelity"])
    assert not before & after


def test_other_settings_of_an_eval_are_another_folder(settings: dict[str, Any]):
    before = folders(jobs(settings))
    probing = {**EVALS, "sparse_probing": {"k_values": [1]}}
    config = checked_config({**settings, "evals": probing})
    opened = [OpenedSAE(config.saes[0], [Level(0, 2, 16), Level(1, 2, 160)], "s")]
    after = folders(make_jobs(config, opened, "m", {n: "d" for n in ("fidelity", *probing)}))
    assert len(before - after) == 2  # sparse probing's two levels
    upstream = folders(jobs(settings, upstream_defaults=True))
    assert len(before - upstream) == 2  # absorption's


def test_what_is_computed_otherwise_is_run_again_and_nothing_else(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    before = jobs(settings)
    monkeypatch.setitem(plan.RESULTS_FORMAT, "fidelity", 1)  # before it had the decoder max cosine
    old = jobs(settings)
    assert not folders(before[:1]) & folders(old[:1])
    assert folders(before[1:]) == folders(old[1:])


def test_what_decides_nothing_keeps_the_folder(settings: dict[str, Any]):
    before = folders(jobs(settings))
    assert folders(jobs(settings, jobs=2, published=[])) == before
    assert before < folders(jobs(settings, seeds=[0, 1]))


def test_absorption_on_another_hook_is_refused(settings: dict[str, Any]):
    for hook in ("blocks.1.hook_resid_pre", "blocks.1.hook_mlp_out"):
        config = checked_config({**settings, "evals": EVALS, "hook_name": hook})
        with pytest.raises(
            ConfigError, match="SAEBench reads hook_resid_post of the SAE's layer whatever"
        ):
            check_evals(config)
    check_evals(
        checked_config({**settings, "evals": {"tpp": {}}, "hook_name": "blocks.1.hook_mlp_out"})
    )


def test_data_that_is_needed(settings: dict[str, Any]):
    config = checked_config({**settings, "evals": {"tpp": {}, "core": {"dataset": "c/d"}}})
    assert needed_data(config) == {
        "fidelity": ["demo/heldout_text"],
        "tpp": ["LabHC/bias_in_bios", "canrager/amazon_reviews_mcauley_1and5"],
        "core": ["c/d"],
    }
