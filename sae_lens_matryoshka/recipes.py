"""Whole configurations by name: the paper's, and the best that docs/results/synthetic.md supports."""

from collections.abc import Mapping
from typing import Any, Literal

from sae_lens import LanguageModelSAERunnerConfig as StockRunnerConfig

from sae_lens_matryoshka.config import ACTIVATION_OPTIONS

Recipe = Literal["paper", "best"]

# Latents that have not fired for so many steps are resampled.
RESAMPLED_AFTER = 100


def options(recipe: Recipe, given: Mapping[str, Any]) -> dict[str, Any]:
    """
    What a recipe adds to the options of a run with architecture "matryoshka".

    "paper": the main experiment of arXiv 2503.17547 (section 4.3, appendix A), as dictionary_learning trained it;
    its auxiliary loss, which that library scales otherwise, is SAELens's. "best": the recipe that
    docs/results/synthetic.md decides on; its lengths are shares of the run.

    Args:
        recipe: Its name.
        given: What the user gives, fields of the run and of the SAE alike; all of it is kept.

    Returns:
        The options that are not given.
    """
    if recipe == "paper":
        full = _paper(
            _number(given, "training_tokens") // given.get("train_batch_size_tokens", 2048)
        )
    else:
        steps = _number(given, "training_tokens") // _number(given, "train_batch_size_tokens")
        k = given.get("k") or ACTIVATION_OPTIONS["k"][1]
        full = _best(steps, k, given.get("d_sae", 0))  # without it the configuration will say so
    return {name: value for name, value in full.items() if name not in given}


def _number(given: Mapping[str, Any], name: str) -> int:
    return given.get(name, getattr(StockRunnerConfig, name))


def _paper(steps: int) -> dict[str, Any]:
    return {
        "decoder_init_norm": 1.0,
        "b_dec_init": "geometric_median",
        "normalize_activations": "expected_average_only_in",
        "train_batch_size_tokens": 2048,
        "lr": 3e-4,
        "lr_warm_up_steps": 1000,
        "lr_decay_steps": steps // 5,
        "dead_feature_window": round(10_000_000 / 2048),
    }


def _best(steps: int, k: float, d_sae: int) -> dict[str, Any]:
    return {
        "matryoshka_widths": sorted({max(1, d_sae >> halvings) for halvings in range(6)}),
        "detach_inner_levels": True,
        "latent_order": "frequency",
        "k_start": min(4 * k, d_sae),
        "k_anneal_steps": max(1, steps // 2),
        "resample_every": max(1, min(2500, steps // 12)),
        "resample_until": max(1, steps * 4 // 5),
        "dead_feature_window": RESAMPLED_AFTER,
        "lr_decay_steps": steps // 3,
    }
