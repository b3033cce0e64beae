"""The loopback Hub against the real client: what the tests of publishing rely on."""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    create_repo,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import _http
from loopback_hub import READER, STRANGER, WRITER, LoopbackHub
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.loading.pretrained_sae_loaders import get_safetensors_tensor_shapes

REPO = "alice/sae"
SMALL = b'{"d_in": 4}'
LARGE = bytes(range(256)) * 8
CARD = b"---\nlibrary_name: saelens\n---\n\n# An SAE\n"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with LoopbackHub(lfs_limit=1000) as hub:
        hub.patch_client(monkeypatch, tmp_path / "home", WRITER)
        yield hub


def add(**files: bytes) -> list[Any]:
    """Operations for the client; a name's double underscore stands for a slash."""
    return [CommitOperationAdd(n.replace("__", "/"), content) for n, content in files.items()]


def commit(operations: list[Any], **options: Any) -> Any:
    return HfApi().create_commit(REPO, operations, commit_message="a commit", **options)


@contextmanager
def refused(
    status: int, words: str | None = None, kind: type[Exception] = HfHubHTTPError
) -> Iterator[None]:
    with pytest.raises(kind, match=words) as error:
        yield
    assert error.value.response.status_code == status


def test_files_go_there_and_come_back(hub: LoopbackHub) -> None:
    assert create_repo(REPO, private=True).repo_id == REPO
    assert hub.repo(REPO).private
    made = commit(add(cfg=SMALL, a__weights=LARGE))

    api = HfApi()
    assert hub.files(REPO).items() >= {("cfg", SMALL), ("a/weights", LARGE)}
    assert [c.sha for c in hub.commits(REPO)][1:] == [made.oid]
    assert api.list_repo_files(REPO) == [".gitattributes", "a/weights", "cfg"]
    assert api.file_exists(REPO, "cfg") and not api.file_exists(REPO, "cgf")
    assert api.repo_info(REPO).sha == made.oid and api.model_info(REPO).private
    assert [c.title for c in api.list_repo_commits(REPO)] == ["a commit", "initial commit"]

    for name, content in (("cfg", SMALL), ("a/weights", LARGE)):
        path = Path(hf_hub_download(REPO, name))
        assert path.read_bytes() == content
        assert path.parts[-len(Path(name).parts) - 1] == made.oid
    folder = Path(snapshot_download(REPO))
    assert (folder / "a/weights").read_bytes() == LARGE and folder.name == made.oid

    tree = {entry.path: entry for entry in api.list_repo_tree(REPO, recursive=True)}
    assert tree["a/weights"].lfs.size == len(LARGE) and tree["cfg"].lfs is None
    assert set(tree) == {".gitattributes", "a", "a/weights", "cfg"}
    assert [entry.path for entry in api.get_paths_info(REPO, ["cfg", "a", "none"])] == ["cfg", "a"]
    info = api.repo_info(REPO, files_metadata=True)
    assert {s.rfilename: s.size for s in info.siblings or []}["a/weights"] == len(LARGE)


def test_lfs_object_travels_alone(hub: LoopbackHub) -> None:
    hub.create(REPO)
    commit(add(weights=LARGE))
    (put,) = hub.sent("PUT", "^/lfs-storage/alice/sae/")
    assert "authorization" not in put.headers  # the address is signed
    (posted,) = hub.sent("POST", "/commit/main$")
    assert int(posted.headers["content-length"]) < len(LARGE)

    commit(add(copy=LARGE))  # already there
    assert len(hub.sent("PUT", "")) == 1
    commit(add(copy=LARGE))  # unchanged: the client sends no commit
    assert len(hub.commits(REPO)) == 3

    commit([CommitOperationAdd("tiny.safetensors", b"tiny")])  # as .gitattributes says
    assert len(hub.sent("PUT", "")) == 2


def test_lfs_object_has_to_be_what_was_promised(hub: LoopbackHub) -> None:
    hub.create(REPO)
    operations = add(weights=LARGE)
    HfApi().preupload_lfs_files(REPO, operations)
    for broken in ({operations[0].upload_info.sha256.hex(): LARGE[::-1]}, {}):
        hub.repo(REPO).objects = broken
        with refused(400):
            commit(operations)
    assert len(hub.commits(REPO)) == 1


def test_second_commit_deletes(hub: LoopbackHub) -> None:
    hub.create(REPO)
    first = commit(add(cfg=SMALL, old__a=SMALL, old__b=LARGE))
    gone = [CommitOperationDelete("cfg"), CommitOperationDelete("old/")]
    commit([*gone, *add(new=b"new")], parent_commit=first.oid[:10])
    assert set(hub.files(REPO)) == {".gitattributes", "new"}
    assert set(HfApi().list_repo_files(REPO, revision=first.oid)) > {"cfg", "old/a", "old/b"}

    with pytest.raises(EntryNotFoundError, match="doesn't exist"):  # all or nothing
        commit([*add(newer=b""), CommitOperationDelete("cfg")])
    assert "newer" not in hub.files(REPO)


def test_branches(hub: LoopbackHub) -> None:
    hub.create(REPO)
    commit(add(cfg=SMALL))
    api = HfApi()
    api.create_branch(REPO, branch="v/1")
    api.create_branch(REPO, branch="v/1", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="already exists"):
        api.create_branch(REPO, branch="v/1")
    commit(add(cfg=b"new"), revision="v/1")
    assert hub.files(REPO)["cfg"] == SMALL and hub.files(REPO, "v/1")["cfg"] == b"new"
    assert Path(hf_hub_download(REPO, "cfg", revision="v/1")).read_bytes() == b"new"
    assert {b.name for b in api.list_repo_refs(REPO).branches} == {"main", "v/1"}
    for call in (api.repo_info, snapshot_download, api.list_repo_files):
        with pytest.raises(RevisionNotFoundError):
            call(REPO, revision="none")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(REPO, "none")


def test_another_publisher_in_between(hub: LoopbackHub) -> None:
    hub.create(REPO)
    head = HfApi().repo_info(REPO).sha
    hub.before_commit = lambda: hub.commit(REPO, {"theirs": b"x"})
    with refused(412, "A commit has happened since"):
        commit(add(cfg=SMALL), parent_commit=head)
    assert set(hub.files(REPO)) == {".gitattributes", "theirs"}

    hub.before_commit = lambda: commit(add(theirs=b"y"))  # by way of the client too; runs once
    commit(add(cfg=SMALL))
    assert [sorted(c.files)[1:] for c in hub.commits(REPO)[1:]] == [
        ["theirs"],
        ["theirs"],
        ["cfg", "theirs"],
    ]


def test_repo_exists_already(hub: LoopbackHub) -> None:
    create_repo(REPO)
    assert not hub.repo(REPO).private
    with refused(409, "You already created this model repo"):
        create_repo(REPO)
    assert create_repo(REPO, exist_ok=True).repo_id == REPO
    assert create_repo("lab/sae").repo_id == "lab/sae"
    assert HfApi().whoami()["name"] == "alice"
    # no right to create, but there it is
    assert create_repo(REPO, exist_ok=True, token=STRANGER).repo_id == REPO


def test_rights(hub: LoopbackHub) -> None:
    hub.create(REPO)
    for token in (READER, STRANGER):
        with refused(403, "Forbidden"):
            commit(add(cfg=SMALL), token=token)
    with refused(403, "rights to create a model"):
        create_repo("alice/other", token=STRANGER)

    with refused(401, "Invalid credentials"):
        commit(add(cfg=SMALL), token="hf_unknown")
    with refused(401, "Invalid username or password", kind=RepositoryNotFoundError):
        commit(add(cfg=SMALL), token=False)
    with refused(401):
        create_repo("alice/other", token=False)
    assert len(hub.commits(REPO)) == 1


def test_private_repo(hub: LoopbackHub) -> None:
    hub.create(REPO, private=True)
    hub.commit(REPO, {"cfg": SMALL})
    api = HfApi()
    assert Path(hf_hub_download(REPO, "cfg", token=READER)).read_bytes() == SMALL
    for token, status in ((False, 401), (STRANGER, 404)):
        for name in (REPO, "alice/none"):  # nothing tells the two apart
            with refused(status, kind=RepositoryNotFoundError):
                api.repo_info(name, token=token)
            with pytest.raises(RepositoryNotFoundError):
                hf_hub_download(name, "other", token=token)
        assert not api.file_exists(REPO, "cfg", token=token)

    hub.repo(REPO).private = False
    assert api.list_repo_files(REPO, token=False) == [".gitattributes", "cfg"]


@pytest.mark.parametrize("status", [500, 429])
def test_failing_commit_changes_nothing(hub: LoopbackHub, status: int) -> None:
    hub.create(REPO)
    hub.fail("POST", "/commit/", status=status)
    with refused(status):
        commit(add(weights=LARGE))
    assert len(hub.sent("POST", "/commit/")) == 1  # the client tries it once
    assert len(hub.commits(REPO)) == 1
    commit(add(weights=LARGE))
    assert hub.files(REPO)["weights"] == LARGE


def test_lost_answers_to_commits(hub: LoopbackHub) -> None:
    hub.create(REPO)
    for applied in (False, True):
        hub.drop("POST", "/commit/", applied=applied)
        with pytest.raises(Exception, match="disconnected|reset|closed|aborted"):
            commit(add(cfg=SMALL))
        assert ("cfg" in hub.files(REPO)) is applied


def test_dropped_upload(hub: LoopbackHub) -> None:
    hub.create(REPO)
    large = bytes(1_000_000)
    hub.drop("PUT", "/lfs-storage/")
    commit(add(weights=large))  # the client tries again, and has forgotten none of it
    assert hub.files(REPO)["weights"] == large
    assert len(hub.sent("PUT", "")) == 2 and hub.waits == [1]

    hub.drop("PUT", "/lfs-storage/", times=6)
    with pytest.raises(RuntimeError, match="Error while uploading 'other'"):
        commit(add(other=large[1:]))
    assert hub.waits == [1, 1, 2, 4, 8, 8]
    assert "other" not in hub.files(REPO)


def test_broken_downloads(hub: LoopbackHub) -> None:
    hub.create(REPO)
    hub.commit(REPO, {"cfg": SMALL})
    hub.fail("GET", "/tree/", times=2, status=503)
    assert HfApi().list_repo_files(REPO) == [".gitattributes", "cfg"]
    assert hub.waits == [1, 2]
    hub.fail("HEAD", "/resolve/", status=500, times=7)  # at first once, then with five retries
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download(REPO, "cfg")
    assert hub.waits == [1, 2, 1, 2, 4, 8, 8]
    hub.drop("GET", "/resolve/")
    assert Path(hf_hub_download(REPO, "cfg")).read_bytes() == SMALL
    assert hub.waits[7:] == [1]


def test_card_and_gitignore(hub: LoopbackHub) -> None:
    hub.create(REPO)
    commit([CommitOperationAdd("README.md", CARD)])
    with pytest.raises(ValueError, match="not valid YAML"):
        commit([CommitOperationAdd("README.md", b"---\na: [\n---\n")])
    with pytest.warns(UserWarning, match="empty or missing yaml"):
        commit([CommitOperationAdd("README.md", b"# no metadata\n")])

    hub.commit(REPO, {".gitignore": b"# notes\n*.log\nsecret\n"})
    commit(add(cfg=SMALL, secret=SMALL, a__secret=LARGE) + [CommitOperationAdd("x.log", b"x")])
    assert set(hub.files(REPO)) == {".gitattributes", ".gitignore", "README.md", "cfg"}


def test_stock_sae_lens_loads_from_it(hub: LoopbackHub, tmp_path: Path) -> None:
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=4, d_sae=8))
    torch.nn.init.normal_(sae.W_enc)
    sae.save_model(tmp_path / "saved")
    create_repo(REPO, private=True)
    HfApi().upload_folder(repo_id=REPO, folder_path=tmp_path / "saved", path_in_repo="layer_0")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = SAE.from_pretrained(REPO, "layer_0")
    assert torch.equal(loaded.W_enc, sae.W_enc)
    assert len(hub.sent("PUT", "")) == 1 and "layer_0/cfg.json" in hub.files(REPO)
    shapes = get_safetensors_tensor_shapes(REPO, "layer_0/sae_weights.safetensors")  # ranges
    assert shapes["W_enc"] == [4, 8]


def test_other_process(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.create(REPO, private=True)
    hub.commit(REPO, {"cfg": SMALL})
    code = f"from huggingface_hub import *; print(open(hf_hub_download({REPO!r}, 'cfg')).read())"
    environment = os.environ | hub.environment(tmp_path / "other", READER)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip().encode() == SMALL
    assert hub.requests[-1].headers["authorization"] == f"Bearer {READER}"
    hub.create("bob/public")
    hub.commit("bob/public", {"cfg": SMALL})
    anonymous = os.environ | hub.environment(tmp_path / "third")
    code = code.replace(REPO, "bob/public")
    subprocess.run([sys.executable, "-c", code], env=anonymous, check=True)
    assert "authorization" not in hub.requests[-1].headers


def test_client_is_as_before_afterwards(tmp_path: Path) -> None:
    def state() -> list[Any]:
        modules = [m for name, m in sorted(sys.modules.items()) if "hub" in name or "lens" in name]
        copies = [vars(module).get("HF_HUB_CACHE") for module in modules]
        session = getattr(_http, "_GLOBAL_CLIENT", None)
        return [constants.ENDPOINT, constants.HF_HUB_OFFLINE, session, HfApi().endpoint, *copies]

    before = state()
    with LoopbackHub() as hub, pytest.MonkeyPatch.context() as monkeypatch:
        hub.patch_client(monkeypatch, tmp_path, WRITER)
        assert HfApi().whoami()["name"] == "alice" and HfApi().endpoint == hub.url
    assert state() == before
    with pytest.raises(OfflineModeIsEnabled):
        HfApi().whoami(token=WRITER)
