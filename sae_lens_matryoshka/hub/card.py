"""The model card: rebuilt from what the repo holds, hand-written parts and front matter kept."""

import logging
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import RepoCard
from jinja2 import Environment, StrictUndefined
from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting
from yaml import YAMLError

from sae_lens_matryoshka.calibration import L0_IS_CALIBRATED
from sae_lens_matryoshka.hub.sae_ids import level_id
from sae_lens_matryoshka.hub.staging import NEEDED_PACKAGE
from sae_lens_matryoshka.level_results import FVU, L0, NOTES, Measurement, results_of
from sae_lens_matryoshka.markdown_table import level_label, pipe_table
from sae_lens_matryoshka.model_names import official_name
from sae_lens_matryoshka.sae import named_widths

logger = logging.getLogger(__name__)

CARD = "README.md"
MAIN = "main"  # the branch that SAELens loads from
BEGIN = "<!-- written by sae-lens-matryoshka at every publish; edit outside of these two marks -->"
END = "<!-- end of what sae-lens-matryoshka writes -->"

TAGS = ("saelens", "sparse-autoencoder")
MATRYOSHKA_TAG = "matryoshka"
TEMPLATE = Path(__file__).with_name("card.md.jinja")
NO_METADATA = "---\n{}\n---\n"
HUB_NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"

# Settings shown of the runner's configuration; the others are in the repo's runner_cfg.json.
RUNNER_SETTINGS = ("training_tokens", "train_batch_size_tokens", "lr", "seed")
METADATA_SETTINGS = (
    "model_name",
    "hook_name",
    "dataset_path",
    "context_size",
    "prepend_bos",
    "training_architecture",
    "num_dead_features",
)
FIRST = (L0, FVU)  # no comparison without them
VERSIONS = ("sae_lens_training_version", "sae_lens_version")


@dataclass(frozen=True)
class CardEntry:
    """
    An SAE as its card needs it.

    Args:
        sae_id: Its folder in the repo.
        cfg: Its cfg.json, in SAELens 6's form.
        runner_cfg: Its runner_cfg.json, empty if it has none.
    """

    sae_id: str
    cfg: dict[str, Any]
    runner_cfg: dict[str, Any]

    @classmethod
    def of_any_version(
        cls, sae_id: str, cfg: dict[str, Any], runner_cfg: dict[str, Any]
    ) -> "CardEntry | None":
        """An SAE that some version of SAELens saved; None where nothing can be said of it."""
        try:
            current = handle_config_defaulting({**cfg, "metadata": cfg.get("metadata") or {}})
            entry = cls(sae_id, {**current, "d_sae": int(current["d_sae"])}, runner_cfg)
            build_card("some/repo", [entry], set(), None, None)  # raises where it cannot be told of
            return entry
        except Exception as error:  # somebody else's file may be anything
            logger.warning(
                "The card says nothing of %r, whose cfg.json is strange: %r", sae_id, error
            )
            return None

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata in its cfg.json."""
        return self.cfg["metadata"]

    @property
    def widths(self) -> list[int]:
        """Its nested widths; of a flat SAE its own."""
        return list(named_widths(self.metadata) or [self.cfg["d_sae"]])

    @property
    def is_matryoshka(self) -> bool:
        """Whether it has levels inside it."""
        return len(self.widths) > 1

    @property
    def can_be_cut(self) -> bool:
        """Whether it has levels that stand alone."""
        return self.is_matryoshka and self.cfg["architecture"] != "topk"

    @property
    def needed_package(self) -> str | None:
        """The package without which SAELens cannot load it; None for most."""
        return self.metadata.get(NEEDED_PACKAGE)


def build_card(
    repo_id: str,
    entries: Sequence[CardEntry],
    published: Set[str],
    existing: str | None,
    license_id: str | None,
    revision: str = MAIN,
) -> str:
    """
    The README.md of a repo.

    Args:
        repo_id: The repo, "user/name".
        entries: The SAEs that the repo will hold, without levels.
        published: The ids that can be loaded, levels included.
        existing: Its present README.md. What stands outside of our two marks is kept, as are its own
            entries in the front matter.
        license_id: The Hub's identifier of a license. None keeps the present one.
        revision: The branch that the card is for. SAELens itself loads from the main one only.

    Raises:
        ValueError: The present README.md cannot be added to without losing something.
    """
    try:
        card = RepoCard(existing or NO_METADATA)  # unlike ModelCard, it keeps what it does not know
    except (YAMLError, ValueError) as error:
        raise ValueError(f"The front matter of {CARD} cannot be read: {error}. Mend it.") from error
    card.text = _with_generated(
        card.text if existing else "", _generated(repo_id, entries, published, revision)
    )
    _fill_front_matter(card.data, entries, license_id)
    return card.content


def _with_generated(text: str, generated: str) -> str:
    block = f"{BEGIN}\n\n{generated.strip()}\n\n{END}"
    begins, ends = text.count(BEGIN), text.count(END)
    if begins == ends == 0:
        return f"{text.rstrip()}\n\n{block}\n" if text.strip() else f"\n{block}\n"
    if begins != 1 or ends != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(
            f"{CARD} has {begins} of the mark {BEGIN!r} and {ends} of {END!r}, so that what was written by "
            "hand is not known. Leave one of each, in this order, around the generated part, or none."
        )
    return text.split(BEGIN)[0] + block + text.split(END)[1]


def _fill_front_matter(data: Any, entries: Sequence[CardEntry], license_id: str | None) -> None:
    data["library_name"] = "saelens"
    if license_id is not None:
        data["license"] = license_id
    models = [_hub_model(entry.metadata.get("model_name")) for entry in entries]
    data_sets = [_hub_name(entry.metadata.get("dataset_path")) for entry in entries]
    tags = [*TAGS, *([MATRYOSHKA_TAG] if any(e.is_matryoshka for e in entries) else [])]
    data["base_model"] = _one_or_many(_joined(data.get("base_model"), models))
    data["datasets"] = _joined(data.get("datasets"), data_sets) or None
    data["tags"] = _joined(data.get("tags"), tags)


def _hub_model(name: str | None) -> str | None:
    return official_name(name) or _hub_name(name)


def _hub_name(name: str | None) -> str | None:
    """The name, if the Hub could have it and no folder here is called so."""
    is_one = name is not None and re.fullmatch(HUB_NAME, name) and not Path(name).exists()
    return name if is_one else None


def _joined(present: str | Sequence[str] | None, more: Sequence[str | None]) -> list[str]:
    """What stands there already and what is new, each once."""
    there = [present] if isinstance(present, str) else list(present or [])
    return list(dict.fromkeys([*there, *(name for name in more if name)]))


def _one_or_many(names: list[str]) -> str | list[str] | None:
    return names[0] if len(names) == 1 else names or None


# ---- the generated part


def _generated(
    repo_id: str, entries: Sequence[CardEntry], published: Set[str], revision: str
) -> str:
    settings = {f"`{entry.sae_id}`": _settings(entry) for entry in entries}
    common = _common(list(settings.values()))
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        repo_id=repo_id,
        revision=revision,
        title=repo_id.split("/")[-1],
        table=_table(entries, published),
        notes=_notes(entries),
        common=common,
        differing=_differing(settings, common),
        is_matryoshka=any(entry.is_matryoshka for entry in entries),
        nested=next((entry for entry in entries if entry.can_be_cut), None),
        first=next((entry for entry in entries if not entry.needed_package), None),
        is_main=revision == MAIN,
        plugin_only=[entry for entry in entries if entry.needed_package],
        packages={e.needed_package: e for e in reversed(entries) if e.needed_package},
    )


def _table(entries: Sequence[CardEntry], published: Set[str]) -> str:
    """SAE and level in rows; in columns what is known of at least one of them."""
    rows: list[tuple[list[str], dict[str, str]]] = []
    for entry in entries:
        last = len(entry.widths) - 1
        for index, width in enumerate(entry.widths):
            level = level_id(entry.sae_id, index, width)
            sae_id = entry.sae_id if index == last else level if level in published else ""
            place = [f"`{sae_id}`" if sae_id else "", level_label(index, last + 1), f"{width:,}"]
            rows.append((place, _measured(entry, width)))
    found = dict.fromkeys(label for _, measured in rows for label in measured)
    labels = [*(label for label in FIRST if label in found), *(x for x in found if x not in FIRST)]
    cells = [[*place, *(measured.get(label, "-") for label in labels)] for place, measured in rows]
    return pipe_table(["sae_id", "level", "width", *labels], cells, text_columns=2)


def _measured(entry: CardEntry, width: int) -> dict[str, str]:
    known = results_of(entry.metadata, width)
    found = {label: _value(one) for label, one in known.items()}
    in_training = entry.metadata.get("l0")
    if L0 not in found and in_training is not None and width == entry.cfg["d_sae"]:
        where = "calibrated" if entry.metadata.get(L0_IS_CALIBRATED) else "in training"
        found = {L0: f"{in_training:.1f} ({where})", **found}
    return found


def _value(one: Measurement) -> str:
    mean, std = one["mean"], one.get("std")
    if std is not None:
        return f"{mean:.3f} ± {std:.3f}"
    if float(mean).is_integer():
        return f"{int(mean):,}"
    return f"{mean:.1f}" if abs(mean) >= 2 else f"{mean:.3f}"


def _notes(entries: Sequence[CardEntry]) -> list[str]:
    """What was said with the measurements; of which SAEs, unless it is all of those that were measured."""
    said: dict[str, list[str]] = {}
    measured = [entry for entry in entries if entry.metadata.get(NOTES)]
    for entry in measured:
        for note in entry.metadata[NOTES]:
            said.setdefault(note, []).append(f"`{entry.sae_id}`")
    of_all = len(measured)
    return [n if len(ids) == of_all else f"{', '.join(ids)}: {n}" for n, ids in said.items()]


# ---- settings


def _settings(entry: CardEntry) -> dict[str, Any]:
    metadata = entry.metadata
    details: dict[str, Any] = metadata.get("training_architecture_details") or {}
    found = {key: metadata.get(key) for key in METADATA_SETTINGS}
    found |= {k: v for k, v in details.items() if not _has_no_effect(k, details)}
    found |= {key: entry.runner_cfg.get(key) for key in RUNNER_SETTINGS}
    found |= {"saved as": entry.cfg["architecture"]}
    found |= {key: entry.cfg.get(key) for key in ("refinement_step", "dtype")}
    found |= {key: metadata.get(key) for key in VERSIONS}
    return {k: v for k, v in found.items() if v is not None and not _is_local_path(v)}


def _has_no_effect(setting: str, details: dict[str, Any]) -> bool:
    random_prefixes = details.get("prefix_sampling") == "random"
    return setting in ("n_prefixes", "pareto_power") and not random_prefixes


def _is_local_path(value: Any) -> bool:
    """Where something lies on somebody's machine is nobody's business."""
    return isinstance(value, str) and bool(re.match(r"[/~.]|[A-Za-z]:|.*\\", value))


def _common(settings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first, *others = settings or [{}]
    return {k: v for k, v in first.items() if all(k in one and one[k] == v for one in others)}


def _differing(settings: Mapping[str, dict[str, Any]], common: dict[str, Any]) -> str:
    """The settings in which the SAEs differ, as a table; empty if in none."""
    keys = list(dict.fromkeys(key for one in settings.values() for key in one if key not in common))
    if not keys:
        return ""
    rows = [[name, *(str(one.get(key, "-")) for key in keys)] for name, one in settings.items()]
    return pipe_table(["sae_id", *keys], rows, text_columns=1)
