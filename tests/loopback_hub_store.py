"""The repos of the loopback Hub: users, files, commits and branches, without any HTTP."""

import hashlib
import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

# What the Hub's own .gitattributes sends to LFS at any size, as far as an SAE's files go.
LFS_PATTERNS = ("*.safetensors", "*.bin", "*.npz", "*.pt")
NO_FILE = "A file with this name doesn't exist"  # the client adds a hint to exactly these words


class HubError(Exception):
    """An answer that is not a success; `code` becomes the header that the client reads."""

    def __init__(self, status: int, message: str, code: str | None = None, **extra: Any):
        super().__init__(message)
        self.status, self.message, self.code, self.extra = status, message, code, extra
        self.headers: dict[str, str] = {}


@dataclass(frozen=True)
class User:
    """Who a token belongs to; `role` is the token's, so one person can have several."""

    name: str
    role: str = "write"
    organizations: tuple[str, ...] = ()

    def may_read(self, namespace: str) -> bool:
        return namespace in (self.name, *self.organizations)

    def may_write(self, namespace: str) -> bool:
        return self.role == "write" and self.may_read(namespace)


@dataclass(frozen=True)
class Blob:
    content: bytes
    lfs: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git stores in place of an LFS file."""
        version = "https://git-lfs.github.com/spec/v1"
        size = len(self.content)
        return f"version {version}\noid sha256:{self.sha256}\nsize {size}\n".encode()

    @property
    def git_oid(self) -> str:
        stored = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def etag(self) -> str:
        """What names the content to the client: in the cache, and to skip unchanged files."""
        return self.sha256 if self.lfs else self.git_oid


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    message: str
    description: str
    author: str
    tree: dict[str, Blob]

    @property
    def files(self) -> dict[str, bytes]:
        """Every file as of this commit."""
        return {path: blob.content for path, blob in sorted(self.tree.items())}


# A path with its new content, or with None to delete it; "folder/" deletes everything under it.
Change = tuple[str, Blob | None]


class Repo:
    def __init__(self, name: str, private: bool = False, author: str = "alice"):
        self.name = name
        self.private = private
        self.objects: dict[str, bytes] = {}  # what was uploaded to LFS, under the promised sha256
        self.by_sha: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        attributes = "".join(f"{p} filter=lfs diff=lfs merge=lfs -text\n" for p in LFS_PATTERNS)
        # the Hub starts every repo so
        self._append("main", None, {".gitattributes": Blob(attributes.encode())}, "initial commit")

    @property
    def namespace(self) -> str:
        return self.name.split("/")[0]

    def at(self, revision: str) -> Commit:
        """The commit of a branch, of a full sha or of the beginning of one."""
        if revision in self.branches:
            return self.by_sha[self.branches[revision]]
        found = [commit for sha, commit in self.by_sha.items() if sha.startswith(revision)]
        if len(revision) < 7 or len(found) != 1:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found[0]

    def history(self, revision: str = "main") -> list[Commit]:
        """Oldest first."""
        commits = [self.at(revision)]
        while commits[-1].parent is not None:
            commits.append(self.by_sha[commits[-1].parent])
        return commits[::-1]

    def blob(self, revision: str, path: str) -> Blob:
        commit = self.at(revision)
        if path not in commit.tree:
            error = HubError(404, "Entry not found", "EntryNotFound")
            error.headers["X-Repo-Commit"] = commit.sha  # the client caches that it is missing
            raise error
        return commit.tree[path]

    def create_branch(self, name: str, start: str = "main") -> None:
        if name in self.branches:
            raise HubError(409, "Reference already exists")
        self.branches[name] = self.at(start).sha

    def uploaded(self, oid: str, size: int | None) -> Blob:
        """The LFS object of that name, if what was sent is what was promised."""
        content = self.objects.get(oid)
        if content is None:
            raise HubError(400, "LFS pointer pointed to a file that does not exist")
        blob = Blob(content, lfs=True)
        if blob.sha256 != oid or size not in (None, len(content)):
            raise HubError(400, f"LFS object {oid} has another size or another sha256")
        return blob

    def commit(
        self,
        branch: str,
        changes: Iterable[Change],
        message: str,
        description: str = "",
        parent: str | None = None,
        author: str = "alice",
    ) -> Commit:
        """All changes or none: they are made in a copy, which becomes the head at the end."""
        if branch not in self.branches:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        head = self.at(branch)
        if parent is not None and not head.sha.startswith(parent):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(head.tree)
        for path, blob in changes:
            if blob is not None:
                tree[path] = blob
                continue
            gone = [p for p in tree if p == path or (path.endswith("/") and p.startswith(path))]
            if not gone:
                raise HubError(404, NO_FILE, "EntryNotFound")
            for name in gone:
                del tree[name]
        return self._append(branch, head.sha, tree, message, description, author)

    def _append(
        self,
        branch: str,
        parent: str | None,
        tree: dict[str, Blob],
        message: str,
        description: str = "",
        author: str = "alice",
    ) -> Commit:
        for blob in tree.values():
            if blob.lfs:
                self.objects[blob.sha256] = blob.content
        content = {path: blob.etag for path, blob in tree.items()}
        # the count keeps two commits of the same content apart; no clock, so runs are alike
        identity = [self.name, parent, content, message, len(self.by_sha)]
        sha = hashlib.sha1(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        commit = Commit(sha, parent, message, description, author, tree)
        self.by_sha[sha] = commit
        self.branches[branch] = sha
        return commit


@dataclass
class Store:
    """Everything the Hub knows; `lock` is held while a request is answered."""

    users: dict[str, User]
    lfs_limit: int
    lfs_patterns: tuple[str, ...] = LFS_PATTERNS
    repos: dict[str, Repo] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def create(self, name: str, private: bool = False, author: str = "alice") -> Repo:
        if name in self.repos:
            raise HubError(409, "You already created this model repo")
        self.repos[name] = Repo(name, private, author)
        return self.repos[name]

    def is_lfs(self, path: str, size: int) -> bool:
        name = path.split("/")[-1]
        return size > self.lfs_limit or any(fnmatch(name, p) for p in self.lfs_patterns)


def is_ignored(path: str, gitignore: str) -> bool:
    """The simple half of .gitignore: exact names and paths, and patterns such as *.ext."""
    patterns = [line.strip() for line in gitignore.splitlines()]
    patterns = [line.lstrip("/") for line in patterns if line and not line.startswith("#")]
    names = (path, path.split("/")[-1])
    return any(fnmatch(name, pattern) for name in names for pattern in patterns)


def about_file(path: str, blob: Blob) -> dict[str, Any]:
    about = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.git_oid}
    if blob.lfs:
        lfs = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}
        about["lfs"] = lfs
    return about


def about_folder(path: str) -> dict[str, Any]:
    oid = hashlib.sha1(path.encode()).hexdigest()  # no one compares it
    return {"type": "directory", "path": path, "size": 0, "oid": oid}


def folders(commit: Commit) -> set[str]:
    parts = [path.split("/")[:-1] for path in commit.tree]
    return {"/".join(p[: n + 1]) for p in parts for n in range(len(p))}
