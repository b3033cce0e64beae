"""Publish SAEs in the layout that stock SAELens loads: staged, verified, then one commit."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from sae_lens.constants import (
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
)

from sae_lens_matryoshka import level_results
from sae_lens_matryoshka.hub.card import CardEntry, build_card
from sae_lens_matryoshka.hub.repo import (
    MAIN,
    FolderRepo,
    HubRepo,
    PublishError,
    Repo,
    SomebodyElseCommitted,
    check_repo_id,
)
from sae_lens_matryoshka.hub.scores import attach_scores
from sae_lens_matryoshka.hub.staging import (
    Publishable,
    StagedSAE,
    is_level_name,
    stage,
    write,
)
from sae_lens_matryoshka.hub.verify import expectations, verify

logger = logging.getLogger(__name__)

CARD = "README.md"
SAE_FILES = (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME, RUNNER_CFG_FILENAME)
ATTEMPTS = 5  # of commits, while others commit in between
NEVER_FIRED = -9.5  # SAELens writes log10(frequency + 1e-10)


def publish(
    saes: Mapping[str, Publishable],
    repo_id: str,
    revision: str = MAIN,
    private: bool = False,
    license: str | None = None,
    levels: bool = False,
    dry_run: str | Path | None = None,
    results: str | Path | None = None,
    allow_plugin_only: bool = False,
) -> str:
    """
    Publish SAEs on the Hub, so that `SAE.from_pretrained(repo_id, sae_id)` of stock SAELens loads them.

    Everything is written to a staging folder, reloaded there by stock SAELens in a process that cannot
    import this package, and compared with the originals; only then is it uploaded, in one commit. An SAE
    of the same id is replaced, with its levels; all else in the repo stays. The token is the one that the
    Hub's own tools find (`hf auth login`, HF_TOKEN).

    Args:
        saes: By sae_id, its folder in the repo ("blocks.12.hook_resid_post/k_40"): SAEs of SAELens,
            training SAEs, MatryoshkaSAEs, or folders of saved ones. They stay as they are and are
            published in their inference form.
        repo_id: "user/name"; created if there is none.
        revision: Branch to publish to.
        private: Whether a new repo is private.
        license: The Hub's identifier of a license for the card, such as "mit". None keeps the card's.
        levels: Whether to publish each nested level as an SAE of its own as well, under
            `<sae_id>/level_<i>_width_<w>`.
        dry_run: A folder that stands for the repo: the very same files go there, nothing is uploaded.
        results: Output folder of a benchmark of these SAEs, for the card's table.
        allow_plugin_only: Whether to publish an SAE that stock SAELens cannot load; the card says so.

    Returns:
        Address of the commit, or the dry run's folder.

    Raises:
        ValueError: An argument or an SAE cannot be published; the message says what to do.
        FileNotFoundError: A folder holds no SAE, or no results.
        BrokenRepoError: Reloaded by stock SAELens, an SAE computes something else.
        PublishError: The Hub refused or broke off; never with a part of the files published.
    """
    check_repo_id(repo_id)
    if dry_run is not None and (private or revision != MAIN):
        raise ValueError("private and revision have no effect on a dry run. Leave them out.")
    staged = stage(saes, allow_plugin_only)
    _record_dead_latents(staged)
    if results is not None:
        attach_scores({one.sae_id: one.sae for one in staged}, Path(results))
    expected = expectations(staged, levels)
    with TemporaryDirectory() as scratch:
        tree = Path(scratch, "repo")
        written = [sae_id for one in staged for sae_id, _ in write(one, levels, tree)]
        logger.info("Checking with stock SAELens what will be published ...")
        verify(expected, Path(scratch))
        if dry_run is not None:
            repo: Repo = FolderRepo(Path(dry_run))
        else:
            repo = HubRepo(repo_id, revision, private)
            repo.create_if_missing()
        return _commit(repo, tree, repo_id, written, license)


def _record_dead_latents(staged: Sequence[StagedSAE]) -> None:
    for one in staged:
        if one.sparsity is None:
            continue
        counts = {
            width: level_results.measurement([int((one.sparsity[:width] < NEVER_FIRED).sum())])
            for width in one.widths or [one.sae.cfg.d_sae]
        }
        level_results.record(one.sae, {width: {"dead latents": n} for width, n in counts.items()})


def _commit(
    repo: Repo,
    tree: Path,
    repo_id: str,
    written: Sequence[str],
    license_id: str | None,
) -> str:
    message = f"Publish {', '.join(sae_id for sae_id in written if not _is_level(sae_id))}"
    for _ in range(ATTEMPTS):
        present = repo.files()
        removed = [path for path in present if _is_replaced(path, written, tree)]
        try:
            existing = repo.read(CARD) if CARD in present else None
            entries = _entries(repo, set(present) - set(removed), tree, written)
            card = build_card(repo_id, entries, existing, license_id)
            (tree / CARD).write_text(card, encoding="utf-8")
            return repo.commit(tree, removed, message)
        except SomebodyElseCommitted:
            logger.info("Somebody else has published to %s meanwhile; trying again.", repo_id)
    raise PublishError(
        f"{repo_id} kept changing while {ATTEMPTS} commits were tried. Nothing was published; try again "
        "when the others are done."
    )


def _is_replaced(path: str, written: Sequence[str], tree: Path) -> bool:
    """Whether a file is of an SAE that is published anew, or of its levels, and has no successor."""
    folder, _, name = path.rpartition("/")
    is_ours = folder in written or (_is_level(folder) and folder.rpartition("/")[0] in written)
    return is_ours and name in SAE_FILES and not (tree / path).exists()


def _is_level(sae_id: str) -> bool:
    return is_level_name(sae_id.rpartition("/")[2])


def _entries(repo: Repo, kept: set[str], tree: Path, written: Sequence[str]) -> list[CardEntry]:
    """Everything that the repo will hold: what is there and stays, and what is published now."""
    entries = {
        sae_id: CardEntry(
            sae_id, _json(tree / sae_id / SAE_CFG_FILENAME), _runner_cfg(tree / sae_id)
        )
        for sae_id in written
    }
    for path in sorted(kept):
        sae_id, _, name = path.rpartition("/")
        if (
            name != SAE_CFG_FILENAME
            or sae_id in entries
            or f"{sae_id}/{SAE_WEIGHTS_FILENAME}" not in kept
        ):
            continue
        runner_cfg = f"{sae_id}/{RUNNER_CFG_FILENAME}"
        entries[sae_id] = CardEntry(
            sae_id,
            json.loads(repo.read(path)),
            json.loads(repo.read(runner_cfg)) if runner_cfg in kept else {},
        )
    return [entries[sae_id] for sae_id in sorted(entries)]


def _json(path: Path) -> dict[str, object]:
    return json.loads(path.read_text(encoding="utf-8"))


def _runner_cfg(folder: Path) -> dict[str, object]:
    path = folder / RUNNER_CFG_FILENAME
    return _json(path) if path.is_file() else {}
