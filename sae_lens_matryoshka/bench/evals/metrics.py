"""The metrics that are compared of each eval, with what a reader must know of them."""

from typing import Any, NamedTuple

from sae_lens_matryoshka.bench.evals.catalogue import counts
from sae_lens_matryoshka.bench.outcome import FIDELITY, Metric

TITLES = {
    FIDELITY: "Reconstruction and sparsity",
    "absorption": "First-letter absorption",
    "sparse_probing": "Sparse probing",
    "tpp": "Targeted probe perturbation (TPP)",
    "scr": "Spurious correlation removal (SCR)",
    "sae_probes": "Sparse probing with sae-probes",
    "core": "Cross-entropy of the language model",
}
MEASURES = {
    "sparse_probing": "test accuracy with k latents",
    "tpp": "score with n latents ablated",
    "scr": "score with n latents ablated",
    "sae_probes": "test AUC with k latents",
}
"""What the numbers are where the metrics' short headings do not say it."""

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

AUDIT_NOTE = (
    "TPP and SCR are unreliable at their standard settings: another seed alone moves TPP by 23 to 39 % "
    "(arXiv 2605.18229)."
)
FRACTION_NOTE = "Absorption fractions about halved between sae-bench 0.3.2 and 0.6.0: compare within one version."
SPLITTING_NOTE = (
    "A letter that no latent stands for counts 1 in feature splitting: read it beside absorption."
)
CORE_NOTE = "SAEBench draws the text of core with one fixed seed, so it has no spread."


def title_of(name: str) -> str:
    """The name of an eval in words."""
    return TITLES.get(name, name.replace("_", " "))


class _Family(NamedTuple):
    """An eval's metrics that differ in the number of latents, k or n, only."""

    label: str
    letter: str
    key: str
    axis: str
    caveat: str = ""
    note: str = ""


_FAMILIES = {
    "sparse_probing": _Family(
        "sparse probing", "k", "sae_top_{}_test_accuracy", "test accuracy of probes on {}"
    ),
    "tpp": _Family(
        "TPP", "n", "tpp_threshold_{}_total_metric", "TPP score, {} ablated", AUDIT, AUDIT_NOTE
    ),
    "scr": _Family(
        "SCR", "n", "scr_metric_threshold_{}", "SCR score, {} ablated", AUDIT, AUDIT_NOTE
    ),
    "sae_probes": _Family("sae-probes AUC", "k", "sae_top_{}_test_auc", "test AUC of probes on {}"),
}


def metrics_of(name: str, config: Any) -> list[Metric]:
    """The metrics of an eval that are compared; with many k or n the table shows three."""
    if name == "absorption":
        return [
            Metric(
                name,
                "mean_absorption_fraction_score",
                "absorption fraction",
                "lower",
                FRACTION,
                axis="absorption fraction, mean over letters",
                note=FRACTION_NOTE,
            ),
            Metric(
                name,
                "mean_full_absorption_score",
                "full absorption",
                "lower",
                FULL,
                axis="full absorption rate, mean over letters",
            ),
            Metric(
                name,
                "mean_num_split_features",
                "feature splitting",
                "lower",
                SPLITTING,
                axis="feature splitting, latents per letter",
                note=SPLITTING_NOTE,
            ),
        ]
    if name == "core":
        return [
            Metric(
                name,
                "ce_loss_score",
                "cross-entropy recovered",
                "higher",
                CORE,
                axis="fraction of the cross-entropy recovered",
                note=CORE_NOTE,
            )
        ]
    family = _FAMILIES[name]
    values = counts(name, config)
    shown = values if len(values) <= 3 else [values[0], values[len(values) // 2], values[-1]]
    return [
        Metric(
            name,
            family.key.format(n),
            f"{family.label}, {family.letter}={n}",
            "higher",
            family.caveat,
            in_table=n in shown,
            short=f"{family.letter}={n}",
            axis=family.axis.format("1 latent" if n == 1 else f"{n} latents"),
            note=family.note,
        )
        for n in values
    ]
