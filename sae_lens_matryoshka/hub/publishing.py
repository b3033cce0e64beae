"""Publish SAEs in the layout that stock SAELens loads: staged, verified, then one commit."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sae_lens.constants import RUNNER_CFG_FILENAME, SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME

from sae_lens_matryoshka.hub.card import CARD, build_card
from sae_lens_matryoshka.hub.card_entry import CardEntry
from sae_lens_matryoshka.hub.dry_run import FolderRepo
from sae_lens_matryoshka.hub.level_plot import MARK, PLOT, level_plot
from sae_lens_matryoshka.hub.repo import MAIN, HubRepo, PublishError, Repo, SomebodyElseCommitted
from sae_lens_matryoshka.hub.sae_ids import check_ids, is_level_id
from sae_lens_matryoshka.hub.scores import Scores
from sae_lens_matryoshka.hub.staging import Publishable, StagedSAE, parent_of, stage, write
from sae_lens_matryoshka.hub.tokens import refuse_secrets
from sae_lens_matryoshka.hub.verify import Expectation, expectations, verify
from sae_lens_matryoshka.levels import measurements as level_results
from sae_lens_matryoshka.loading.download import FILES
from sae_lens_matryoshka.loading.hub_access import check_repo_id, check_revision
from sae_lens_matryoshka.loading.sae_folder import require_sae
from sae_lens_matryoshka.loading.saved_folder import TRAINED_TOKENS
from sae_lens_matryoshka.settings.writable import check_output

logger = logging.getLogger(__name__)

ATTEMPTS = 5  # of commits, while others commit in between
NEVER_FIRED = -9.5  # SAELens writes log10(frequency + 1e-10)
IGNORE_FILE = ".gitignore"


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
    import this package, and compared with the originals; only then is it uploaded, in one commit. An SAE that
    stock SAELens cannot load is reloaded with the package that it needs, such as this one (RefinedSAE). An SAE
    of the same id is replaced, with its levels; all else in the repo stays. The token is the one that the
    Hub's own tools find (`hf auth login`, HF_TOKEN).

    Args:
        saes: By sae_id, its folder in the repo ("blocks.12.hook_resid_post/k_40"): SAEs of SAELens,
            training SAEs, MatryoshkaSAEs, or folders of saved ones. They stay as they are and are
            published in their inference form.
        repo_id: "user/name"; created if there is none.
        revision: Branch to publish to.
        private: Whether a new repo is private. False: as is the rule where it is made.
        license: The Hub's identifier of a license for the card, such as "mit". None keeps the card's.
        levels: Whether to publish each inner level as an SAE of its own as well, under
            `<sae_id>/level_<i>_width_<w>`. The outermost level is the SAE itself.
        dry_run: A folder that stands for the repo, new or of an earlier dry run: the very same files go
            there, nothing is uploaded.
        results: Output folder of a benchmark of these SAEs, for the card's table.
        allow_plugin_only: Whether to publish an SAE that stock SAELens cannot load; the card says so.

    Returns:
        Address of the commit, or the dry run's folder.

    Raises:
        ValueError: An argument, an SAE or the repo's card cannot be used; the message says what to do.
        FileNotFoundError: A folder holds no SAE, or no results.
        BrokenRepoError: Reloaded by stock SAELens, an SAE computes something else.
        PublishError: The Hub refused or broke off; never with a part of the files published.
    """
    check_request(saes, repo_id, revision, private, dry_run, results)
    scores = None if results is None else Scores(Path(results))
    folder = None if dry_run is None else FolderRepo(Path(dry_run))
    with TemporaryDirectory() as scratch:
        tree = Path(scratch, "repo")
        expected: dict[str, Expectation] = {}
        for sae_id, given in saes.items():  # one at a time in memory
            staged = stage(sae_id, given, levels, allow_plugin_only)
            if scores is not None:
                scores.attach(staged.sae)
            _record_dead_latents(staged)
            expected |= expectations(staged, levels)
            write(staged, levels, tree)
        if scores is not None:
            scores.require_any(saes)
        logger.info("Checking with SAELens what will be published ...")
        verify(expected, Path(scratch))
        return _commit(
            folder or HubRepo(repo_id, revision, private), tree, repo_id, list(expected), license
        )


def check_request(
    saes: Mapping[str, Publishable],
    repo_id: str,
    revision: str = MAIN,
    private: bool = False,
    dry_run: str | Path | None = None,
    results: str | Path | None = None,
) -> None:
    """
    Check what can be checked before an SAE is opened.

    Args:
        saes: As `publish` takes them, and all that follows.
        repo_id: "user/name".
        revision: Branch to publish to.
        private: Whether a new repo is private.
        dry_run: A folder that stands for the repo.
        results: Output folder of a benchmark.

    Raises:
        ValueError: Something cannot be used.
        FileNotFoundError: A folder holds no SAE, or no results.
    """
    check_repo_id(repo_id)
    check_revision(revision)
    if not saes:
        raise ValueError("There is nothing to publish: give at least one sae_id and SAE.")
    check_ids(saes)
    for given in saes.values():
        if isinstance(given, str | Path):
            require_sae(Path(given))
    if dry_run is not None:
        if private or revision != MAIN:
            raise ValueError("private and revision have no effect on a dry run. Leave them out.")
        check_output("dry_run", Path(dry_run))
        FolderRepo(Path(dry_run))
    if results is not None:
        Scores(Path(results))


def _record_dead_latents(staged: StagedSAE) -> None:
    """Count the latents that never fired in training's last window, unless a measurement says it."""
    metadata = staged.sae.cfg.metadata
    widths = staged.widths or (staged.sae.cfg.d_sae,)
    is_known = any(level_results.DEAD in level_results.results_of(metadata, w) for w in widths)
    if is_known or staged.sparsity is None or not staged.sparsity.isfinite().all():
        return
    settings = {} if staged.runner_cfg is None else _json(staged.runner_cfg.read_text())
    tokens = _tokens_counted(settings, metadata[TRAINED_TOKENS])
    if tokens is None:
        logger.info("The card does not say how many latents of %r are dead.", staged.sae_id)
        return
    never = staged.sparsity < NEVER_FIRED  # (d_sae,)
    dead = {
        width: {level_results.DEAD: level_results.measurement([int(never[:width].sum())])}
        for width in widths
    }
    level_results.record(staged.sae, dead)
    note = f"Dead latents fired on none of the last {tokens:,} tokens of training"
    metadata[level_results.NOTES] = [*(metadata[level_results.NOTES] or []), note]


def _tokens_counted(runner_cfg: dict[str, Any], trained_tokens: int | None) -> int | None:
    """
    Tokens that SAELens's firing counts, which start anew every window, are over.

    None where they are fewer than dead_feature_window steps, or not known.
    """
    try:
        batch = runner_cfg["train_batch_size_tokens"]
        steps = -(-(trained_tokens or runner_cfg["training_tokens"]) // batch)
        window, patience = runner_cfg["feature_sampling_window"], runner_cfg["dead_feature_window"]
        counted = steps - (steps - 1) // window * window
        return counted * batch if counted >= min(steps, patience) else None
    except (KeyError, TypeError, ZeroDivisionError):  # of somebody else's making
        return None


def _commit(
    repo: Repo, tree: Path, repo_id: str, written: Sequence[str], license_id: str | None
) -> str:
    refuse_secrets(tree)  # before there is a repo
    repo.create_if_missing()
    message = f"Publish {', '.join(sae_id for sae_id in written if not is_level_id(sae_id))}"
    for _ in range(ATTEMPTS):
        present = repo.files()
        if IGNORE_FILE in present:
            raise PublishError(
                f"{repo_id} holds a {IGNORE_FILE}, by which the Hub's client leaves out files without a "
                "word. Remove it from the repo, and publish again."
            )
        _refuse_strangers(repo, repo_id, present, written)
        removed = [path for path in present if _is_replaced(path, written, tree)]
        kept = set(present) - set(removed)
        existing = repo.read(CARD) if CARD in present else None
        entries = _entries(repo, kept, tree, written)
        published = {sae_id for sae_id, name in map(_split, kept) if name == SAE_CFG_FILENAME}
        card = build_card(
            repo_id, entries, {*published, *written}, existing, license_id, repo.revision
        )
        (tree / CARD).write_bytes(card.encode())
        (tree / PLOT).unlink(missing_ok=True)  # of the attempt before
        if plot := level_plot(entries):
            (tree / PLOT).write_bytes(plot.encode())
        elif PLOT in present:
            removed.append(PLOT)
        refuse_secrets(tree)
        try:
            return repo.commit(tree, removed, message)
        except SomebodyElseCommitted:
            logger.info("Somebody else has published to %s meanwhile; trying again.", repo_id)
    raise PublishError(
        f"{repo_id} kept changing while {ATTEMPTS} commits were tried. Nothing was published; try again "
        "when the others are done."
    )


def _refuse_strangers(
    repo: Repo, repo_id: str, present: Sequence[str], written: Sequence[str]
) -> None:
    """
    Check that what will be replaced beside the SAEs themselves, levels and the plot, is publish's own.

    Raises:
        PublishError: Somebody else has put it there.
    """
    strangers = [PLOT] if PLOT in present and MARK not in repo.read(PLOT) else []
    for level in sorted({folder for folder, _ in map(_split, present) if is_level_id(folder)}):
        parent, cfg = level.rpartition("/")[0], f"{level}/{SAE_CFG_FILENAME}"
        if parent in written and (cfg not in present or parent_of(_json(repo.read(cfg))) != parent):
            strangers.append(level)
    if strangers:
        raise PublishError(
            f"{repo_id} holds {', '.join(strangers)}, which publish did not write and would have to "
            "replace. Rename or remove it in the repo; nothing was published."
        )


def _is_replaced(path: str, written: Sequence[str], tree: Path) -> bool:
    """Whether a file is of an SAE that is published anew, or of its levels, and has no successor."""
    sae_id, name = _split(path)
    is_ours = sae_id in written or (is_level_id(sae_id) and sae_id.rpartition("/")[0] in written)
    return is_ours and name in FILES and not (tree / path).exists()


def _split(path: str) -> tuple[str, str]:
    """The folder of a file, and its name."""
    folder, _, name = path.rpartition("/")
    return folder, name


def _entries(repo: Repo, kept: set[str], tree: Path, written: Sequence[str]) -> list[CardEntry]:
    """The SAEs that the repo will hold, without levels: those that stay, and those published now."""
    entries: dict[str, CardEntry] = {}
    for sae_id in written:
        if not is_level_id(sae_id):
            runner_cfg = tree / sae_id / RUNNER_CFG_FILENAME
            cfg = _json((tree / sae_id / SAE_CFG_FILENAME).read_text())
            entries[sae_id] = CardEntry(
                sae_id, cfg, _json(runner_cfg.read_text()) if runner_cfg.exists() else {}
            )
    for sae_id, name in sorted(map(_split, kept)):
        is_sae = name == SAE_CFG_FILENAME and f"{sae_id}/{SAE_WEIGHTS_FILENAME}" in kept
        if is_sae and sae_id not in entries and not is_level_id(sae_id):
            runner_cfg = f"{sae_id}/{RUNNER_CFG_FILENAME}"
            found = CardEntry.of_any_version(
                sae_id,
                _json(repo.read(f"{sae_id}/{name}")),
                _json(repo.read(runner_cfg)) if runner_cfg in kept else {},
                check=lambda entry: build_card("some/repo", [entry], set(), None, None),
            )
            if found is not None:
                entries[sae_id] = found
    return [entries[sae_id] for sae_id in sorted(entries)]


def _json(text: str) -> dict[str, Any]:
    """A JSON object; an empty one where somebody's file holds none."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
