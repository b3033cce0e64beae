"""Where a truncated SAE comes from, kept in its metadata: it travels with cfg.json."""

from collections.abc import Sequence
from typing import Any, TypedDict, cast

from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata

from sae_lens_matryoshka.levels import measurements as level_results
from sae_lens_matryoshka.levels.fingerprint import fingerprint

KEY = "matryoshka_level"
"""The key in the metadata."""

# Options of training that count the latents of the whole dictionary, or list its levels.
_OF_THE_PARENT = ("k", "k_start", "k_anneal_steps", "target_l0", "level_weights")


class LevelOrigin(TypedDict):
    """
    Where a truncated SAE comes from.

    Args:
        level: Index of the level in the parent, 0 the innermost. None: a width between levels.
        width: Number of latents that were kept.
        parent_widths: Nested widths of the SAE that was truncated, its d_sae last.
        parent_fingerprint: `fingerprint` of that SAE.
        parent_training: Options of training that hold for the parent's whole dictionary only, such as
            its k; the level has a smaller L0.
    """

    level: int | None
    width: int
    parent_widths: list[int]
    parent_fingerprint: str
    parent_training: dict[str, Any]


def origin_of(metadata: SAEMetadata | dict[str, Any]) -> LevelOrigin | None:
    """Return where a truncated SAE comes from; None for an SAE that was not truncated."""
    return cast(LevelOrigin | None, metadata.get(KEY))


def record_origin(level: SAE[Any], parent: SAE[Any], parent_widths: Sequence[int]) -> None:
    """
    Record in a truncated SAE's metadata where it comes from, and remove what describes the parent.

    What was measured of this level of the parent is kept.

    Args:
        level: The truncated SAE, with a copy of the parent's metadata.
        parent: The SAE that was truncated.
        parent_widths: Its nested widths.
    """
    metadata, width = level.cfg.metadata, level.cfg.d_sae
    is_cut = width < parent.cfg.d_sae
    if not is_cut and origin_of(metadata) is not None:
        return  # a copy of a level is that level
    parent_fingerprint = fingerprint(parent)
    details = dict(metadata.training_architecture_details or {})
    of_the_parent = {name: details[name] for name in _OF_THE_PARENT if name in details}
    metadata[KEY] = LevelOrigin(
        level=parent_widths.index(width) if width in parent_widths else None,
        width=width,
        parent_widths=list(parent_widths),
        parent_fingerprint=parent_fingerprint,
        parent_training=of_the_parent,
    )
    if not is_cut:
        return
    kept = {name: value for name, value in details.items() if name not in of_the_parent}
    metadata.training_architecture_details = kept
    metadata.num_dead_features = metadata[level_results.L0_IS_CALIBRATED] = None
    level_results.forget(metadata)
    if parent.cfg.metadata[level_results.MEASURED_ON] == parent_fingerprint:
        level_results.hand_on(parent, level)
    measured = level_results.results_of(metadata, width).get(level_results.L0)
    metadata.l0 = None if measured is None else measured["mean"]
