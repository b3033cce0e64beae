"""SAEs on their way to the Hub: opened, checked, and laid out as files that stock SAELens loads."""

import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
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
from safetensors.torch import load_file, save_file

from sae_lens_matryoshka.checkpoint import FOLDED_NORMALIZATIONS
from sae_lens_matryoshka.hub.folder import open_folder, widths_beside
from sae_lens_matryoshka.level_results import drop_outdated
from sae_lens_matryoshka.sae import (
    MatryoshkaSAE,
    copy_of,
    inference_form,
    named_widths,
    write_widths,
)

logger = logging.getLogger(__name__)

NEEDED_METADATA = ("model_name", "hook_name", "context_size", "sae_lens_version")
NEEDED_PACKAGE = "needs_package"
"""The key in the metadata of an SAE that stock SAELens cannot load."""
NORM_TOLERANCE = 1e-5  # SAEBench's own, which warns beyond it

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


def stage(saes: Mapping[str, Publishable], allow_plugin_only: bool) -> list[StagedSAE]:
    """
    Open SAEs and check that nothing stands against publishing them.

    Args:
        saes: By sae_id: SAEs, or folders of saved ones. They stay as they are.
        allow_plugin_only: Whether an SAE may need another package to be loaded.

    Raises:
        ValueError: An id or an SAE cannot be published; the message says what to do.
        FileNotFoundError: A folder holds no SAE.
    """
    if not saes:
        raise ValueError("There is nothing to publish: give at least one sae_id and SAE.")
    _check_ids(saes)
    staged = [_open(sae_id, given) for sae_id, given in saes.items()]
    for one in staged:
        _check(one, allow_plugin_only)
    return staged


def write(staged: StagedSAE, levels: bool, root: Path) -> Iterator[tuple[str, int]]:
    """
    Write an SAE's files below a folder, as they will lie in the repo.

    Args:
        staged: The SAE.
        levels: Whether to write each nested level as an SAE of its own as well.
        root: The folder that stands for the repo.

    Yields:
        The id and the width of everything written.

    Raises:
        ValueError: Its levels cannot stand alone.
    """
    yield _write(staged.sae_id, staged.sae, staged, root)
    if staged.runner_cfg is not None:
        shutil.copyfile(staged.runner_cfg, root / staged.sae_id / RUNNER_CFG_FILENAME)
    if levels:
        matryoshka = MatryoshkaSAE(staged.sae, _widths_for_levels(staged))
        for index, width in enumerate(matryoshka.widths):
            sae_id = f"{staged.sae_id}/{level_name(index, width)}"
            yield _write(sae_id, matryoshka.level(index), staged, root)


def level_name(index: int, width: int) -> str:
    """The folder of a level inside its SAE's."""
    return f"level_{index}_width_{width}"


def is_level_name(name: str) -> bool:
    """Whether a folder's name is one that `level_name` gives."""
    return re.fullmatch(r"level_\d+_width_\d+", name) is not None


def needed_package(sae: SAE[Any]) -> str | None:
    """The package that has to be imported before SAELens can load the SAE; None: stock SAELens can."""
    package = type(sae).__module__.split(".")[0]
    return None if package == "sae_lens" else package


def _write(sae_id: str, sae: SAE[Any], staged: StagedSAE, root: Path) -> tuple[str, int]:
    folder, width = root / sae_id, sae.cfg.d_sae
    sae.save_model(folder)
    if staged.sparsity is not None:
        save_file({"sparsity": staged.sparsity[:width].clone()}, folder / SPARSITY_FILENAME)
    return sae_id, width


def _widths_for_levels(staged: StagedSAE) -> tuple[int, ...]:
    if staged.widths is None:
        raise ValueError(
            f"{staged.sae_id!r}: levels=True, but its metadata names no matryoshka_widths. Publish "
            "MatryoshkaSAE.from_sae(sae, widths=[...]), or leave levels out."
        )
    if isinstance(staged.sae, TopKSAE):
        raise ValueError(
            f"{staged.sae_id!r}: the levels of a topk SAE do not stand alone, since a cut one would "
            "choose its k latents anew. Publish calibrate_threshold(sae, activations, target_l0, "
            "as_jumprelu=True) instead, or leave levels out."
        )
    return staged.widths


# ---- ids


def _check_ids(saes: Mapping[str, Publishable]) -> None:
    for sae_id in saes:
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", sae_id) or {".", ".."} & {*sae_id.split("/")}:
            raise ValueError(
                f"{sae_id!r} cannot be an sae_id: it is a folder in the repo, of letters, digits, "
                "'_', '-' and '.', with '/' between its parts."
            )
        if is_level_name(sae_id.split("/")[-1]):
            raise ValueError(
                f"{sae_id!r} cannot be an sae_id: levels=True gives such names. Choose another."
            )


# ---- opening


def _open(sae_id: str, given: Publishable) -> StagedSAE:
    if isinstance(given, str | Path):
        return _open_folder(sae_id, Path(given))
    if isinstance(given, MatryoshkaSAE):
        return _staged(sae_id, given.sae, given.widths)
    return _staged(sae_id, given, named_widths(given.cfg.metadata))


def _open_folder(sae_id: str, folder: Path) -> StagedSAE:
    sae = open_folder(folder)
    sparsity, runner_cfg = folder / SPARSITY_FILENAME, folder / RUNNER_CFG_FILENAME
    return _staged(
        sae_id,
        sae,
        named_widths(sae.cfg.metadata) or widths_beside(folder),
        load_file(sparsity)["sparsity"] if sparsity.is_file() else None,
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
    sae.cfg.device = "cpu"
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
    if package := needed_package(sae):
        sae.cfg.metadata[NEEDED_PACKAGE] = package
    return StagedSAE(sae_id, original, sae, widths, sparsity, runner_cfg)


# ---- checks


def _check(staged: StagedSAE, allow_plugin_only: bool) -> None:
    sae_id, sae = staged.sae_id, staged.sae
    broken = [key for key, tensor in sae.state_dict().items() if not tensor.isfinite().all()]
    if broken:
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
    _check_norms(sae_id, sae)
    missing = [key for key in NEEDED_METADATA if sae.cfg.metadata[key] is None]
    if missing:
        settings = "; ".join(f"sae.cfg.metadata.{key} = ..." for key in missing)
        raise ValueError(
            f"{sae_id!r} does not say its {', '.join(missing)}, so nobody would know what to feed it. "
            f"Set {settings}"
        )
    package = needed_package(sae)
    if package and not allow_plugin_only:
        raise ValueError(
            f"{sae_id!r} has the architecture {sae.cfg.architecture()!r} of {package}, which stock "
            "SAELens cannot load. Set allow_plugin_only=True to publish it all the same; its card will "
            "say so."
        )


def _check_norms(sae_id: str, sae: SAE[Any]) -> None:
    norms = sae.W_dec.flatten(1).float().norm(dim=-1)  # (d_sae,)
    tolerance = max(NORM_TOLERANCE, torch.finfo(sae.dtype).eps)
    is_folded = ((norms - 1).abs() <= tolerance) | (norms == 0)  # zero: a latent that does nothing
    if is_folded.all():
        return
    how = "Call sae.fold_W_dec_norm() first, which changes no output."
    if isinstance(sae, TopKSAE):
        how = (
            "Folding them would change which latents a topk SAE chooses: publish "
            "calibrate_threshold(sae, activations, target_l0, as_jumprelu=True) instead."
        )
    raise ValueError(
        f"{sae_id!r}: {int((~is_folded).sum())} of {len(norms)} decoder rows have a norm other than 1 "
        f"(from {norms.min():.3g} to {norms.max():.3g}), so that activations of different latents "
        f"could not be compared. {how}"
    )
