"""Say in one message what could not be fetched from the Hugging Face Hub, and what to do without a network."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class NotFetchedError(OSError):
    """There is no way to the Hub; the message says what was to be fetched and what to give instead."""


@contextmanager
def fetching(what: str | Callable[[], str], instead: str) -> Iterator[None]:
    """
    Explain a missing network; what the Hub itself refuses keeps its own error.

    Args:
        what: What is fetched, for the message: "The model gpt2". Or a function that says it.
        instead: What helps without a network, a sentence.

    Raises:
        NotFetchedError: The Hub cannot be reached.
    """
    try:
        yield
    except NotFetchedError:
        raise
    except Exception as error:
        reason = _why_not_reached(error)
        if reason is None:
            raise
        name = what if isinstance(what, str) else what()
        raise NotFetchedError(
            f"{name} could not be fetched from the Hugging Face Hub: {reason}. {instead}"
        ) from error


def _why_not_reached(error: BaseException) -> str | None:
    """Why there is no way to the Hub; None if that is not what went wrong."""
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    of_http_library = tuple(base for base in HfHubHTTPError.__bases__ if base is not OSError)
    reason: str | None = None
    for one in _chain(error):
        if isinstance(one, HfHubHTTPError):
            return None  # the Hub has answered
        if isinstance(one, of_http_library):
            return f"there is no connection ({one})"
        if isinstance(one, ConnectionError | TimeoutError | LocalEntryNotFoundError):
            reason = "there is no connection, and no copy in the local cache"
    if reason is not None and HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and there is no copy in the local cache"
    return reason


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it, the last first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
