"""Turn Matryoshka SAEs of other libraries, and SAELens's own checkpoints, into stock SAELens SAEs."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    ACTIVATION_WHITENING_FILENAME,
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
)
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
from sae_lens.saes.sae import SAEMetadata
from safetensors import SafetensorError
from safetensors.torch import save_file

from sae_lens_matryoshka.atomic_files import whole_files
from sae_lens_matryoshka.convert.other_libraries import (
    CONFIG_FILENAME,
    DICTIONARY_LEARNING_WEIGHTS,
    MATRYOSHKA_SAE_WEIGHTS,
    read_dictionary_learning,
    read_json,
    read_matryoshka_sae,
)
from sae_lens_matryoshka.levels.matryoshka_sae import MatryoshkaSAE
from sae_lens_matryoshka.loading.download import GIVE_FOLDER
from sae_lens_matryoshka.loading.hub_access import NotFetchedError, check_revision, fetching
from sae_lens_matryoshka.loading.sae_folder import STATE_FILENAME
from sae_lens_matryoshka.loading.saved_folder import (
    open_folder,
    sparsity_beside,
    widths_beside,
)
from sae_lens_matryoshka.saes.inference_sae import (
    FOLDED_NORMALIZATIONS,
    has_unit_norms,
    named_widths,
    not_finite,
)
from sae_lens_matryoshka.settings.writable import check_output

# The file that tells whose checkpoint it is, and the one that lies beside it.
_FORMATS = {
    DICTIONARY_LEARNING_WEIGHTS: CONFIG_FILENAME,
    MATRYOSHKA_SAE_WEIGHTS: CONFIG_FILENAME,
    SAE_CFG_FILENAME: SAE_WEIGHTS_FILENAME,
}
_BESIDE = (SPARSITY_FILENAME, RUNNER_CFG_FILENAME, STATE_FILENAME)
_STATISTICS = (ACTIVATION_SCALER_CFG_FILENAME, ACTIVATION_WHITENING_FILENAME)
_WITH_LEVELS = ("jumprelu", "standard", "topk")  # what MatryoshkaSAE can cut, stock SAELens load


def convert(
    path_or_repo: str | Path,
    out: str | Path,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    widths: Sequence[int] | None = None,
    hook_name: str | None = None,
    model_name: str | None = None,
    context_size: int | None = None,
    dataset_path: str | None = None,
) -> MatryoshkaSAE:
    """
    Save a Matryoshka SAE of any of these kinds as a stock SAELens SAE in float32:

    - `dictionary_learning`: ae.pt and config.json of a MatryoshkaBatchTopKSAE
    - the paper authors' `matryoshka_sae`: sae.pt and config.json
    - SAELens: the folder of a saved SAE, or a training checkpoint of its `matryoshka_batchtopk` or of
      this package; activation statistics that lie beside a checkpoint are folded into the weights

    Every level computes what the source's does. Decoder rows get norm 1, groups become nested widths,
    and whatever the source says of its training stays in the metadata; nothing is assumed.

    Args:
        path_or_repo: A folder, or a Hub repo "user/name". An existing folder goes first.
        out: Folder to save to, new or empty.
        subfolder: Folder of the checkpoint inside path_or_repo.
        revision: Branch, tag or commit of a Hub repo. None: its main branch.
        widths: Nested widths, for an SAELens folder that names none.
        hook_name: TransformerLens hook, where the source names none or another name is wanted.
        model_name: The model, where the source names none or another name is wanted.
        context_size: Tokens per text in training, where the source does not say.
        dataset_path: Data set of the training, where the source does not say.

    Returns:
        The SAE as it opens from `out`.

    Raises:
        FileExistsError: There is something in `out`.
        FileNotFoundError: No such folder or repo, or no checkpoint in it.
        ValueError: The checkpoint cannot be converted, or an argument contradicts it or has no effect.
    """
    out = Path(out)
    check_request(path_or_repo, out, subfolder, revision, widths)
    folder = _checkpoint_folder(path_or_repo, subfolder, revision)
    name = _name(path_or_repo, subfolder)
    matryoshka = _read(folder, name, widths, hook_name)
    sae = matryoshka.sae.to(dtype=torch.float32)
    _rename(sae.cfg.metadata, hook_name=hook_name, model_name=model_name)
    _fill_in(sae.cfg.metadata, name, context_size=context_size, dataset_path=dataset_path)
    _require_finite(sae, name)
    _fold_decoder_norms(sae, name)
    _require_empty(out)  # it may have taken minutes
    with whole_files(out, announced_by=SAE_CFG_FILENAME) as staging:
        matryoshka.save(staging)
        if (folder / RUNNER_CFG_FILENAME).is_file():
            shutil.copyfile(folder / RUNNER_CFG_FILENAME, staging / RUNNER_CFG_FILENAME)
        sparsity = sparsity_beside(folder)
        if sparsity is not None:
            save_file({"sparsity": sparsity}, staging / SPARSITY_FILENAME)
    return MatryoshkaSAE.load_from_disk(out)


# ---- where the checkpoint is


def check_request(
    path_or_repo: str | Path,
    out: str | Path,
    subfolder: str | None = None,
    revision: str | None = None,
    widths: Sequence[int] | None = None,
) -> None:
    """
    Check what can be checked before anything is opened or fetched.

    Args:
        path_or_repo: As `convert` takes it, and all that follows.
        out: Folder to save to.
        subfolder: Folder of the checkpoint inside path_or_repo.
        revision: Branch, tag or commit of a Hub repo.
        widths: Nested widths.

    Raises:
        FileExistsError: There is something in `out`.
        FileNotFoundError: No such folder, or no checkpoint in it.
        ValueError: An argument cannot be used or has no effect.
    """
    _require_empty(Path(out))
    check_output("out", Path(out))
    if revision is not None:
        check_revision(revision)
    if (folder := _local_folder(path_or_repo, subfolder, revision)) is not None:
        _kind(folder, _name(path_or_repo, subfolder), widths)


def _name(path_or_repo: str | Path, subfolder: str | None) -> str:
    return f"{path_or_repo}/{subfolder}" if subfolder else str(path_or_repo)


def _require_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"out={str(out)!r} is not empty. Give a new folder, or remove it.")


def _checkpoint_folder(
    path_or_repo: str | Path, subfolder: str | None, revision: str | None
) -> Path:
    folder = _local_folder(path_or_repo, subfolder, revision)
    return folder or _download(str(path_or_repo), (subfolder or "").strip("/"), revision)


def _local_folder(
    path_or_repo: str | Path, subfolder: str | None, revision: str | None
) -> Path | None:
    """The folder of the checkpoint if it is on this machine; None for a Hub repo."""
    path = Path(path_or_repo)
    if path.is_file():
        raise ValueError(f"{path} is a file. Give the folder that it is in: {path.parent}.")
    if path.is_dir():
        if revision is not None:
            raise ValueError(
                f"revision={revision!r} has no effect on the folder {path}. Leave it out, or give a "
                "Hub repo."
            )
        return path / (subfolder or "").strip("/")
    if isinstance(path_or_repo, Path) or not re.fullmatch(r"[\w.-]+/[\w.-]+", path_or_repo):
        raise FileNotFoundError(
            f"{path_or_repo} is no folder, nor a Hub repo, which is called 'user/name'."
        )
    return None


def _download(repo_id: str, inside: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    files = {*_FORMATS, *_FORMATS.values(), *_STATISTICS, *_BESIDE}
    patterns = sorted(f"{inside}/{name}" if inside else name for name in files)
    at = f" at revision {revision}" if revision else ""
    try:
        with fetching(f"{repo_id}{at}, which is no folder here,", GIVE_FOLDER):
            snapshot = snapshot_download(repo_id, revision=revision, allow_patterns=patterns)
    except NotFetchedError:
        raise
    except OSError as error:
        raise FileNotFoundError(
            f"{repo_id} is no folder here, and the Hub gave no such repo{at}: {error}"
        ) from error
    return Path(snapshot) / inside


# ---- what is in it


def _read(
    folder: Path, name: str, widths: Sequence[int] | None, hook_name: str | None
) -> MatryoshkaSAE:
    kind = _kind(folder, name, widths)
    if kind == SAE_CFG_FILENAME:
        return _read_sae_lens(folder, name, widths)
    if kind == DICTIONARY_LEARNING_WEIGHTS:
        return read_dictionary_learning(folder, hook_name)
    return read_matryoshka_sae(folder)


def _kind(folder: Path, name: str, widths: Sequence[int] | None) -> str:
    """The file that tells whose checkpoint a folder holds."""
    kinds = [file for file in _FORMATS if (folder / file).is_file()]
    if not kinds:
        looked_for = ", ".join(f"{a} with {b}" for a, b in _FORMATS.items())
        raise FileNotFoundError(
            f"{name} holds no checkpoint: none of {looked_for} is there. Give the folder that these "
            "files are in; inside a repo, as subfolder='...'."
        )
    if len(kinds) > 1:
        raise ValueError(
            f"{name} holds the checkpoints of several libraries: {', '.join(kinds)}. Put the one that "
            "is meant into a folder of its own."
        )
    kind = kinds[0]
    if not (folder / _FORMATS[kind]).is_file():
        raise FileNotFoundError(f"{name} holds {kind} but no {_FORMATS[kind]}. Copy it there too.")
    if kind != SAE_CFG_FILENAME and widths is not None:
        raise ValueError(
            f"widths={list(widths)} has no effect: {name} says its group sizes. Leave it out."
        )
    return kind


def _read_sae_lens(folder: Path, name: str, widths: Sequence[int] | None) -> MatryoshkaSAE:
    cfg = read_json(folder / SAE_CFG_FILENAME)
    sae = _open_sae_lens(folder, name, cfg)
    if sae.cfg.architecture() not in _WITH_LEVELS:
        raise ValueError(
            f"{name} is a {sae.cfg.architecture()} SAE; levels can be cut of {', '.join(_WITH_LEVELS)}, if "
            "they are to be stock SAEs of SAELens."
        )
    mode = sae.cfg.normalize_activations
    if mode in FOLDED_NORMALIZATIONS:
        raise ValueError(
            f"{name} has normalize_activations={mode!r}, but its statistics are neither in its weights "
            f"nor in {ACTIVATION_SCALER_CFG_FILENAME} beside them, so that nobody knows how to scale "
            "activations. Give a whole checkpoint, or what training saved at its end."
        )
    named = named_widths(sae.cfg.metadata) or cfg.get("matryoshka_widths") or widths_beside(folder)
    if named and widths is not None:
        raise ValueError(
            f"widths={list(widths)} has no effect: {name} names its levels, {list(named)}. Leave it out."
        )
    return MatryoshkaSAE.from_sae(sae, named or widths)


def _open_sae_lens(folder: Path, name: str, cfg: dict[str, Any]) -> SAE[Any]:
    architecture = cfg.get("architecture")
    known = {*SAE_CLASS_REGISTRY, *SAE_TRAINING_CLASS_REGISTRY}
    if architecture is not None and architecture not in known:
        raise ValueError(
            f"{name} has architecture={architecture!r}, which neither SAELens nor an imported plugin "
            f"knows; known are {', '.join(sorted(known))}."
        )
    try:
        return open_folder(folder, dtype="float32")
    except (RuntimeError, TypeError, SafetensorError) as error:  # of torch, of SAELens's configs
        raise ValueError(
            f"{name}: {SAE_WEIGHTS_FILENAME} is damaged or does not fit {SAE_CFG_FILENAME}: {error}. "
            "Bring the two files of one SAE together."
        ) from error


# ---- what is made of it


def _rename(metadata: SAEMetadata, **names: str | None) -> None:
    for key, given in names.items():
        if given is not None:
            metadata[key] = given


def _fill_in(metadata: SAEMetadata, name: str, **facts: str | int | None) -> None:
    for key, given in facts.items():
        said = metadata[key]
        if given is None:
            continue
        if said and said != given:
            raise ValueError(
                f"{key}={given!r} contradicts {name}, which was trained with {said!r}. Leave it out."
            )
        metadata[key] = given


def _require_finite(sae: SAE[Any], name: str) -> None:
    if broken := not_finite(sae):
        raise ValueError(
            f"{name} holds numbers that are not finite in {', '.join(broken)}: its training diverged. "
            "Give an earlier checkpoint."
        )


@torch.no_grad()
def _fold_decoder_norms(sae: SAE[Any], name: str) -> None:
    try:
        sae.fold_W_dec_norm()
    except NotImplementedError as error:
        if has_unit_norms(sae):
            return
        norms = sae.W_dec.norm(dim=-1)
        raise ValueError(
            f"{name} has decoder norms from {norms.min():.3g} to {norms.max():.3g}. Folding them would "
            "change which latents a topk SAE chooses. Give it a threshold, which takes the place of "
            "convert: calibrate_threshold(sae, activations, target_l0, as_jumprelu=True)."
        ) from error
    # SAELens folds no norm below 1e-8: what is left of such a row adds nothing
    sae.W_dec.data[sae.W_dec.norm(dim=-1) < 0.5] = 0.0
