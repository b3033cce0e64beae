"""SAEs on their way to the Hub: opened, checked, and laid out as files that stock SAELens loads."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.constants import (
    RUNNER_CFG_FILENAME,
    SPARSITY_FILENAME,
)
from sae_lens.saes.sae import TrainingSAE
from sae_lens.saes.topk_sae import TopKSAE
from safetensors.torch import save_file

from sae_lens_matryoshka.hub.sae_ids import level_id
from sae_lens_matryoshka.levels.matryoshka_sae import MatryoshkaSAE
from sae_lens_matryoshka.levels.measurements import drop_outdated
from sae_lens_matryoshka.levels.origin import KEY, origin_of
from sae_lens_matryoshka.loading.saved_folder import (
    open_folder,
    sparsity_beside,
    widths_beside,
)
from sae_lens_matryoshka.saes.inference_sae import (
    FOLDED_NORMALIZATIONS,
    UNIT_TOLERANCE,
    copy_of,
    has_unit_norms,
    inference_form,
    named_widths,
    not_finite,
    write_widths,
)

logger = logging.getLogger(__name__)

NEEDED_METADATA = ("model_name", "hook_name", "context_size", "sae_lens_version")
NEEDED_PACKAGE = "needs_package"
"""The key in the metadata of an SAE that stock SAELens cannot load."""
PARENT = "parent_sae_id"
"""What a published level's origin names beside `level_origin.LevelOrigin`."""

Publishable = SAE[Any] | MatryoshkaSAE | str | Path


@dataclass(frozen=True)
class StagedSAE:
    """
    An SAE that may be published.

    Args:
        sae_id: Its folder in the repo.
        original: Its inference form as it was given; never changed.
        sae: A copy of that, on the CPU, its levels named in the metadata.
        widths: Nested widths; None for a flat SAE.
        sparsity: log10 of how often each latent fired in training, (d_sae,), if known.
        runner_cfg: The file with its training configuration, if there is one.
    """

    sae_id: str
    original: SAE[Any]
    sae: SAE[Any]
    widths: tuple[int, ...] | None
    sparsity: torch.Tensor | None
    runner_cfg: Path | None


def stage(
    sae_id: str, given: Publishable, levels: bool = False, allow_plugin_only: bool = False
) -> StagedSAE:
    """
    Open an SAE and check that nothing stands against publishing it.

    Args:
        sae_id: Its id.
        given: The SAE, or the folder of a saved one. It stays as it is.
        levels: Whether its levels are to be published as well.
        allow_plugin_only: Whether it may need another package to be loaded.

    Raises:
        ValueError: It cannot be published; the message says what to do.
        FileNotFoundError: The folder holds no SAE.
    """
    staged = _open(sae_id, given)
    _check_weights(sae_id, staged.sae)
    _check_metadata(sae_id, staged.sae)
    _check_package(sae_id, staged.sae, allow_plugin_only)
    if levels:
        _check_levels(sae_id, staged)
    return staged


def write(staged: StagedSAE, levels: bool, root: Path) -> None:
    """
    Write an SAE's files below a folder, as they will lie in the repo.

    Args:
        staged: The SAE.
        levels: Whether to write each inner level as an SAE of its own as well. The outermost level is
            the SAE itself.
        root: The folder that stands for the repo.
    """
    _write(root / staged.sae_id, staged.sae, staged.sparsity)
    if staged.runner_cfg is not None:
        shutil.copyfile(staged.runner_cfg, root / staged.sae_id / RUNNER_CFG_FILENAME)
    if levels and staged.widths is not None:
        matryoshka = MatryoshkaSAE(staged.sae, staged.widths)
        for index, width in enumerate(matryoshka.widths[:-1]):
            level = matryoshka.level(index)
            level.cfg.metadata[KEY] = {
                **(origin_of(level.cfg.metadata) or {}),
                PARENT: staged.sae_id,
            }
            _write(root / level_id(staged.sae_id, index, width), level, staged.sparsity)


def parent_of(cfg: dict[str, Any]) -> str | None:
    """The sae_id of the SAE that a published level was cut from, by its cfg.json; None: it is no level."""
    origin = (cfg.get("metadata") or {}).get(KEY)
    return origin.get(PARENT) if isinstance(origin, dict) else None


def needed_package(sae: SAE[Any]) -> str | None:
    """The package that has to be imported before SAELens can load the SAE; None: stock SAELens can."""
    package = type(sae).__module__.split(".")[0]
    return None if package == "sae_lens" else package


def _write(folder: Path, sae: SAE[Any], sparsity: torch.Tensor | None) -> None:
    sae.save_model(folder)
    if sparsity is not None:
        save_file({"sparsity": sparsity[: sae.cfg.d_sae].clone()}, folder / SPARSITY_FILENAME)


# ---- opening


def _open(sae_id: str, given: Publishable) -> StagedSAE:
    if isinstance(given, str | Path):
        return _open_folder(sae_id, Path(given))
    if isinstance(given, MatryoshkaSAE):
        return _staged(sae_id, given.sae, given.widths)
    return _staged(sae_id, given, named_widths(given.cfg.metadata))


def _open_folder(sae_id: str, folder: Path) -> StagedSAE:
    sae = open_folder(folder)
    runner_cfg = folder / RUNNER_CFG_FILENAME
    return _staged(
        sae_id,
        sae,
        named_widths(sae.cfg.metadata) or widths_beside(folder),
        sparsity_beside(folder),
        runner_cfg if runner_cfg.is_file() else None,
    )


def _staged(
    sae_id: str,
    given: SAE[Any],
    widths: Sequence[int] | None,
    sparsity: torch.Tensor | None = None,
    runner_cfg: Path | None = None,
) -> StagedSAE:
    original = inference_form(given) if isinstance(given, TrainingSAE) else given
    sae = copy_of(original).to("cpu")
    if drop_outdated(sae):
        logger.warning(
            "%r carries results that were measured on other weights or thresholds. They are left out.",
            sae_id,
        )
    if sparsity is not None and len(sparsity) != sae.cfg.d_sae:
        raise ValueError(
            f"{sae_id!r} has {sae.cfg.d_sae} latents, but the {SPARSITY_FILENAME} beside it has "
            f"{len(sparsity)}: it is another SAE's. Remove it."
        )
    if widths is not None:
        widths = MatryoshkaSAE(sae, widths).widths
        write_widths(sae.cfg.metadata, widths)
    if needed_package(sae) or sae.cfg.metadata[NEEDED_PACKAGE]:
        sae.cfg.metadata[NEEDED_PACKAGE] = needed_package(sae)
    return StagedSAE(sae_id, original, sae, widths, sparsity, runner_cfg)


# ---- checks


def _check_weights(sae_id: str, sae: SAE[Any]) -> None:
    if broken := not_finite(sae):
        raise ValueError(
            f"{sae_id!r} holds numbers that are not finite in {', '.join(broken)}, so nobody could "
            "use it. Publish an earlier checkpoint."
        )
    if sae.cfg.normalize_activations in FOLDED_NORMALIZATIONS:
        raise ValueError(
            f"{sae_id!r} expects activations scaled by statistics that are not in its weights "
            f"(normalize_activations={sae.cfg.normalize_activations!r}). Publish what the runner saved "
            "at its end, or the folder of a checkpoint, where they lie beside it."
        )
    if has_unit_norms(sae, max(UNIT_TOLERANCE, torch.finfo(sae.dtype).eps)):
        return
    norms = sae.W_dec.flatten(1).float().norm(dim=-1)  # (d_sae,)
    how = "Call sae.fold_W_dec_norm() first, which changes no output."
    if isinstance(sae, TopKSAE) and not sae.cfg.rescale_acts_by_decoder_norm:
        how = (
            "Folding them would change which latents a topk SAE chooses: publish "
            "calibrate_threshold(sae, activations, target_l0, as_jumprelu=True) instead."
        )
    raise ValueError(
        f"{sae_id!r} has decoder rows of other norms than 1 (from {norms.min():.3g} to "
        f"{norms.max():.3g}), so that activations of different latents could not be compared. {how}"
    )


def _check_metadata(sae_id: str, sae: SAE[Any]) -> None:
    missing = [key for key in NEEDED_METADATA if sae.cfg.metadata[key] is None]
    if missing:
        settings = "; ".join(f"sae.cfg.metadata.{key} = ..." for key in missing)
        raise ValueError(
            f"{sae_id!r} does not say its {', '.join(missing)}, so nobody would know what to feed it. "
            f"Set {settings}"
        )


def _check_package(sae_id: str, sae: SAE[Any], allow_plugin_only: bool) -> None:
    package = needed_package(sae)
    if package == "__main__":
        raise ValueError(
            f"{sae_id!r} is of the class {type(sae).__name__} in a script, which nobody else can "
            "import. Put the class into a package."
        )
    if package and not allow_plugin_only:
        raise ValueError(
            f"{sae_id!r} has the architecture {sae.cfg.architecture()!r} of {package}, which stock "
            "SAELens cannot load. Set allow_plugin_only=True to publish it all the same; its card will "
            "say so."
        )


def _check_levels(sae_id: str, staged: StagedSAE) -> None:
    if staged.widths is None:
        raise ValueError(
            f"{sae_id!r}: levels=True, but its metadata names no matryoshka_widths. Publish "
            "MatryoshkaSAE.from_sae(sae, widths=[...]), or leave levels out."
        )
    if len(staged.widths) == 1:
        raise ValueError(
            f"{sae_id!r}: levels=True, but its metadata names only its own width, {staged.widths[0]}: it is "
            "flat. Leave levels out."
        )
    if isinstance(staged.sae, TopKSAE):
        raise ValueError(
            f"{sae_id!r}: the levels of a topk SAE do not stand alone, since a cut one would choose its "
            "k latents anew. Publish calibrate_threshold(sae, activations, target_l0, "
            "as_jumprelu=True) instead, or leave levels out."
        )
