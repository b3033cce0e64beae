"""What goes in and out of the endpoints of the loopback Hub, and the table of them."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from loopback_hub_store import HubError

BEARER = 'Bearer realm="Authentication required"'


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Request:
    method: str
    target: str  # path and query, as sent
    headers: dict[str, str]  # names in lower case
    body: bytes
    endpoint: str

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[0].lower() in ("true", "1")

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")


def answer(data: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(status, json.dumps(data).encode(), {"Content-Type": "application/json"} | headers)


def refusal(error: HubError) -> Answer:
    result = answer({"error": error.message, **error.extra}, error.status)
    result.headers |= {"X-Error-Message": error.message, **error.headers}
    if error.code:
        result.headers["X-Error-Code"] = error.code
    if error.status == 401:
        result.headers["WWW-Authenticate"] = BEARER
    return result


Handler = Callable[..., Answer]
ROUTES: list[tuple[str, re.Pattern[str], Handler]] = []


def route(method: str, pattern: str) -> Callable[[Handler], Handler]:
    def add(handler: Handler) -> Handler:
        ROUTES.append((method, re.compile(pattern), handler))
        return handler

    return add


def signature(repo: str, oid: str) -> str:
    """Of the address that an LFS object is sent to; deterministic, as all here."""
    return hashlib.sha256(f"signed {repo} {oid}".encode()).hexdigest()[:16]
