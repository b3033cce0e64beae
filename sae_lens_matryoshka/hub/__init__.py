"""The Hugging Face Hub: publish SAEs so that stock SAELens loads them, convert other libraries' ones."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_lens_matryoshka.convert.convert import convert
    from sae_lens_matryoshka.hub.publishing import publish
    from sae_lens_matryoshka.hub.repo import PublishError
    from sae_lens_matryoshka.hub.verify import BrokenRepoError

__all__ = ["BrokenRepoError", "PublishError", "convert", "publish"]

_HOME_OF = {
    "BrokenRepoError": "hub.verify",
    "PublishError": "hub.repo",
    "convert": "convert.convert",
    "publish": "hub.publishing",
}


def __getattr__(name: str) -> Any:
    """Import late: a benchmark needs the download only."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"sae_lens_matryoshka.{_HOME_OF[name]}"), name)
