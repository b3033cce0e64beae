"""What was measured of an SAE's levels, kept in its metadata: it travels with cfg.json.

The SAE's fingerprint stands beside the numbers: they hold for those weights and thresholds only.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any, TypedDict

from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata
from typing_extensions import NotRequired

from sae_lens_matryoshka.levels.fingerprint import fingerprint

KEY = "level_results"
"""The key in the metadata: width, as JSON writes it, to label to measurement."""
MEASURED_ON = "level_results_fingerprint"
"""The key of the fingerprint of the SAE that they were measured on."""
NOTES = "level_results_notes"
"""The key of what a reader must know before comparing them: a list of sentences."""

L0_IS_CALIBRATED = "l0_is_calibrated"
"""The key that says whether the metadata's l0 was set by calibration instead of measured in training."""

L0 = "L0"
FVU = "FVU ↓"
DEAD = "dead latents"


class Measurement(TypedDict):
    """
    A number of one level.

    Args:
        mean: The number; with several seeds, their mean.
        std: Their sample standard deviation.
        seeds: How many.
    """

    mean: float
    std: NotRequired[float]
    seeds: NotRequired[int]


def measurement(values: Sequence[float]) -> Measurement:
    """Sum up the values of one or more seeds."""
    if len(values) == 1:
        return {"mean": float(values[0])}
    return {"mean": mean(values), "std": stdev(values), "seeds": len(values)}


def results_of(metadata: SAEMetadata | dict[str, Any], width: int) -> dict[str, Measurement]:
    """What is known of the level of that width, by label; empty if nothing."""
    known: dict[str, dict[str, Measurement]] = metadata.get(KEY) or {}
    return dict(known.get(str(width), {}))


def record(sae: SAE[Any], results: Mapping[int, Mapping[str, Measurement]]) -> None:
    """
    Keep measurements of an SAE's levels in its metadata; older ones of the same label are replaced.

    Args:
        sae: The SAE that was measured.
        results: By width and label. Numbers that are not finite are left out: JSON has none.
    """
    metadata, mark = sae.cfg.metadata, fingerprint(sae)
    if metadata.get(KEY) and metadata[MEASURED_ON] != mark:
        forget(metadata)
    known: dict[str, Any] = dict(metadata.get(KEY) or {})
    for width, measured in results.items():
        finite = {label: one for label, one in measured.items() if math.isfinite(one["mean"])}
        known[str(width)] = {**known.get(str(width), {}), **finite}
    metadata[KEY], metadata[MEASURED_ON] = known, mark


def drop_outdated(sae: SAE[Any]) -> bool:
    """
    Forget results that were measured on other weights or thresholds.

    Returns:
        Whether there were any.
    """
    metadata = sae.cfg.metadata
    if not metadata.get(KEY) or metadata[MEASURED_ON] == fingerprint(sae):
        return False
    forget(metadata)
    return True


def forget(metadata: SAEMetadata) -> None:
    """Take all results out of the metadata."""
    for key in (KEY, MEASURED_ON, NOTES):
        if key in metadata:
            metadata[key] = None


def hand_on(whole: SAE[Any], level: SAE[Any]) -> None:
    """Give an SAE that was cut from another what is known of it and of the levels inside it."""
    known: dict[str, Any] = whole.cfg.metadata.get(KEY) or {}
    inside = {int(width): m for width, m in known.items() if int(width) <= level.cfg.d_sae}
    if inside:
        record(level, inside)
        level.cfg.metadata[NOTES] = whole.cfg.metadata[NOTES]
