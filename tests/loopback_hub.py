"""A Hugging Face Hub of its own on the loopback, for the real client: model repos, LFS, faults.

    with LoopbackHub() as hub:
        hub.patch_client(monkeypatch, tmp_path / "home", WRITER)
        HfApi().create_repo("alice/sae", private=True)
        hub.fail("POST", "/commit/", status=503)  # the next such request is answered so
        hub.before_commit = lambda: hub.commit("alice/sae", {"notes.txt": b"a rival's"})
        ...
        assert hub.files("alice/sae") == {...}

Xet has no part in it: the client has to be told HF_HUB_DISABLE_XET, as `environment` and
`patch_client` do.
"""

import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from loopback_hub_api import Api
from loopback_hub_http import Answer, Request, answer
from loopback_hub_store import LFS_PATTERNS, Blob, Commit, Repo, Store, User

WRITER = "hf_alice"  # may write to "alice" and to the organization "lab"
READER = "hf_alice_read"  # the same person with a token for reading
STRANGER = "hf_bob"  # may write to "bob"


def default_users() -> dict[str, User]:
    alice = User("alice", organizations=("lab",))
    return {WRITER: alice, READER: User("alice", "read", ("lab",)), STRANGER: User("bob")}


class Sent(NamedTuple):
    """One request as it came in; `path` with its query, names of headers in lower case."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Fault:
    method: str
    path: re.Pattern[str]
    times: int
    status: int | None  # None: the connection is closed instead
    headers: dict[str, str] = field(default_factory=dict)
    applied: bool = False  # the request does its work, only its answer is lost


class LoopbackHub:
    """`users` maps tokens to who they belong to; LFS begins above `lfs_limit` bytes."""

    def __init__(
        self,
        users: Mapping[str, User] | None = None,
        lfs_limit: int = 10_000_000,
        lfs_patterns: tuple[str, ...] = LFS_PATTERNS,
    ):
        self.store = Store(dict(users or default_users()), lfs_limit, lfs_patterns)
        self.requests: list[Sent] = []
        self.waits: list[float] = []  # what the patched client would have slept
        self.before_commit: Callable[[], Any] | None = None
        self.problems: list[BaseException] = []  # of this double itself
        self._faults: list[Fault] = []
        self._api = Api(self.store)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Connection)
        self._server.hub = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "LoopbackHub":
        serve = self._server.serve_forever
        threading.Thread(
            target=serve, args=(0.01,), daemon=True
        ).start()  # 0.01 s to notice the end
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        if self.problems and kind is None:
            raise self.problems[0]

    # --- what is there, and another publisher's hand

    def repo(self, name: str) -> Repo:
        return self.store.repos[name]

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        return self.repo(name).at(revision).files

    def commits(self, name: str, revision: str = "main") -> list[Commit]:
        """Oldest first; the first one is the Hub's own, with .gitattributes."""
        return self.repo(name).history(revision)

    def create(self, name: str, private: bool = False) -> Repo:
        return self.store.create(name, private)

    def commit(
        self,
        name: str,
        files: Mapping[str, bytes] | None = None,
        delete: Iterable[str] = (),
        message: str = "another commit",
        branch: str = "main",
    ) -> Commit:
        """A commit that takes no request."""
        changes = [(path, None) for path in delete]
        changes += [
            (path, Blob(content, self.store.is_lfs(path, len(content))))
            for path, content in (files or {}).items()
        ]
        with self.store.lock:
            return self.repo(name).commit(branch, changes, message)

    def sent(self, method: str, path: str) -> list[Sent]:
        """The requests so far whose path and query match."""
        return [s for s in self.requests if s.method == method and re.search(path, s.path)]

    # --- faults

    def fail(
        self,
        method: str,
        path: str,
        status: int = 500,
        times: int = 1,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answer the next `times` matching requests with that status, and do nothing for them."""
        self._faults.append(Fault(method, re.compile(path), times, status, dict(headers or {})))

    def drop(self, method: str, path: str, times: int = 1, applied: bool = False) -> None:
        """Close the connection of the next `times` matching requests without an answer.

        A body is read by half first, so an upload breaks off in the middle. With `applied` the
        request is read and does its work, and only then the connection is closed.
        """
        self._faults.append(Fault(method, re.compile(path), times, None, applied=applied))

    def heal(self) -> None:
        """No more faults."""
        self._faults.clear()

    def _next_fault(self, method: str, path: str) -> Fault | None:
        with self.store.lock:
            for fault in self._faults:
                if fault.times > 0 and fault.method == method and fault.path.search(path):
                    fault.times -= 1
                    return fault
        return None

    def _handle(self, request: Request) -> Answer:
        try:
            if request.method == "POST" and "/commit/" in request.path:
                with self.store.lock:
                    hook, self.before_commit = self.before_commit, None
                if hook:  # without the lock: it may well send requests of its own
                    hook()
            return self._api.handle(request)
        except Exception as error:
            self.problems.append(error)
            return answer({"error": repr(error)}, 501)  # a status that the client does not retry

    # --- clients

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """What another process needs in its environment to use this Hub and nothing else.

        A client there waits between attempts, 1, 2, 4, 8 and 8 seconds, and no variable shortens
        that: let a subprocess meet one fault at most.
        """
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HUGGINGFACE_HUB_CACHE": str(home / "hub"),
            "HF_ASSETS_CACHE": str(home / "assets"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_TOKEN": token or "",  # empty counts as none, and hides one from outside
            "HUGGING_FACE_HUB_TOKEN": "",
            "HF_OIDC_RESOURCE": "",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "10",
            "HF_HUB_ETAG_TIMEOUT": "10",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def patch_client(
        self, monkeypatch: pytest.MonkeyPatch, home: Path, token: str | None = None
    ) -> None:
        """Point the client that this process has imported at this Hub, until the test is over."""
        # modules that copy constants or hold state, so that they are there to be patched
        from huggingface_hub import constants, file_download, hf_api
        from huggingface_hub.utils import _http

        for name, value in self.environment(home, token).items():
            monkeypatch.setenv(name, value)
        values: dict[str, Any] = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_URL_HOSTS": getattr(constants, "HF_URL_HOSTS", frozenset()) | {"127.0.0.1"},
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HUGGINGFACE_HUB_CACHE": str(home / "hub"),
            "HF_ASSETS_CACHE": str(home / "assets"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
        }
        # Most of the client reads them as `constants.NAME` at every call; some modules, also of
        # other packages, have copies from when they were imported.
        before = {name: vars(constants)[name] for name in values if name in vars(constants)}
        for module in list(sys.modules.values()):
            for name, old in before.items():
                copy = vars(module).get(name) if hasattr(module, "__dict__") else None
                if type(copy) is type(old) and copy == old:
                    monkeypatch.setattr(module, name, values[name])
        # `huggingface_hub.create_repo` and the like are methods of this one object
        monkeypatch.setattr(hf_api.api, "endpoint", self.url)
        monkeypatch.setattr(hf_api.api, "_whoami_cache", {}, raising=False)

        # The session: a new one now, and the old one back afterwards. Before 1.0 it is a cached
        # function's.
        monkeypatch.setattr(_http, "_GLOBAL_CLIENT", None, raising=False)
        getattr(_http, "reset_sessions", lambda: None)()

        # The waits between attempts are default arguments, base_wait_time and max_wait_time of
        # `http_backoff`, and a bare second in `http_get`: no constant sets them, so the two
        # modules get a clock that does not wait.
        clock = SimpleNamespace(**{**vars(time), "sleep": self.waits.append})
        for module in (_http, file_download):
            if hasattr(module, "time"):
                monkeypatch.setattr(module, "time", clock)


class _Connection(BaseHTTPRequestHandler):
    """One request per connection, so none outlives the server and every answer has an end."""

    protocol_version = "HTTP/1.1"

    def _respond(self) -> None:
        hub: LoopbackHub = self.server.hub  # type: ignore[attr-defined]
        headers = {name.lower(): value for name, value in self.headers.items()}
        hub.requests.append(Sent(self.command, self.path, headers))
        fault = hub._next_fault(self.command, self.path)
        if fault and fault.status is None and not fault.applied:
            self.rfile.read(int(headers.get("content-length", 0)) // 2)
            return self._hang_up()
        request = Request(self.command, self.path, headers, self._body(headers), hub.url)
        if fault and fault.status is not None:
            result = answer({"error": "a fault that the test asked for"}, fault.status)
            result.headers |= fault.headers
        else:
            result = hub._handle(request)
        if fault and fault.status is None:
            return self._hang_up()
        self.send_response(result.status)
        for name, value in result.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(result.body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(result.body)
        return None

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _respond

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: Any) -> None:
        pass
