"""Bring an SAE's folder from the Hub onto this machine."""

from pathlib import Path

from sae_lens_matryoshka.loading.hub_access import fetching

FILES = ("cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "runner_cfg.json")

GIVE_FOLDER = "Give a local folder instead."


def download_sae(
    repo_id: str, sae_id: str, revision: str | None = None, force_download: bool = False
) -> Path:
    """
    Download one SAE in SAELens's format.

    Args:
        repo_id: The Hub's repo, "user/name".
        sae_id: The SAE's folder in it; may hold slashes.
        revision: Branch, tag or commit; None is the repo's main branch. SAELens's own loader has none.
        force_download: Whether to download again what is in the Hub's cache.

    Returns:
        The folder in the Hub's cache, for `SAE.load_from_disk`.

    Raises:
        FileNotFoundError: The repo holds no SAE of that id.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    at = f" at revision {revision}" if revision else ""
    try:
        with fetching(f"The SAE {sae_id!r} of {repo_id}{at}", GIVE_FOLDER):
            folder = snapshot_download(
                repo_id,
                revision=revision,
                force_download=force_download,
                allow_patterns=[f"{sae_id}/{name}" for name in FILES],
            )
    except RevisionNotFoundError:
        raise FileNotFoundError(f"{repo_id} has no branch, tag or commit {revision!r}.") from None
    except RepositoryNotFoundError:
        raise FileNotFoundError(
            f"The Hub has no repo {repo_id}, or does not show it to you: log in with `hf auth login` if "
            "it is private."
        ) from None
    path = Path(folder) / sae_id
    if not (path / "cfg.json").is_file():
        raise FileNotFoundError(
            f"{repo_id}{at} holds no SAE {sae_id!r}: there is no cfg.json in it."
        )
    return path
