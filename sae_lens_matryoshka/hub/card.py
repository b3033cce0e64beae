"""The model card: rebuilt from what the repo holds, hand-written parts and front matter kept."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from sae_lens.saes.sae import SAEMetadata

from sae_lens_matryoshka.hub.staging import NEEDED_PACKAGE, is_level_name, level_name
from sae_lens_matryoshka.level_results import NOTES, Measurement, results_of
from sae_lens_matryoshka.markdown_table import pipe_table
from sae_lens_matryoshka.model_names import official_name
from sae_lens_matryoshka.sae import named_widths

BEGIN = "<!-- written by sae-lens-matryoshka at every publish; edit outside of these two marks -->"
END = "<!-- end of what sae-lens-matryoshka writes -->"

TAGS = ("saelens", "sparse-autoencoder")
MATRYOSHKA_TAG = "matryoshka"
TEMPLATE = Path(__file__).with_name("card.md.jinja")
NO_METADATA = "---\n{}\n---\n"
HUB_NAME = r"[\w.-]+/[\w.-]+"

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
FIRST = ("L0", "FVU ↓")  # no comparison without them
VERSIONS = ("sae_lens_training_version", "sae_lens_version")


@dataclass(frozen=True)
class CardEntry:
    """
    An SAE as its card needs it.

    Args:
        sae_id: Its folder in the repo.
        cfg: Its cfg.json.
        runner_cfg: Its runner_cfg.json, empty if it has none.
    """

    sae_id: str
    cfg: dict[str, Any]
    runner_cfg: dict[str, Any]

    @property
    def metadata(self) -> SAEMetadata:
        """The metadata in its cfg.json."""
        return SAEMetadata(**self.cfg.get("metadata", {}))

    @property
    def widths(self) -> list[int]:
        """Its nested widths; of a flat SAE its own."""
        return list(named_widths(self.metadata) or [self.cfg["d_sae"]])

    @property
    def is_matryoshka(self) -> bool:
        """Whether it has levels."""
        return named_widths(self.metadata) is not None

    @property
    def needed_package(self) -> str | None:
        """The package without which SAELens cannot load it; None for most."""
        return self.metadata[NEEDED_PACKAGE]

    @property
    def is_level(self) -> bool:
        """Whether it is a level of another SAE, published on its own."""
        return "/" in self.sae_id and is_level_name(self.sae_id.rsplit("/", 1)[1])


def build_card(
    repo_id: str,
    entries: Sequence[CardEntry],
    existing: str | None,
    license_id: str | None,
) -> str:
    """
    The README.md of a repo.

    Args:
        repo_id: The repo, "user/name".
        entries: Everything that the repo will hold.
        existing: Its present README.md. What stands outside of our two marks is kept, as are its own
            entries in the front matter.
        license_id: The Hub's identifier of a license. None keeps the present one.
    """
    generated = _generated(repo_id, entries)
    card = ModelCard(existing or NO_METADATA, ignore_metadata_errors=True)
    card.text = _with_generated(card.text if existing else "", generated)
    _fill_front_matter(card.data, entries, license_id)
    return card.content


def _with_generated(text: str, generated: str) -> str:
    block = f"{BEGIN}\n\n{generated.strip()}\n\n{END}"
    if BEGIN in text and END in text:
        before, rest = text.split(BEGIN, 1)
        return before + block + rest.split(END, 1)[1]
    return f"{text.rstrip()}\n\n{block}\n" if text.strip() else f"\n{block}\n"


def _fill_front_matter(data: Any, entries: Sequence[CardEntry], license_id: str | None) -> None:
    data.library_name = "saelens"
    if license_id is not None:
        data.license = license_id
    models = [official_name(entry.metadata.model_name) for entry in entries]
    named = [entry.metadata.model_name or "" for entry in entries]
    models += [name for name in named if re.fullmatch(HUB_NAME, name)]
    data_sets = [_hub_data_set(entry.metadata.dataset_path) for entry in entries]
    tags = [*TAGS, *([MATRYOSHKA_TAG] if any(e.is_matryoshka for e in entries) else [])]
    data.base_model = _one_or_many(_joined(data.base_model, models))
    data.datasets = _joined(data.datasets, data_sets) or None
    data.tags = _joined(data.tags, tags)


def _hub_data_set(path: str | None) -> str | None:
    return path if path and re.fullmatch(HUB_NAME, path) and not Path(path).exists() else None


def _joined(present: str | Sequence[str] | None, more: Sequence[str | None]) -> list[str]:
    """What stands there already and what is new, each once."""
    there = [present] if isinstance(present, str) else list(present or [])
    return list(dict.fromkeys([*there, *(name for name in more if name)]))


def _one_or_many(names: list[str]) -> str | list[str] | None:
    return names[0] if len(names) == 1 else names or None


# ---- the generated part


def _generated(repo_id: str, entries: Sequence[CardEntry]) -> str:
    from jinja2 import Environment, StrictUndefined

    whole = [entry for entry in entries if not entry.is_level]
    nested = next((entry for entry in whole if entry.is_matryoshka), None)
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        repo_id=repo_id,
        title=repo_id.split("/")[-1],
        whole=whole,
        table=_table(entries),
        notes=list(dict.fromkeys(note for e in whole for note in e.metadata.get(NOTES) or [])),
        common=_common_settings(whole),
        differing=_settings_table(whole),
        nested=nested,
        first=next((entry for entry in whole if not entry.needed_package), None),
        plugin_only=[entry for entry in whole if entry.needed_package],
    )


def _table(entries: Sequence[CardEntry]) -> str:
    """SAE and level in rows; in columns what is known of at least one of them."""
    published = {entry.sae_id for entry in entries}
    rows: list[tuple[list[str], dict[str, str]]] = []
    for entry in entries:
        if entry.is_level:
            continue
        for index, width in enumerate(entry.widths):
            is_whole = index == len(entry.widths) - 1
            level_id = f"{entry.sae_id}/{level_name(index, width)}"
            sae_id = entry.sae_id if is_whole else level_id if level_id in published else ""
            level = _level_label(index, len(entry.widths))
            rows.append(
                ([f"`{sae_id}`" if sae_id else "", level, f"{width:,}"], _measured(entry, width))
            )
    found = dict.fromkeys(label for _, measured in rows for label in measured)
    labels = [*(label for label in FIRST if label in found), *(x for x in found if x not in FIRST)]
    cells = [[*place, *(measured.get(label, "-") for label in labels)] for place, measured in rows]
    return pipe_table(["sae_id", "level", "width", *labels], cells, text_columns=2)


def _level_label(index: int, n_levels: int) -> str:
    if n_levels == 1:
        return "-"
    ends = {0: f"{index} (innermost)", n_levels - 1: f"{index} (outermost)"}
    return ends.get(index, str(index))


def _measured(entry: CardEntry, width: int) -> dict[str, str]:
    found = {label: _value(one) for label, one in results_of(entry.metadata, width).items()}
    in_training = entry.metadata.l0
    if "L0" not in found and in_training is not None and width == entry.cfg["d_sae"]:
        found = {"L0": f"{in_training:.1f} (in training)", **found}
    return found


def _value(one: Measurement) -> str:
    mean, std = one["mean"], one.get("std")
    if std is not None:
        return f"{mean:.3f} ± {std:.3f}"
    if mean == int(mean):
        return f"{int(mean):,}"
    return f"{mean:.1f}" if abs(mean) >= 2 else f"{mean:.3f}"


def _settings(entry: CardEntry) -> dict[str, Any]:
    metadata = entry.metadata
    details: dict[str, Any] = metadata.training_architecture_details or {}
    found = {key: metadata[key] for key in METADATA_SETTINGS}
    found |= {k: v for k, v in details.items() if not _has_no_effect(k, details)}
    found |= {key: entry.runner_cfg.get(key) for key in RUNNER_SETTINGS}
    found |= {"saved as": entry.cfg["architecture"], "dtype": entry.cfg.get("dtype")}
    found |= {key: metadata[key] for key in VERSIONS}
    return {key: value for key, value in found.items() if value is not None}


def _has_no_effect(setting: str, details: dict[str, Any]) -> bool:
    random_prefixes = details.get("prefix_sampling") == "random"
    return setting in ("n_prefixes", "pareto_power") and not random_prefixes


def _common_settings(whole: Sequence[CardEntry]) -> dict[str, Any]:
    settings = [_settings(entry) for entry in whole]
    return {
        key: value
        for key, value in settings[0].items()
        if all(key in one and one[key] == value for one in settings)
    }


def _settings_table(whole: Sequence[CardEntry]) -> str:
    """The settings in which the SAEs differ; empty if in none."""
    common = _common_settings(whole)
    settings = [_settings(entry) for entry in whole]
    keys = list(dict.fromkeys(key for one in settings for key in one if key not in common))
    if not keys:
        return ""
    rows = [
        [f"`{entry.sae_id}`", *(str(one.get(key, "-")) for key in keys)]
        for entry, one in zip(whole, settings, strict=True)
    ]
    return pipe_table(["sae_id", *keys], rows, text_columns=1)
