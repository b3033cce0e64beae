"""The metrics that are compared of each eval, with what a reader must know of them."""

from typing import Any

from sae_lens_matryoshka.bench.evals import counts
from sae_lens_matryoshka.bench.outcome import Metric

AUDIT = (
    "an audit (arXiv 2605.18229) found TPP and SCR unreliable at their standard settings: reseeding "
    "alone moves TPP by 23 % at the top 50 latents and 39 % at the top 10, it does not rank SAEs as "
    "ground truth does, and SCR ranks a perfect oracle below 11 of 35 SAEs"
)
FRACTION = (
    "lower is better (SAEBench's plots show 1 - x). The fraction about halved between sae-bench 0.3.2 "
    "and 0.6.0: compare within one version only"
)
FULL = "the older of the two absorption measures; lower is better"
SPLITTING = (
    "latents per first letter, counted while each more raises the F1 of the letter's k-sparse probe by "
    "more than f1_jump_threshold (.03 by default). 1 is no splitting, but a letter that no latent stands "
    "for counts 1 too: read it beside absorption"
)
CORE = (
    "SAEBench always draws core's text with seed 42, so it runs once. Its mse is divided by the number of "
    "tokens twice and its explained variance is wrong for large activations: read FVU instead"
)


def metrics_of(name: str, config: Any) -> list[Metric]:
    """The metrics of an eval that are compared; with many k or n the table shows three."""
    if name == "absorption":
        return [
            Metric(
                name, "mean_absorption_fraction_score", "absorption fraction", "lower", FRACTION
            ),
            Metric(name, "mean_full_absorption_score", "full absorption", "lower", FULL),
            Metric(name, "mean_num_split_features", "feature splitting", "lower", SPLITTING),
        ]
    if name == "core":
        return [Metric(name, "ce_loss_score", "cross-entropy recovered", "higher", CORE)]
    label, key, caveat = {
        "sparse_probing": ("sparse probing, k", "sae_top_{}_test_accuracy", ""),
        "tpp": ("TPP, n", "tpp_threshold_{}_total_metric", AUDIT),
        "scr": ("SCR, n", "scr_metric_threshold_{}", AUDIT),
        "sae_probes": ("sae-probes AUC, k", "sae_top_{}_test_auc", ""),
    }[name]
    values = counts(name, config)
    shown = values if len(values) <= 3 else [values[0], values[len(values) // 2], values[-1]]
    return [
        Metric(name, key.format(n), f"{label}={n}", "higher", caveat, in_table=n in shown)
        for n in values
    ]
