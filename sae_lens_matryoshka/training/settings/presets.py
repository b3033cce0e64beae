"""Whole configurations by name: the paper's, and the best that docs/results/synthetic.md supports."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Literal, get_args

from sae_lens import LanguageModelSAERunnerConfig as StockRunnerConfig

from sae_lens_matryoshka.saes.config import (
    ACTIVATION_OPTIONS,
    ARCHITECTURE,
    MatryoshkaTrainingSAEConfig,
)

Recipe = Literal["paper", "best"]

# Tokens without firing after which a latent counts as dead (dictionary_learning's), where the run is long.
DEAD_TOKENS = 10_000_000


def options(recipe: Recipe, given: Mapping[str, Any]) -> dict[str, Any]:
    """
    What a recipe adds to the options of a run with architecture "matryoshka".

    "paper": the main experiment of arXiv 2503.17547 (section 4.3, appendix A), as dictionary_learning trained
    it; its auxiliary loss, which that library scales otherwise, is SAELens's. "best": the recipe that
    docs/results/synthetic.md decides on; its lengths are shares of the run.

    Args:
        recipe: Its name.
        given: What the user gives, fields of the run and of the SAE alike; all of it is kept.

    Returns:
        The options that are not given.

    Raises:
        ValueError: All of them are given, so that the recipe has no effect.
    """
    added = {k: v for k, v in _whole(recipe, given).items() if k not in given}
    if not added:
        raise ValueError(
            f"recipe={recipe!r} has no effect: every option of it is given, as in the configuration of a run that "
            "is resumed. Leave it out."
        )
    return added


def overruled(recipe: Recipe, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the recipe that `given` has otherwise; the recipe's values."""
    return {k: v for k, v in _whole(recipe, given).items() if k in given and given[k] != v}


def split(added: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of the SAE among options, and those of the run."""
    of_sae = {field.name for field in fields(MatryoshkaTrainingSAEConfig)}
    return (
        {k: v for k, v in added.items() if k in of_sae},
        {k: v for k, v in added.items() if k not in of_sae},
    )


def check(recipe: Any, architecture: str) -> None:
    """
    Check that there is such a recipe, for such an SAE.

    Raises:
        ValueError: Says which there are.
    """
    if recipe not in get_args(Recipe):
        raise ValueError(f"recipe={recipe!r} must be one of {list(get_args(Recipe))}, or left out.")
    if architecture != ARCHITECTURE:
        raise ValueError(
            f"recipe={recipe!r} is for architecture {ARCHITECTURE!r}, not {architecture!r}. Leave one out."
        )


@contextmanager
def named_in_errors(recipe: Recipe | None, added: Mapping[str, Any]) -> Iterator[None]:
    """Within, a ValueError also says which of its options the recipe added, since nobody gave them."""
    try:
        yield
    except ValueError as error:
        named = [name for name in sorted(added) if re.search(rf"\b{name}\b", str(error))]
        if not named:
            raise
        raise ValueError(
            f"{error} (recipe={recipe!r} added {', '.join(named)}; what is given beside it replaces that.)"
        ) from error


def _whole(recipe: Recipe, given: Mapping[str, Any]) -> dict[str, Any]:
    tokens = int(_number(given, "training_tokens", StockRunnerConfig.training_tokens))
    default = 2048 if recipe == "paper" else StockRunnerConfig.train_batch_size_tokens
    batch = int(_number(given, "train_batch_size_tokens", default))
    if recipe == "paper":
        options = _paper(tokens // batch, batch)
    else:
        warm_up = int(_number(given, "lr_warm_up_steps", StockRunnerConfig.lr_warm_up_steps))
        k = _number(given, "k", ACTIVATION_OPTIONS["k"][1])
        options = _best(tokens // batch, batch, k, int(_number(given, "d_sae", 1)), warm_up)
    if given.get("lr_scheduler_name", "constant") != "constant":
        del options["lr_decay_steps"]  # SAELens would decay from where the schedule ends
    return options


def _number(given: Mapping[str, Any], name: str, default: float) -> float:
    """What is given, where a length can be made of it; what cannot, the configuration will refuse."""
    value = given.get(name)
    return value if isinstance(value, (int, float)) and value > 0 else default


def _paper(steps: int, batch: int) -> dict[str, Any]:
    return {
        "decoder_init_norm": 1.0,
        "b_dec_init": "geometric_median",
        "normalize_activations": "expected_average_only_in",
        "train_batch_size_tokens": 2048,
        "lr": 3e-4,
        "lr_warm_up_steps": 1000,
        "lr_decay_steps": steps // 5,
        "dead_feature_window": round(DEAD_TOKENS / batch),
    }


def _best(steps: int, batch: int, k: float, d_sae: int, warm_up: int) -> dict[str, Any]:
    # time enough for a latent that fires a hundred times less than the average one; a share of longer runs
    window = max(round(100 * d_sae / k / batch), steps // 600)
    window = min(window, DEAD_TOKENS // batch, steps // 4)  # short enough to come into effect
    end = max(1, steps * 4 // 5)  # the last fifth trains what is saved, a stock SAE
    return {
        "matryoshka_widths": sorted({max(1, d_sae >> halvings) for halvings in range(6)}),
        "detach_inner_levels": True,
        "latent_order": "frequency",
        "k_aux": max(1, round(k / 2)),  # many dead latents would all fit the same residual
        "resample_every": max(1, min(2500, steps // 100)),  # dead latents should not wait long
        "resample_until": end,
        "refinement_step": 0.3,  # as "LISTA-Matryoshka"
        "refine_until": end,
        "dead_feature_window": max(1, window),
        "lr_decay_steps": max(0, min(steps * 9 // 10, steps - warm_up)),
    }
