"""Say in one message what could not be fetched from the Hugging Face Hub, and what to do without a network."""

import re
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


def check_repo_id(repo_id: str) -> None:
    """
    Check that the Hub could have a repo of that name.

    Raises:
        ValueError: It could not.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repo_id={repo_id!r} is no name of a repo: {error}") from error
    if "/" not in repo_id:
        raise ValueError(f"repo_id={repo_id!r}: give 'user/name', with your user or organisation.")


def check_revision(revision: str) -> None:
    """
    Check that a repo could have a branch, tag or commit of that name.

    Raises:
        ValueError: It could not.
    """
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", revision) or ".." in revision:
        raise ValueError(
            f"revision={revision!r} is no name of a branch, tag or commit: those are of letters, digits, '_', '-' "
            "and '.', with '/' between their parts."
        )
