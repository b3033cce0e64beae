"""Open a published SAE: from a Hub repo at any revision, a SAELens release, or a local folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_lens import SAE
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

from sae_lens_matryoshka.loading.download import GIVE_FOLDER, download_sae
from sae_lens_matryoshka.loading.hub_access import fetching
from sae_lens_matryoshka.loading.saved_folder import open_folder, widths_beside


def load_published(
    repo_id: str,
    sae_id: str | None,
    revision: str | None = None,
    force_download: bool = False,
    device: str = "cpu",
    dtype: str = "float32",
) -> tuple[SAE[Any], Sequence[int] | None]:
    """
    Open a published SAE with stock SAELens.

    Args:
        repo_id: A Hub repo "user/name", a release name of SAELens, or a local folder.
        sae_id: The SAE's id in it. Only a local folder may do without.
        revision: Branch, tag or commit of a Hub repo; None is its main branch.
        force_download: Whether to download files again that are in the Hub's cache.
        device: Where to put the weights.
        dtype: Data type of the weights.

    Returns:
        The SAE, and the nested widths of the runner's configuration beside it, if there is one.

    Raises:
        FileNotFoundError: There is no such SAE.
        ValueError: `revision` or `force_download` has no effect here, or `sae_id` is missing.
    """
    if Path(repo_id).is_dir():
        _refuse("a local folder", revision=revision, force_download=force_download)
        folder = Path(repo_id, sae_id) if sae_id else Path(repo_id)
        return _load_folder(folder, device, dtype)
    if not sae_id:
        raise ValueError(f"Which SAE of {repo_id}? Give its sae_id.")
    if repo_id in get_pretrained_saes_directory():
        _refuse("a release of SAELens, whose versions SAELens chooses", revision=revision)
        with fetching(f"The SAE {sae_id!r} of {repo_id}", GIVE_FOLDER):
            sae = SAE.from_pretrained(
                repo_id, sae_id, device=device, dtype=dtype, force_download=force_download
            )
        return sae, None
    if "/" not in repo_id:
        raise ValueError(
            f"{repo_id!r} is no folder, no release of SAELens and no Hub repo: those are called "
            "'user/name'."
        )
    sae_id = sae_id.strip("/")
    return _load_folder(download_sae(repo_id, sae_id, revision, force_download), device, dtype)


def _load_folder(folder: Path, device: str, dtype: str) -> tuple[SAE[Any], Sequence[int] | None]:
    return open_folder(folder, dtype, device), widths_beside(folder)


def _refuse(what: str, **options: Any) -> None:
    for name, value in options.items():
        if value:
            raise ValueError(f"{name}={value!r} has no effect on {what}. Leave it out.")
