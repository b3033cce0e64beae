"""SAEBench's evals as the suite knows them: their fields, limits and data sets.

Only SAEBench's light modules (configs, result classes) are imported here; importing an eval itself takes
seconds and belongs into the worker.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any, Literal

from pydantic import ValidationError

from sae_lens_matryoshka.settings.strict_models import did_you_mean
from sae_lens_matryoshka.settings.yaml_file import ConfigError

# what the suite sets from the rest of the config
_SET_BY_SUITE = {
    "model_name": "model",
    "llm_dtype": "model.dtype",
    "llm_batch_size": "model.batch_size",
    "random_seed": "seeds",
    "perform_scr": "the eval's name",
    "results_path": "output",
    "model_cache_path": "output",
}
_ALWAYS_COMPUTED = "compute_"  # core's runner sets these fields itself
SMALLEST_DICTIONARY = 10  # absorption looks at the ten strongest latents


@dataclass(frozen=True)
class Eval:
    """
    What the suite must know of one of SAEBench's evals.

    Args:
        name: Its name in configs.
        module: SAEBench's package of it.
        config_class: Name of its config's class.
        result_class: Name of the class of its metrics.
        counts_field: The field that lists k or n; None if there is none.
        count_pattern: Metrics that SAEBench keeps; the first group is the k or n.
        seeded: Whether its seed can be chosen.
    """

    name: str
    module: str
    config_class: str
    result_class: str
    counts_field: str | None = None
    count_pattern: str = ""
    seeded: bool = True


EVALS = {
    e.name: e
    for e in (
        Eval("absorption", "absorption", "AbsorptionEvalConfig", "AbsorptionMeanMetrics"),
        Eval(
            "sparse_probing",
            "sparse_probing",
            "SparseProbingEvalConfig",
            "SparseProbingSaeMetrics",
            "k_values",
            r"sae_top_(\d+)_test_accuracy",
        ),
        Eval(
            "tpp",
            "scr_and_tpp",
            "ScrAndTppEvalConfig",
            "TppMetrics",
            "n_values",
            r"tpp_threshold_(\d+)_total_metric",
        ),
        Eval(
            "scr",
            "scr_and_tpp",
            "ScrAndTppEvalConfig",
            "ScrMetrics",
            "n_values",
            r"scr_metric_threshold_(\d+)",
        ),
        Eval(
            "sae_probes",
            "sparse_probing_sae_probes",
            "SparseProbingSaeProbesEvalConfig",
            "SaeProbesSaeMetrics",
            "ks",
            r"sae_top_(\d+)_test_auc",
        ),
        Eval("core", "core", "CoreEvalConfig", "SparsityMetrics", seeded=False),
    )
}


def eval_config(
    name: str,
    given: dict[str, Any],
    *,
    model_name: str = "",
    dtype: str = "float32",
    batch_size: int = 32,
    seed: int = 0,
) -> Any:
    """
    SAEBench's own config object of an eval.

    Args:
        name: The eval.
        given: Its SAEBench fields, as the user gave them.
        model_name: The model's label.
        dtype: The model's data type.
        batch_size: Sequences per forward pass.
        seed: The eval's seed.

    Raises:
        ConfigError: A field is unknown, is set elsewhere, or has a value that SAEBench refuses, would
            drop silently or would crash on.
    """
    cls = _light_class(name, "eval_config", EVALS[name].config_class)
    known = [field.name for field in fields(cls)]
    for key in given:
        _check_key(name, key, known)
    ours = {
        "model_name": model_name,
        "llm_dtype": dtype,
        "llm_batch_size": batch_size,
        "random_seed": seed,
        "perform_scr": name == "scr",
    }
    try:
        config = cls(**{k: v for k, v in ours.items() if k in known}, **given)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']} (given: {e['input']!r})"
            for e in error.errors()
        )
        raise ConfigError(f"evals.{name}: {problems}") from error
    _check_values(name, config)
    return config


def counts(name: str, config: Any) -> list[int]:
    """The k or n values of an eval's config, ascending; empty if it has none."""
    field = EVALS[name].counts_field
    return sorted(getattr(config, field)) if field else []


def smallest_width(name: str, config: Any) -> int:
    """Latents that an SAE needs for this eval to work."""
    if name == "absorption":
        return max(SMALLEST_DICTIONARY, config.max_k_value)
    return max(counts(name, config), default=1)


def data_sets(name: str, config: Any) -> list[str]:
    """Hub names of the data sets that an eval loads; sae-probes brings its own."""
    if name == "core":
        return [config.dataset]
    if name in ("absorption", "sae_probes"):
        return []
    stems = [re.sub(r"(_class_set\d+|_sentiment)$", "", n) for n in config.dataset_names]
    return list(dict.fromkeys(stems))


def needs_resid_post(name: str) -> bool:
    """Whether SAEBench reads `hook_resid_post` of the SAE's layer, whatever the SAE's own hook is."""
    return name == "absorption"


def _light_class(name: str, module: Literal["eval_config", "eval_output"], cls: str) -> Any:
    try:
        return getattr(import_module(f"sae_bench.evals.{EVALS[name].module}.{module}"), cls)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"SAEBench is not installed ({error.name} is missing). Install it: in a checkout of the "
            'repository, pip install ".[bench]"'
        ) from error


def _check_key(name: str, key: str, known: Sequence[str]) -> None:
    if key in known and (key in _SET_BY_SUITE or key.startswith(_ALWAYS_COMPUTED)):
        where = _SET_BY_SUITE.get(key, "SAEBench's runner, which always computes all of them")
        raise ConfigError(f"evals.{name}.{key} is set by {where}. Leave it out here.")
    if key not in known:
        mine = [k for k in known if k not in _SET_BY_SUITE and not k.startswith(_ALWAYS_COMPUTED)]
        raise ConfigError(f"evals.{name}.{key}: unknown key.{did_you_mean(key, mine)}")


def _check_values(name: str, config: Any) -> None:
    check: dict[str, Callable[[str, Any], None]] = {
        "absorption": _check_absorption,
        "sparse_probing": _check_sparse_probing,
        "tpp": _check_tpp,
        "scr": _check_scr,
        "sae_probes": _check_sae_probes,
        "core": lambda _name, _config: None,
    }
    check[name](name, config)
    _check_counts(name, config)


def _check_counts(name: str, config: Any) -> None:
    field = EVALS[name].counts_field
    if field is None:
        return
    result = _light_class(name, "eval_output", EVALS[name].result_class)
    found = [re.fullmatch(EVALS[name].count_pattern, f.name) for f in fields(result)]
    kept = [int(match[1]) for match in found if match]
    dropped = [n for n in counts(name, config) if n not in kept]
    if dropped or not counts(name, config):
        raise ConfigError(
            f"evals.{name}.{field}: SAEBench's results have no place for {dropped or 'none at all'}; "
            f"it would compute and drop them. Choose from {kept}."
        )


def _check_absorption(name: str, config: Any) -> None:
    if config.min_feats_for_eval < 2:
        raise ConfigError(
            f"evals.{name}.min_feats_for_eval: {config.min_feats_for_eval} is too few: SAEBench takes the "
            "standard deviation over the letters and crashes on one. Give at least 2."
        )
    if config.prompt_token_pos >= 0:
        raise ConfigError(
            f"evals.{name}.prompt_token_pos: {config.prompt_token_pos} counts from the start, where "
            "solved examples stand. Give a negative position."
        )
    if config.max_k_value < 1:
        raise ConfigError(f"evals.{name}.max_k_value: {config.max_k_value} must be at least 1.")


def _check_sparse_probing(name: str, config: Any) -> None:
    info = import_module("sae_bench.sae_bench_utils.dataset_info")
    _check_dataset_names(name, config, list(info.chosen_classes_per_dataset))


def _check_tpp(name: str, config: Any) -> None:
    pairs = type(config)().column1_vals_lookup
    if config.column1_vals_lookup != pairs:
        raise ConfigError(
            f"evals.{name}.column1_vals_lookup has no effect: SAEBench reads it for scr only. Leave it out."
        )
    _check_dataset_names(name, config, list(pairs))


def _check_scr(name: str, config: Any) -> None:
    if lacking := [n for n in config.dataset_names if n not in config.column1_vals_lookup]:
        raise ConfigError(
            f"evals.{name}.column1_vals_lookup: no pairs of {lacking[0]!r}, which is among dataset_names. Give "
            "them, or take it out of dataset_names."
        )
    _check_dataset_names(name, config, list(type(config)().column1_vals_lookup))


def _check_dataset_names(name: str, config: Any, known: list[str]) -> None:
    for data_set in config.dataset_names:
        if data_set not in known:
            raise ConfigError(
                f"evals.{name}.dataset_names: SAEBench has no {data_set!r}."
                f"{did_you_mean(data_set, known)}"
            )
    if not config.dataset_names:
        raise ConfigError(f"evals.{name}.dataset_names is empty. Choose from {known}.")


def _check_sae_probes(name: str, config: Any) -> None:
    known = import_module("sae_probes").DATASETS
    unknown = [data_set for data_set in config.dataset_names if data_set not in known]
    if unknown or not config.dataset_names:
        asked = unknown[0] if unknown else ""
        raise ConfigError(f"evals.{name}.dataset_names: no {asked!r}.{did_you_mean(asked, known)}")
    for key, allowed in (
        ("reg_type", ("l1", "l2")),
        ("baseline_method", tuple(import_module("sae_probes.run_baselines").METHODS)),
    ):
        if getattr(config, key) not in allowed:
            raise ConfigError(
                f"evals.{name}.{key}: {getattr(config, key)!r} is none of {', '.join(allowed)}."
            )
    if config.binarize:
        raise ConfigError(
            f"evals.{name}.binarize: SAEBench does not find the results of binarized latents and would "
            "report no number. Leave it out."
        )
    if config.setting != "normal":
        raise ConfigError(
            f"evals.{name}.setting: {config.setting!r}, but SAEBench evaluates 'normal' only."
        )
