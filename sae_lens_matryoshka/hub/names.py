"""Names that repos of the Hub could have."""

from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from sae_lens_matryoshka.settings.model_names import official_name


def hub_model(name: str | None) -> str | None:
    """The Hub repo of a model; None if it has none that is known."""
    return official_name(name) or hub_name(name)


def hub_name(name: str | None) -> str | None:
    """The name, if the Hub could have a repo "user/name" of it and no folder here is called so."""
    if name is None or name.count("/") != 1 or not all(name.split("/")):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if Path(name).exists() else name
