"""Numbers that SAEBench leaves out, replaces or averages over less than was asked for, and why."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

SMALLEST_GAP = 0.001
"""SAEBench reports an SCR of 0 where ablation has less accuracy than this to regain."""


def gaps(result: Mapping[str, Any]) -> dict[str, str]:
    """
    What a reader must know of single metrics in one of SAEBench's result files.

    Args:
        result: The file's content.

    Returns:
        Metric to reason. A metric without a number, or with NaN, could not be measured; one with a number
        rests on less than was asked for.
    """
    config, details = result.get("eval_config") or {}, result.get("eval_result_details") or []
    kind = result["eval_type_id"]
    found: dict[str, str] = {}
    if kind == "scr":
        found = _ties(config.get("n_values") or [], details)
    elif kind == "sparse_probing_sae_probes":
        found = _missing_data_sets(config, details)
    elif kind == "sparse_probing" and config.get("lower_vram_usage"):
        found = {"sae_test_accuracy": "SAEBench does not compute it with lower_vram_usage"}
    return not_finite(result) | found


def is_placeholder(kind: str, key: str, value: float) -> bool:
    """Whether SAEBench wrote -1 for a number that it does not have."""
    return value == -1 and (
        kind == "core" or (kind, key) == ("sparse_probing", "sae_test_accuracy")
    )


def not_finite(result: Mapping[str, Any]) -> dict[str, str]:
    """The metrics that are NaN or infinite."""
    numbers = {k: v for part in result["eval_result_metrics"].values() for k, v in part.items()}
    kind = result["eval_type_id"]
    return {
        key: "the eval computed no finite number"
        for key, value in numbers.items()
        if isinstance(value, int | float)
        and (not math.isfinite(value) or is_placeholder(kind, key, value))
    }


def _ties(counts: Sequence[int], details: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """SCR picks the direction in which the probe is less accurate; where both are equal, none."""
    found: dict[str, str] = {}
    for n in counts:
        key = f"scr_metric_threshold_{n}"
        ran = [one for one in details if one.get(f"scr_dir1_threshold_{n}") is not None]
        tied = [_pair(one["dataset_name"]) for one in ran if one.get(key) is None]
        if tied:
            found[key] = (
                f"SAEBench has no SCR of {', '.join(tied)}: the biased probe is equally accurate on both labels, so "
                "there is no direction to choose; another test_set_size breaks the tie"
            ) + _rest(len(ran) - len(tied), len(ran), "pairs of labels")
    return found


def _missing_data_sets(
    config: Mapping[str, Any], details: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    asked: list[str] = list(config.get("dataset_names") or [])
    found: dict[str, str] = {}
    for k in config.get("ks") or []:
        key = f"sae_top_{k}_test_auc"
        have = {one["dataset_name"] for one in details if one.get(key) is not None}
        missing = [name for name in asked if name not in have]
        if missing:
            found[key] = f"sae-probes gave no result for {', '.join(missing)}" + _rest(
                len(asked) - len(missing), len(asked), "data sets"
            )
    return found


def nothing_to_regain(
    accuracies: Mapping[str, Mapping[str, float]], counts: Sequence[int]
) -> dict[str, str]:
    """
    The SCR metrics in which SAEBench put 0, since the probe's accuracy has no room to rise.

    Args:
        accuracies: Per pair of labels, the model's accuracies as SAEBench names them.
        counts: The n of the metrics.
    """
    zero = [pair for pair, of_pair in accuracies.items() if _has_no_room(of_pair)]
    if not zero:
        return {}
    reason = (
        f"0 is SAEBench's placeholder for {', '.join(map(_pair, zero))}: the unbiased probe is not more accurate than "
        "the biased one, so ablation has nothing to regain"
    ) + _rest(len(accuracies) - len(zero), len(accuracies), "pairs of labels")
    return {f"scr_metric_threshold_{n}": reason for n in counts}


def _has_no_room(accuracies: Mapping[str, float]) -> bool:
    """In the direction that SAEBench chooses."""
    biased = {
        labels: accuracies[f"male_professor / female_nurse probe on {labels} data"]
        for labels in ("professor / nurse", "male / female")
    }
    labels = min(biased, key=lambda labels: biased[labels])
    is_tie = len(set(biased.values())) == 1
    return not is_tie and accuracies[labels] - biased[labels] < SMALLEST_GAP


def _pair(run_name: str) -> str:
    """ "a/b_scr_nurse_teacher_results" for people."""
    data_set, _, labels = run_name.removesuffix("_results").partition("_scr_")
    return f"{data_set} ({labels.replace('_', ' / ')})" if labels else data_set


def _rest(n: int, of: int, what: str) -> str:
    return f". The number is the mean over the other {n} of {of} {what}" if n else ""
