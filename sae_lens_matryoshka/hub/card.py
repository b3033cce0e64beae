"""The model card: rebuilt from what the repo holds, hand-written parts and front matter kept."""

from collections.abc import Sequence, Set
from typing import Any

from huggingface_hub import RepoCard
from yaml import YAMLError

from sae_lens_matryoshka.hub.card_entry import CardEntry
from sae_lens_matryoshka.hub.card_page import MAIN, render
from sae_lens_matryoshka.hub.names import hub_model, hub_name

CARD = "README.md"
BEGIN = "<!-- written by sae-lens-matryoshka at every publish; edit outside of these two marks -->"
END = "<!-- end of what sae-lens-matryoshka writes -->"

TAGS = ("saelens", "sparse-autoencoder")
MATRYOSHKA_TAG = "matryoshka"
NO_METADATA = "---\n{}\n---\n"


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
        card.text if existing else "", render(repo_id, entries, published, revision)
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
    models = [hub_model(entry.metadata.get("model_name")) for entry in entries]
    data_sets = [hub_name(entry.metadata.get("dataset_path")) for entry in entries]
    tags = [*TAGS, *([MATRYOSHKA_TAG] if any(e.is_matryoshka for e in entries) else [])]
    data["base_model"] = _one_or_many(_joined(data.get("base_model"), models))
    data["datasets"] = _joined(data.get("datasets"), data_sets) or None
    data["tags"] = _joined(data.get("tags"), tags)


def _joined(present: str | Sequence[str] | None, more: Sequence[str | None]) -> list[str]:
    """What stands there already and what is new, each once."""
    there = [present] if isinstance(present, str) else list(present or [])
    return list(dict.fromkeys([*there, *(name for name in more if name)]))


def _one_or_many(names: list[str]) -> str | list[str] | None:
    return names[0] if len(names) == 1 else names or None
