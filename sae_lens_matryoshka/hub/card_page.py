"""What a model card says: what the SAEs are, a table per SAE, how to load them, settings."""

import json
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from sae_lens_matryoshka.hub.card_entry import CardEntry, is_local_path
from sae_lens_matryoshka.hub.card_facts import facts_of, title
from sae_lens_matryoshka.hub.card_text import code, listed, plain
from sae_lens_matryoshka.hub.level_plot import PLOT, plotted
from sae_lens_matryoshka.hub.sae_ids import level_id
from sae_lens_matryoshka.levels.calibration import L0_IS_CALIBRATED
from sae_lens_matryoshka.levels.measurements import DEAD, FVU, L0, NOTES, Measurement
from sae_lens_matryoshka.markdown_table import level_label, pipe_table

MAIN = "main"  # the branch that SAELens loads from
TEMPLATE = Path(__file__).with_name("card.md.jinja")
COLUMNS_AT_A_TIME = 4  # of measurements; a table with more is wider than a page
FIRST = (L0, FVU)  # no comparison without them
LEGEND = {
    L0: "**L0**: active latents per token.",
    FVU: "**FVU**: fraction of variance unexplained, 0 for a perfect reconstruction.",
}

# Settings that are folded away; what is among the facts stands there.
METADATA_SETTINGS = ("training_architecture", "prepend_bos", "seqpos_slice")
RUNNER_SETTINGS = ("train_batch_size_tokens", "lr", "lr_scheduler_name", "seed")
CFG_SETTINGS = ("refinement_step", "normalize_activations", "apply_b_dec_to_input")
VERSIONS = ("sae_lens_training_version", "sae_lens_version")


def render(repo_id: str, entries: Sequence[CardEntry], published: Set[str], revision: str) -> str:
    """
    The Markdown of a repo's page, without front matter.

    Args:
        repo_id: The repo, "user/name".
        entries: The SAEs that the repo will hold, without levels.
        published: The ids that can be loaded, levels included.
        revision: The branch that the page is for.
    """
    facts = {entry.sae_id: facts_of(entry) for entry in entries}
    settings = {entry.sae_id: _settings(entry) for entry in entries}
    labels = {label for e in entries for width in e.widths for label in _cells(e, width)}
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"code": code, "listed": listed, "string": _string}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        repo_id=repo_id,
        revision=revision,
        is_main=revision == MAIN,
        title=title(repo_id, entries),
        entries=entries,
        matryoshkas=[entry for entry in entries if entry.is_matryoshka],
        common=_common(list(facts.values())),
        overview=_overview(entries, facts),
        sections=[
            (e.sae_id, _level_tables(e, published))
            for e in entries
            if _has_section(e, published, len(entries))
        ],
        plot=PLOT if plotted(entries) else None,
        published_level=_published_level(entries, published),
        legend=_legend(labels),
        notes=_notes(entries),
        first=next((entry for entry in entries if not entry.needed_package), None),
        nested=next((entry for entry in entries if entry.can_be_cut), None),
        plugin_only=[entry for entry in entries if entry.needed_package],
        packages={e.needed_package: e for e in reversed(entries) if e.needed_package},
        settings=_setting_table(settings),
    )


def _string(value: str) -> str:
    """A text as a literal of Python."""
    return json.dumps(value, ensure_ascii=False)


# ---- tables


def _overview(entries: Sequence[CardEntry], facts: Mapping[str, Mapping[str, str]]) -> str:
    """The SAEs in rows, with the facts in which they differ; empty for a single one."""
    if len(entries) < 2:
        return ""
    common = _common(list(facts.values()))
    names = list(dict.fromkeys(n for one in facts.values() for n in one if n not in common))
    found = [_cells(entry, entry.cfg["d_sae"]) for entry in entries]
    labels = [label for label in FIRST if any(label in cells for cells in found)]
    rows = [
        [
            code(entry.sae_id),
            *(facts[entry.sae_id].get(name, "-") for name in names),
            *(cells.get(label, "-") for label in labels),
        ]
        for entry, cells in zip(entries, found, strict=True)
    ]
    return pipe_table(["sae_id", *names, *labels], rows, text_columns=1 + len(names))


def _has_section(entry: CardEntry, published: Set[str], n_entries: int) -> bool:
    """Whether there is more to say of an SAE than the facts and the overview do."""
    labels = {label for width in entry.widths for label in _cells(entry, width)}
    in_overview = set() if n_entries == 1 or entry.is_matryoshka else set(FIRST)
    return bool(labels - in_overview) or _published_level([entry], published) is not None


def _level_tables(entry: CardEntry, published: Set[str]) -> str:
    """Levels in rows; in columns what is known of at least one of them, a few at a time."""
    rows = [_cells(entry, width) for width in entry.widths]
    found = list(dict.fromkeys(label for cells in rows for label in cells))
    labels = [*(x for x in FIRST if x in found), *(x for x in found if x not in FIRST)]
    names = [level_label(index, len(rows)) for index in range(len(rows))]
    places = [[name, f"{width:,}"] for name, width in zip(names, entry.widths, strict=True)]
    header = ["level", "width"]
    if not entry.is_matryoshka:  # one row, which needs no name
        places, header = [place[1:] for place in places], ["width"]
    tables: list[str] = []
    for start in range(0, max(len(labels), 1), COLUMNS_AT_A_TIME):
        shown = labels[start : start + COLUMNS_AT_A_TIME]
        cells = [
            [*place, *(row.get(label, "-") for label in shown)]
            for place, row in zip(places, rows, strict=True)
        ]
        heads = [*header, *(plain(label) for label in shown)]
        tables.append(pipe_table(heads, cells, text_columns=len(header) - 1))
    ids = [level_id(entry.sae_id, index, width) for index, width in enumerate(entry.widths[:-1])]
    loadable = [code(name) if name in published else "-" for name in ids]
    if set(loadable) - {"-"}:
        rows_of_ids = zip(names, [*loadable, code(entry.sae_id)], strict=True)
        tables.append(pipe_table(["level", "sae_id"], [*map(list, rows_of_ids)], text_columns=2))
    return "\n\n".join(tables)


def _published_level(entries: Sequence[CardEntry], published: Set[str]) -> str | None:
    """The id of an innermost level that can be loaded as an SAE of its own."""
    ids = [level_id(entry.sae_id, 0, entry.widths[0]) for entry in entries if entry.is_matryoshka]
    return next((name for name in ids if name in published), None)


def _cells(entry: CardEntry, width: int) -> dict[str, str]:
    known = entry.measured(width)
    found = {label: _value(label, one) for label, one in known.items()}
    in_training = entry.metadata.get("l0")
    if L0 not in found and in_training is not None and width == entry.cfg["d_sae"]:
        where = "calibrated" if entry.metadata.get(L0_IS_CALIBRATED) else "in training"
        found = {L0: f"{in_training:.1f} ({where})", **found}
    return found


def _value(label: str, one: Measurement) -> str:
    mean, std = one["mean"], one.get("std")
    if std is not None:
        return f"{mean:.3f} ± {std:.3f}"
    if float(mean).is_integer() and mean != 1:
        return f"{int(mean):,}"
    return f"{mean:.1f}" if abs(mean) >= 2 and label != FVU else f"{mean:.3f}"


def _legend(labels: Set[str]) -> str:
    """What the columns that are there mean."""
    said = [text for label, text in LEGEND.items() if label in labels]
    arrows = {"↓": "lower is better", "↑": "higher is better"}
    meant = [f"{a} {text}" for a, text in arrows.items() if any(a in label for label in labels)]
    return " ".join([*said, f"{', '.join(meant).capitalize()}." if meant else ""]).strip()


def _notes(entries: Sequence[CardEntry]) -> list[str]:
    """What was said with the measurements; of which SAEs, unless it is all of those that were measured."""
    said: dict[str, list[str]] = {}
    measured = [entry for entry in entries if entry.metadata.get(NOTES)]
    for entry in measured:
        for note in entry.metadata[NOTES]:
            said.setdefault(f"{plain(note).rstrip('.')}.", []).append(code(entry.sae_id))
    of_all = len(measured)
    return [n if len(ids) == of_all else f"{', '.join(ids)}: {n}" for n, ids in said.items()]


# ---- settings


def _settings(entry: CardEntry) -> dict[str, Any]:
    metadata = entry.metadata
    details: dict[str, Any] = metadata.get("training_architecture_details") or {}
    shown = {"k", "activation", "matryoshka_widths"}  # among the facts
    found = {k: v for k, v in details.items() if k not in shown and not _idle(k, details)}
    found |= {key: metadata.get(key) for key in METADATA_SETTINGS}
    found |= {key: entry.runner_cfg.get(key) for key in RUNNER_SETTINGS}
    found |= {key: entry.cfg.get(key) for key in CFG_SETTINGS}
    if not any(DEAD in entry.measured(width) for width in entry.widths):
        found["num_dead_features at the end of training"] = metadata.get("num_dead_features")
    found |= {key: metadata.get(key) for key in VERSIONS}
    return {k: v for k, v in found.items() if v is not None and not is_local_path(v)}


def _idle(setting: str, details: Mapping[str, Any]) -> bool:
    """Whether a setting had no effect beside the others."""
    random_prefixes = details.get("prefix_sampling") == "random"
    return setting in ("n_prefixes", "pareto_power") and not random_prefixes


def _common(of_each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first, *others = of_each or [{}]
    return {k: v for k, v in first.items() if all(k in one and one[k] == v for one in others)}


def _setting_table(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """Settings in rows; a column for all SAEs that have them in common, then one per differing SAE."""
    common = _common(list(settings.values()))
    keys = list(dict.fromkeys(key for one in settings.values() for key in one))
    alike = [[code(key), code(common[key])] for key in keys if key in common]
    tables = [pipe_table(["setting", "value"], alike, text_columns=2)] if alike else []
    differing = [key for key in keys if key not in common]
    if differing:
        rows = [
            [code(name), *(code(one[key]) if key in one else "-" for key in differing)]
            for name, one in settings.items()
        ]
        header = ["sae_id", *(code(key) for key in differing)]
        tables.append(pipe_table(header, rows, text_columns=len(header)))
    return "\n\n".join(tables)
