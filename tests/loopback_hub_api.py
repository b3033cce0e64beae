"""The endpoints of the loopback Hub: a request in, an answer out, no sockets.

Which calls there are, what they carry and which fields of an answer are read is taken from the
client `huggingface_hub`; the words of errors are the Hub's own where the client or its users see
them.
"""

import base64
import hashlib
import json
import re
from typing import Any
from urllib.parse import parse_qs, unquote

import yaml
from loopback_hub_http import ROUTES, Answer, Request, answer, refusal, route, signature
from loopback_hub_store import (
    Blob,
    Change,
    HubError,
    Repo,
    Store,
    User,
    about_file,
    about_folder,
    folders,
    is_ignored,
)

REPO = r"(?P<repo>[^/]+/[^/]+?)"
REVISION = r"(?P<revision>[^/]+)"  # quoted, so a branch with a slash is one segment
MODEL = f"/api/models/{REPO}"
DATE = "2026-01-01T00:00:00.000Z"


class Api:
    def __init__(self, store: Store):
        self.store = store

    def handle(self, request: Request) -> Answer:
        method = "GET" if request.method == "HEAD" else request.method  # the server cuts the body
        try:
            for verb, pattern, handler in ROUTES:
                match = pattern.fullmatch(request.path)
                if verb == method and match:
                    groups = {k: unquote(v) for k, v in match.groupdict().items() if v is not None}
                    with self.store.lock:
                        return handler(self, request, **groups)
            raise HubError(404, "Sorry, we can't find the page you are looking for.")
        except HubError as error:
            return refusal(error)

    # --- rights

    def user(self, request: Request) -> User | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if not scheme:
            return None
        if scheme != "Bearer" or token not in self.store.users:
            # even where no token is needed
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.store.users[token]

    def known_user(self, request: Request, code: str | None = None) -> User:
        user = self.user(request)
        if user is None:
            raise HubError(401, "Invalid username or password.", code)
        return user

    def readable(self, request: Request, name: str) -> Repo:
        user = self.user(request)
        repo = self.store.repos.get(name)
        if repo and (not repo.private or (user and user.may_read(repo.namespace))):
            return repo
        # A private repo looks like one that is not there. Without a token the Hub says 401 to both.
        # The client takes any 401 from an https address of a repo for this code; our address is
        # http, so we have to send it for the client to raise the same exception.
        self.known_user(request, "RepoNotFound")
        raise HubError(404, "Repository not found", "RepoNotFound")

    def writable(self, request: Request, name: str) -> Repo:
        if "create_pr" in request.query:
            raise HubError(501, "there are no pull requests here")  # rather than a plain commit
        repo = self.readable(request, name)
        self.check_writer(self.known_user(request, "RepoNotFound"), repo.namespace)
        return repo

    def check_writer(self, user: User, namespace: str) -> None:
        if user.role != "write":
            words = "Forbidden: you must use a write token to upload to a repository."
            raise HubError(403, words)
        if not user.may_write(namespace):
            words = "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request"
            raise HubError(403, words)

    # --- repos

    @route("GET", "/api/whoami-v2")
    def whoami(self, request: Request) -> Answer:
        user = self.known_user(request)
        organizations = [{"type": "org", "name": name} for name in user.organizations]
        token = {"type": "access_token", "accessToken": {"displayName": "t", "role": user.role}}
        about = {"type": "user", "name": user.name, "fullname": user.name}
        return answer({**about, "orgs": organizations, "auth": token})

    @route("POST", "/api/repos/create")
    def create(self, request: Request) -> Answer:
        user = self.known_user(request)
        asked = request.json
        namespace = asked.get("organization") or user.name
        if not user.may_write(namespace):
            words = (
                f'You don\'t have the rights to create a model under the namespace "{namespace}"'
            )
            raise HubError(403, words)
        name = f"{namespace}/{asked['name']}"
        url = f"{request.endpoint}/{name}"
        # newer clients send the visibility, older ones send private
        private = asked.get("visibility") == "private" or asked.get("private") is True
        try:
            self.store.create(name, private, user.name)
        except HubError as error:
            error.extra["url"] = url  # with exist_ok, the client goes on with this
            raise
        return answer({"url": url, "name": name})

    @route("POST", f"{MODEL}/branch/(?P<branch>[^/]+)")
    def create_branch(self, request: Request, repo: str, branch: str) -> Answer:
        self.writable(request, repo).create_branch(
            branch, request.json.get("startingPoint", "main")
        )
        return answer({"success": True})

    @route("GET", f"{MODEL}(/revision/{REVISION})?")
    def info(self, request: Request, repo: str, revision: str = "main") -> Answer:
        found = self.readable(request, repo)
        commit = found.at(revision)
        siblings: list[dict[str, Any]] = []
        for path, blob in sorted(commit.tree.items()):
            siblings.append({"rfilename": path})
            if request.flag("blobs"):
                about = about_file(path, blob)
                siblings[-1] |= {"size": about["size"], "blobId": about["oid"]}
                if blob.lfs:
                    siblings[-1]["lfs"] = {**about["lfs"], "sha256": blob.sha256}
        about = {"id": repo, "modelId": repo, "author": found.namespace, "sha": commit.sha}
        about |= {"private": found.private, "gated": False, "disabled": False, "tags": []}
        dates = {"lastModified": DATE, "createdAt": DATE, "downloads": 0, "likes": 0}
        return answer({**about, **dates, "siblings": siblings})

    @route("GET", f"{MODEL}/refs")
    def refs(self, request: Request, repo: str) -> Answer:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
            for name, sha in self.readable(request, repo).branches.items()
        ]
        return answer({"branches": branches, "tags": [], "converts": [], "pullRequests": []})

    @route("GET", f"{MODEL}/commits/{REVISION}")
    def commits(self, request: Request, repo: str, revision: str) -> Answer:
        history = self.readable(request, repo).history(revision)
        return answer(
            [
                {"id": c.sha, "title": c.message, "message": c.description, "date": DATE}
                | {"authors": [{"user": c.author}]}
                for c in reversed(history)
            ]
        )

    # --- files

    @route("GET", f"{MODEL}/tree/{REVISION}(/(?P<path>.+))?")
    def tree(self, request: Request, repo: str, revision: str, path: str = "") -> Answer:
        commit = self.readable(request, repo).at(revision)
        prefix = f"{path}/" if path else ""
        entries = [about_folder(name) for name in sorted(folders(commit))]
        entries += [about_file(name, blob) for name, blob in sorted(commit.tree.items())]
        below = [entry for entry in entries if entry["path"].startswith(prefix)]
        if path and not below:
            raise HubError(404, f"{path} does not exist", "EntryNotFound")
        if not request.flag("recursive"):
            below = [entry for entry in below if "/" not in entry["path"][len(prefix) :]]
        return answer(below)

    @route("POST", f"{MODEL}/paths-info/{REVISION}")
    def paths_info(self, request: Request, repo: str, revision: str) -> Answer:
        commit = self.readable(request, repo).at(revision)
        asked = parse_qs(request.body.decode()).get("paths", [])
        files = [about_file(path, commit.tree[path]) for path in asked if path in commit.tree]
        return answer(files + [about_folder(path) for path in asked if path in folders(commit)])

    # the names of models without a namespace are asked for here too, and not found
    @route("GET", f"/(?P<repo>[^/]+(/[^/]+)?)/resolve/{REVISION}/(?P<path>.+)")
    def resolve(self, request: Request, repo: str, revision: str, path: str) -> Answer:
        found = self.readable(request, repo)
        blob = found.blob(revision, path)
        headers = {"ETag": f'"{blob.etag}"', "X-Repo-Commit": found.at(revision).sha}
        headers |= {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if blob.lfs:  # the Hub would redirect to its storage; these two stand in that redirect
            headers |= {
                "X-Linked-Etag": f'"{blob.sha256}"',
                "X-Linked-Size": str(len(blob.content)),
            }
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if not part:
            return Answer(200, blob.content, headers)
        size = len(blob.content)
        first, last = int(part[1]), min(int(part[2] or size), size - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        return Answer(206, blob.content[first : last + 1], headers)

    # --- uploads

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self, request: Request) -> Answer:
        card = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", request.json["content"].lstrip(), re.DOTALL)
        if not card:
            words = "empty or missing yaml metadata in repo card"
            return answer({"warnings": [{"message": words}], "errors": []})
        try:
            metadata = yaml.safe_load(card[1])
            problem = None if isinstance(metadata, dict | None) else "metadata must be a mapping"
        except yaml.YAMLError as error:
            problem = f"not valid YAML: {error}"
        errors = [{"message": problem}] if problem else []
        return answer({"warnings": [], "errors": errors}, 400 if errors else 200)

    @route("POST", f"{MODEL}/preupload/{REVISION}")
    def preupload(self, request: Request, repo: str, revision: str) -> Answer:
        commit = self.writable(request, repo).at(revision)
        ignored = request.json.get("gitIgnore")  # one that is about to be committed goes first
        if ignored is None and ".gitignore" in commit.tree:
            ignored = commit.tree[".gitignore"].content.decode()
        files = [
            {
                "path": asked["path"],
                "uploadMode": "lfs"
                if self.store.is_lfs(asked["path"], asked["size"])
                else "regular",
                "shouldIgnore": is_ignored(asked["path"], ignored or ""),
                "oid": commit.tree[asked["path"]].etag if asked["path"] in commit.tree else None,
            }
            for asked in request.json["files"]
        ]
        return answer({"files": files})

    @route("POST", rf"/{REPO}\.git/info/lfs/objects/batch")
    def lfs_batch(self, request: Request, repo: str) -> Answer:
        found = self.writable(request, repo)
        objects: list[dict[str, Any]] = []
        for asked in request.json["objects"]:
            oid = asked["oid"]
            objects.append({"oid": oid, "size": asked["size"], "authenticated": True})
            if hashlib.sha256(found.objects.get(oid, b"")).hexdigest() != oid:
                upload = f"{request.endpoint}/lfs-storage/{repo}/{oid}?Signature="
                verify = f"{request.endpoint}/{repo}.git/info/lfs/objects/verify"
                actions = {"upload": {"href": upload + signature(repo, oid)}}
                objects[-1]["actions"] = {**actions, "verify": {"href": verify}}
        return answer({"transfer": "basic", "objects": objects})

    @route("PUT", f"/lfs-storage/{REPO}/(?P<oid>[0-9a-f]+)")
    def lfs_put(self, request: Request, repo: str, oid: str) -> Answer:
        if request.query.get("Signature") != [signature(repo, oid)]:
            raise HubError(403, "SignatureDoesNotMatch")
        if "authorization" in request.headers:
            raise HubError(400, "Only one auth mechanism allowed")  # a storage, not the Hub
        self.store.repos[repo].objects[oid] = request.body  # whether it is what it says comes later
        return Answer()

    @route("POST", rf"/{REPO}\.git/info/lfs/objects/verify")
    def lfs_verify(self, request: Request, repo: str) -> Answer:
        asked = request.json
        self.writable(request, repo).uploaded(asked["oid"], asked["size"])
        return answer({"success": True})

    @route("POST", f"{MODEL}/commit/{REVISION}")
    def commit(self, request: Request, repo: str, revision: str) -> Answer:
        found = self.writable(request, repo)
        lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        changes = [change_of(found, line) for line in lines if line["key"] != "header"]
        words = (header["summary"], header.get("description", ""), header.get("parentCommit"))
        author = self.known_user(request).name
        made = found.commit(revision, changes, *words, author=author)
        url = f"{request.endpoint}/{repo}/commit/{made.sha}"
        return answer({"success": True, "commitOid": made.sha, "commitUrl": url, "hookOutput": ""})


def change_of(repo: Repo, line: dict[str, Any]) -> Change:
    key, value = line["key"], line["value"]
    path = value["path"]
    if key == "file":
        return path, Blob(base64.b64decode(value["content"]))
    if key == "lfsFile":
        return path, repo.uploaded(value["oid"], value.get("size"))
    if key == "deletedFile":
        return path, None
    if key == "deletedFolder":
        return path.rstrip("/") + "/", None
    raise HubError(400, f"unknown operation {key}")
