"""Names of SAEs in a repo: each is a folder, and a level's lies inside its SAE's."""

import re
from collections.abc import Iterable

from sae_lens_matryoshka.loading.download import FILES

_PART = r"[A-Za-z0-9_-](?:[A-Za-z0-9_.-]*[A-Za-z0-9_-])?"  # no leading dot, nor a last one
_RESERVED = ("README.md", "levels.svg", *FILES)


def check_ids(sae_ids: Iterable[str]) -> None:
    """
    Check that ids can be folders of a repo on any system, and that none is a level's.

    Raises:
        ValueError: One cannot.
    """
    for sae_id in sae_ids:
        is_path = re.fullmatch(rf"{_PART}(?:/{_PART})*", sae_id)
        if not is_path or set(sae_id.split("/")) & set(_RESERVED):
            raise ValueError(
                f"{sae_id!r} cannot be an sae_id: it is a folder in the repo, of letters, digits, '_', "
                "'-' and '.' (not at an end), with '/' between its parts, and not called as one of the "
                "files there."
            )
        if is_level_id(sae_id):
            raise ValueError(
                f"{sae_id!r} cannot be an sae_id: levels=True gives such names. Choose another."
            )


def level_id(sae_id: str, index: int, width: int) -> str:
    """The id of a level that is published as an SAE of its own."""
    return f"{sae_id}/level_{index}_width_{width}"


def is_level_id(sae_id: str) -> bool:
    """Whether an id is one that `level_id` gives."""
    return re.fullmatch(r"level_\d+_width_\d+", sae_id.rpartition("/")[2]) is not None
