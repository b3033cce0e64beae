"""What SAEBench would drop, crash on or silently do otherwise is refused beforehand."""

from dataclasses import fields
from typing import Any

import pytest

from sae_lens_matryoshka.bench.evals.catalogue import (
    EVALS,
    data_sets,
    eval_config,
    smallest_width,
)
from sae_lens_matryoshka.settings.yaml_file import ConfigError


@pytest.mark.parametrize("name", EVALS)
def test_defaults_are_saebenchs_own(name: str):
    config = eval_config(name, {}, model_name="m", dtype="bfloat16", batch_size=7, seed=3)
    theirs = type(config)()
    ours = {"model_name": "m", "llm_dtype": "bfloat16", "llm_batch_size": 7, "random_seed": 3}
    for field in fields(config):
        expected = ours.get(field.name, getattr(theirs, field.name))
        if field.name == "perform_scr":
            expected = name == "scr"
        assert getattr(config, field.name) == expected, field.name


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("absorption", {"max_k_valu": 5}, "Did you mean 'max_k_value'"),
        ("absorption", {"min_feats_for_eval": 1}, "crashes on one"),
        ("absorption", {"max_k_value": 0}, "at least 1"),
        ("absorption", {"prompt_token_pos": 3}, "Give a negative position"),
        ("absorption", {"random_seed": 1}, "is set by seeds"),
        ("tpp", {"perform_scr": True}, "is set by the eval's name"),
        ("tpp", {"llm_batch_size": 4}, "is set by model.batch_size"),
        ("tpp", {"n_values": [2, 3]}, r"no place for \[3\].*\[2, 5, 10, 20, 50, 100, 500\]"),
        ("scr", {"n_values": []}, "no place for none at all"),
        ("scr", {"n_values": [1000]}, r"no place for \[1000\]"),
        ("sparse_probing", {"k_values": [1, 3]}, r"no place for \[3\]"),
        ("sparse_probing", {"dataset_names": ["fancyzhx/agnews"]}, "'fancyzhx/ag_news'"),
        ("sparse_probing", {"dataset_names": []}, "is empty"),
        ("tpp", {"dataset_names": ["fancyzhx/ag_news"]}, "SAEBench has no 'fancyzhx/ag_news'"),
        ("tpp", {"probe_epochs": "many"}, "probe_epochs: .*valid integer.*'many'"),
        ("sae_probes", {"dataset_names": ["161_agnews"]}, "161_agnews_0"),
        ("sae_probes", {"setting": "scarcity"}, "'normal' only"),
        ("sae_probes", {"binarize": True}, "would report no number"),
        ("sae_probes", {"reg_type": "l3"}, "reg_type: 'l3' is none of l1, l2"),
        ("sae_probes", {"baseline_method": "foo"}, "'foo' is none of logreg"),
        (
            "tpp",
            {"column1_vals_lookup": {"a": [["b", "c"]]}},
            "has no effect: SAEBench reads it for",
        ),
        (
            "scr",
            {"column1_vals_lookup": {"LabHC/bias_in_bios_class_set1": [["professor", "nurse"]]}},
            "no pairs of 'canrager/amazon_reviews_mcauley_1and5'",
        ),
        ("sae_probes", {"results_path": "x"}, "is set by output"),
        ("core", {"compute_kl": True}, "always computes all"),
    ],
)
def test_what_would_go_wrong_is_refused(name: str, given: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        eval_config(name, given)


def test_widths_that_an_eval_needs():
    assert smallest_width("absorption", eval_config("absorption", {"max_k_value": 3})) == 10
    assert smallest_width("absorption", eval_config("absorption", {"max_k_value": 12})) == 12
    assert smallest_width("tpp", eval_config("tpp", {"n_values": [50, 2]})) == 50
    assert smallest_width("core", eval_config("core", {})) == 1


def test_subsets_of_a_data_set_are_one():
    config = eval_config("sparse_probing", {})
    assert data_sets("sparse_probing", config) == [
        "LabHC/bias_in_bios",
        "canrager/amazon_reviews_mcauley_1and5",
        "codeparrot/github-code",
        "fancyzhx/ag_news",
        "Helsinki-NLP/europarl",
    ]
    assert data_sets("core", eval_config("core", {"dataset": "a/b"})) == ["a/b"]
    assert data_sets("absorption", eval_config("absorption", {})) == []
