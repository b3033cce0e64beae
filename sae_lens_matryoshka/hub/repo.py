"""Where SAEs are published to: a repo of the Hub, or a folder that stands for one."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from typing_extensions import override

from sae_lens_matryoshka import __version__
from sae_lens_matryoshka.hub.card import MAIN
from sae_lens_matryoshka.hub.tokens import without_token

CONFLICTS = (409, 412)  # somebody else has committed since
# the bases are the errors of whichever HTTP library the client is built on
_BROKE_OFF = cast(tuple[type[Exception], ...], (*HfHubHTTPError.__bases__, OSError, RuntimeError))


class PublishError(RuntimeError):
    """The Hub refused, or broke off; never with a part of the files published."""


class SomebodyElseCommitted(Exception):
    """The repo is not as it was when the commit was prepared."""


class Repo(ABC):
    """A repo at one moment: what it holds, and how to change that in one step."""

    revision: str = MAIN

    @abstractmethod
    def create_if_missing(self) -> None:
        """
        Make the repo if there is none.

        Raises:
            PublishError: It cannot be made or used.
        """

    @abstractmethod
    def files(self) -> list[str]:
        """Paths of everything that it holds."""

    @abstractmethod
    def read(self, path: str) -> str:
        """The text of one of its files."""

    @abstractmethod
    def commit(self, tree: Path, removed: Sequence[str], message: str) -> str:
        """
        Add the files of a folder and remove others: on the Hub all or nothing.

        Args:
            tree: Folder whose files are added under their paths in it.
            removed: Paths to remove.
            message: What is done.

        Returns:
            Where to look at it.

        Raises:
            SomebodyElseCommitted: The repo has changed since `files` was called.
        """


class HubRepo(Repo):
    """
    A model repo of the Hub. The token is the one that the Hub's own tools find.

    Args:
        repo_id: "user/name".
        revision: The branch to publish to; other than main, it must be there.
        private: Whether a new repo is to be private.
    """

    def __init__(self, repo_id: str, revision: str, private: bool):
        self.repo_id, self.revision, self.private = repo_id, revision, private
        self.api = HfApi(library_name="sae-lens-matryoshka", library_version=__version__)
        self.head: str | None = None

    @override
    def create_if_missing(self) -> None:
        with _explained(self.repo_id):
            try:
                is_private = self.api.repo_info(self.repo_id).private
            except RepositoryNotFoundError:
                if self.revision != MAIN:
                    raise PublishError(
                        f"revision={self.revision!r}: there is no repo {self.repo_id} yet, and a new one "
                        f"has the branch {MAIN!r} only. Publish there."
                    ) from None
                # None: the rule of the user or organisation
                self.api.create_repo(self.repo_id, private=self.private or None, exist_ok=True)
                return
        if self.private and not is_private:
            raise PublishError(
                f"private=True, but {self.repo_id} is public already. Make it private in its settings, "
                "or choose another repo_id."
            )

    @override
    def files(self) -> list[str]:
        with _explained(self.repo_id):
            try:
                info = self.api.repo_info(self.repo_id, revision=self.revision)
            except RevisionNotFoundError:
                raise PublishError(
                    f"revision={self.revision!r}: {self.repo_id} has no such branch. Make it first, or "
                    f"publish to {MAIN!r}."
                ) from None
            self.head = info.sha
            return self.api.list_repo_files(self.repo_id, revision=self.head)

    @override
    def read(self, path: str) -> str:
        with _explained(self.repo_id):
            file = hf_hub_download(self.repo_id, path, revision=self.head)
        return Path(file).read_text(encoding="utf-8-sig")

    @override
    def commit(self, tree: Path, removed: Sequence[str], message: str) -> str:
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path.relative_to(tree).as_posix(), path)
            for path in files_below(tree)
        ]
        operations += [CommitOperationDelete(path) for path in removed]
        try:
            with _explained(self.repo_id):
                return str(self._create_commit(operations, message))
        except PublishError as error:
            raise PublishError(f"{error} {self._what_became_of_it()}") from None

    def _create_commit(
        self, operations: list[CommitOperationAdd | CommitOperationDelete], message: str
    ) -> str:
        try:
            return self.api.create_commit(
                self.repo_id,
                operations,
                commit_message=message,
                revision=self.revision,
                parent_commit=self.head,
            ).commit_url
        except HfHubHTTPError as error:
            if error.response.status_code in CONFLICTS:
                raise SomebodyElseCommitted from None
            raise
        except ValueError as error:  # of the card's front matter
            raise PublishError(f"The Hub refuses the card: {error}") from None

    def _what_became_of_it(self) -> str:
        try:
            head = self.api.repo_info(self.repo_id, revision=self.revision).sha
        except _BROKE_OFF:
            head = None
        if head == self.head:
            return "The repo is as it was: the files come in one commit, and that is not there."
        return "Whether the commit arrived is not known. Publish again: that changes nothing where it did."


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Say what the Hub's errors mean for publishing; the token never shows."""
    try:
        yield
    except PublishError:
        raise
    except HfHubHTTPError as error:
        text = without_token(str(error))
        raise PublishError(_with_hint(repo_id, error.response.status_code, text)) from None
    except _BROKE_OFF as error:
        raise PublishError(f"The exchange with the Hub broke off ({_chain(error)}).") from None


def _with_hint(repo_id: str, status: int, text: str) -> str:
    if status == 401:
        return (
            f"The Hub does not know the token, or there is none ({text}). Log in with `hf auth login`, "
            "or set HF_TOKEN."
        )
    if status == 403:
        return (
            f"The token may not write to {repo_id} ({text}). Use a token with write access, and a "
            "repo_id of a user or organisation that it belongs to."
        )
    return f"The Hub answered with status {status} ({text})."


def _chain(error: BaseException) -> str:
    """An error and its cause: the client names a file, its cause says what happened."""
    own = f"{type(error).__name__}: {error}"
    cause = error.__cause__
    if cause is not None and str(cause) not in own:
        own = f"{own} {type(cause).__name__}: {cause}"
    return without_token(own)


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())
