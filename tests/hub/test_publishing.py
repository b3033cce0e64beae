"""Publishing with the real client to a Hub on the loopback, loading with the real stock SAELens."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_helpers import HOOK, WIDTHS, random_sae
from huggingface_hub import HfApi, ModelCard
from loopback_hub import READER, STRANGER, WRITER, LoopbackHub
from sae_lens import SAE

from sae_lens_matryoshka import MatryoshkaSAE
from sae_lens_matryoshka.hub import BrokenRepoError, PublishError, publish
from sae_lens_matryoshka.hub.dry_run import RECORD
from sae_lens_matryoshka.hub.level_plot import PLOT
from sae_lens_matryoshka.hub.publishing import CARD

REPO = "alice/saes"
ID = "layer_1/k_8"
FILES = {f"{ID}/cfg.json", f"{ID}/sae_weights.safetensors"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with LoopbackHub(lfs_limit=10_000) as hub:  # the weights are larger, the card is not
        hub.patch_client(monkeypatch, tmp_path / "home", WRITER)
        yield hub


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the check in a process of its own, ten seconds, where the upload is the subject."""
    monkeypatch.setattr("sae_lens_matryoshka.hub.publishing.verify", lambda *_: None)


def sae(seed: int = 0) -> Any:
    return random_sae(seed, widths=WIDTHS)


def published(hub: LoopbackHub, repo: str = REPO) -> set[str]:
    return set(hub.files(repo)) - {".gitattributes"}


def card(hub: LoopbackHub, repo: str = REPO) -> str:
    return hub.files(repo)[CARD].decode()


# ---- end to end


LOAD_WITHOUT_PLUGIN = """
import sys
sys.modules["sae_lens_matryoshka"] = None
import torch
from sae_lens import SAE
from safetensors.torch import load_file
expected = load_file(sys.argv[1])
for sae_id in sys.argv[3:]:
    sae, _, sparsity = SAE.from_pretrained_with_cfg_and_sparsity(sys.argv[2], sae_id)
    assert torch.equal(sae(expected["x"]), expected[sae_id]), sae_id
    assert (sparsity is None) == ("sparsity" not in expected), sparsity
assert sys.modules["sae_lens_matryoshka"] is None
"""


@pytest.mark.slow
def test_anyone_can_load_what_is_published(hub: LoopbackHub, tmp_path: Path):
    from safetensors.torch import save_file

    original = sae()
    original.save_model(tmp_path / "sae")
    sparsity = torch.linspace(-10, -1, WIDTHS[-1])
    save_file({"sparsity": sparsity}, tmp_path / "sae" / "sparsity.safetensors")
    (tmp_path / "sae" / "runner_cfg.json").write_text('{"lr": 0.0003}')
    before = {path: path.read_bytes() for path in (tmp_path / "sae").iterdir()}

    address = publish({ID: tmp_path / "sae"}, REPO, levels=True, license="mit")

    assert {path: path.read_bytes() for path in (tmp_path / "sae").iterdir()} == before
    assert hub.commits(REPO)[-1].sha in address
    assert len(hub.commits(REPO)) == 2  # the Hub's own, and one for everything
    x = torch.randn(30, original.cfg.d_in) * 5
    matryoshka = MatryoshkaSAE(original, WIDTHS)
    inner = WIDTHS[:-1]  # the outermost level is the SAE itself
    ids = [ID, *(f"{ID}/level_{i}_width_{w}" for i, w in enumerate(inner))]
    with torch.no_grad():
        outs = [original(x), *(matryoshka.level(i)(x) for i in range(len(inner)))]
    expected = tmp_path / "expected.safetensors"
    save_file({"x": x, "sparsity": sparsity, **dict(zip(ids, outs, strict=True))}, expected)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD_WITHOUT_PLUGIN, str(expected), REPO, *ids],
        env=os.environ | hub.environment(tmp_path / "other_home"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert published(hub) == {CARD, f"{ID}/runner_cfg.json"} | {
        f"{sae_id}/{name}"
        for sae_id in ids
        for name in ("cfg.json", "sae_weights.safetensors", "sparsity.safetensors")
    }

    # with the plugin: levels, a pinned revision
    opened = MatryoshkaSAE.from_pretrained(REPO, ID)
    assert opened.widths == tuple(WIDTHS)
    torch.testing.assert_close(opened.reconstructions(x), torch.stack([*outs[1:], outs[0]]))
    first = hub.commits(REPO)[-1].sha
    publish({ID: sae(seed=1)}, REPO)
    pinned = MatryoshkaSAE.from_pretrained(REPO, ID, revision=first)
    assert torch.equal(pinned.sae.W_dec, original.W_dec)
    newest = MatryoshkaSAE.from_pretrained(REPO, ID, force_download=True)
    assert torch.equal(newest.sae.W_dec, sae(seed=1).W_dec)


@pytest.mark.slow
@pytest.mark.usefixtures("unverified")
def test_the_code_on_the_card_runs_and_agrees(hub: LoopbackHub):
    publish({ID: sae()}, REPO, levels=True)
    x = torch.randn(30, sae().cfg.d_in) * 5
    names: dict[str, Any] = {"x": x}
    with torch.no_grad():
        for block in re.findall(r"```python\n(.*?)```", card(hub), flags=re.DOTALL):
            exec(block, names)
    inner = MatryoshkaSAE(sae(), WIDTHS).level(0)
    torch.testing.assert_close(names["x_hat"], sae()(x))
    torch.testing.assert_close(names["coarse"], inner(x))
    torch.testing.assert_close(names["level_0"](x), inner(x))
    assert names["truncated"].cfg.d_sae == WIDTHS[0] // 2


@pytest.mark.slow
def test_what_computes_something_else_is_not_published(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
):
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE

    save = JumpReLUSAE.save_model

    def save_wrong(self: Any, path: Any) -> Any:
        self.W_dec.data *= 1.001
        return save(self, path)

    monkeypatch.setattr(JumpReLUSAE, "save_model", save_wrong)
    with pytest.raises(BrokenRepoError, match="differs from the original by 1.0e-03"):
        publish({ID: sae()}, REPO)
    monkeypatch.setattr(
        JumpReLUSAE, "save_model", lambda self, path: (save(self, path), _spoil(Path(path)))
    )
    with pytest.raises(BrokenRepoError, match="cannot load 'layer_1/k_8': KeyError.*nobodys"):
        publish({ID: sae()}, REPO)
    assert not hub.requests


def _spoil(folder: Path) -> None:
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**cfg, "architecture": "nobodys"}))


# ---- what is in the repo afterwards


@pytest.mark.usefixtures("unverified")
class TestRepublishing:
    def test_others_stay_and_the_card_lists_all(self, hub):
        publish({"a": sae()}, REPO, license="mit")
        hub.commit(REPO, {"notes/figure.txt": b"by hand"})
        publish({"b": sae(1), "c": sae(2)}, REPO)
        assert {"a/cfg.json", "b/cfg.json", "c/cfg.json", "notes/figure.txt"} < published(hub)
        assert len(hub.commits(REPO)) == 4
        for sae_id in ("`a`", "`b`", "`c`"):
            assert sae_id in card(hub)
        assert ModelCard(card(hub)).data.license == "mit"

    def test_levels_of_before_go(self, hub):
        publish({ID: sae()}, REPO, levels=True)
        other = MatryoshkaSAE.from_sae(sae(1), widths=[20, 160])
        publish({ID: other}, REPO, levels=True)
        folders = {path.rpartition("/")[0] for path in published(hub)} - {""}
        assert folders == {ID, f"{ID}/level_0_width_20"}
        publish({ID: other}, REPO)
        assert published(hub) == {CARD, *FILES}
        assert "level_0_width" not in card(hub)

    @pytest.mark.parametrize(
        ("tokens", "known"), [(781 * 768, True), (2000 * 768, True), (2001 * 768, False)]
    )
    def test_dead_latents_that_were_counted_for_long_enough(self, hub, tmp_path, tokens, known):
        """SAELens counts anew every feature_sampling_window steps, whenever training ends."""
        from safetensors.torch import save_file

        sae().save_model(tmp_path)
        save_file({"sparsity": torch.full((WIDTHS[-1],), -10.0)}, tmp_path / "sparsity.safetensors")
        settings = {"training_tokens": tokens, "train_batch_size_tokens": 768}
        settings |= {"feature_sampling_window": 2000, "dead_feature_window": 1000}
        (tmp_path / "runner_cfg.json").write_text(json.dumps(settings))
        publish({ID: tmp_path}, REPO)
        assert ("| dead latents |" in card(hub)) == known
        assert ("Dead latents fired on none of the last" in card(hub)) == known

    def test_files_of_before_that_no_longer_hold_go(self, hub, tmp_path):
        from safetensors.torch import save_file

        sae().save_model(tmp_path)
        save_file({"sparsity": torch.zeros(WIDTHS[-1])}, tmp_path / "sparsity.safetensors")
        (tmp_path / "runner_cfg.json").write_text("{}")
        publish({ID: tmp_path}, REPO)
        assert {f"{ID}/sparsity.safetensors", f"{ID}/runner_cfg.json"} < published(hub)
        publish({ID: sae(1)}, REPO)
        assert published(hub) == {CARD, *FILES}

    def test_the_same_again_is_no_commit(self, hub):
        publish({ID: sae()}, REPO)
        publish({ID: sae()}, REPO)
        assert len(hub.commits(REPO)) == 2

    def test_hand_written_parts_stay(self, hub):
        publish({"a": sae()}, REPO)
        ours = card(hub)
        text = ours.replace("library_name: saelens", "library_name: saelens\nlanguage: en")
        text = text.replace("- sparse-autoencoder", "- sparse-autoencoder\n- my-tag")
        head, rest = text.split("---\n\n", 1)
        text = f"{head}---\n\nBefore.\n\n{rest}\nAfter.\n"
        hub.commit(REPO, {CARD: text.encode()})
        publish({"b": sae(1)}, REPO)
        new = ModelCard(card(hub))
        assert new.data.language == "en"
        assert "my-tag" in new.data.tags
        assert "Before." in new.text.split("<!--")[0]
        assert new.text.rstrip().endswith("After.")
        assert new.text.count("# Matryoshka SAEs for demo") == 1

    def test_a_card_of_before_this_package(self, hub):
        hub.create(REPO)
        hub.commit(REPO, {CARD: b"# Mine\n\nWords.\n"})
        publish({"a": sae()}, REPO)
        assert card(hub).index("# Mine") < card(hub).index("# Matryoshka SAE for demo")
        assert ModelCard(card(hub)).data.library_name == "saelens"

    def test_a_dry_run_writes_the_very_same_tree(self, hub, tmp_path):
        given = {"a": sae(), "b": MatryoshkaSAE(sae(1), WIDTHS)}
        publish(given, REPO, levels=True, license="mit")
        hub.requests.clear()
        folder = publish(given, REPO, levels=True, license="mit", dry_run=tmp_path / "dry")
        assert not hub.requests
        paths = [path for path in Path(folder).rglob("*") if path.is_file()]
        written = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        del written[RECORD.as_posix()]  # which the Hub's client leaves out of an upload
        on_the_hub = {k: v for k, v in hub.files(REPO).items() if k != ".gitattributes"}
        assert written == on_the_hub
        publish({"a": sae(2)}, REPO, dry_run=folder)  # again, over it
        left = {path.relative_to(folder).parts[:2] for path in Path(folder).glob("[ab]/**/*.json")}
        assert {parts[0] for parts in left} == {"a", "b"}
        assert not list(Path(folder, "a").glob("level_*"))

    def test_the_plot_is_in_the_repo_as_long_as_there_is_something_to_show(self, hub):
        from sae_lens_matryoshka.levels.measurements import measurement, record

        known = sae()
        record(known, {w: {"FVU ↓": measurement([1 / w]), "L0": measurement([w])} for w in WIDTHS})
        publish({"a": known}, REPO)
        assert f"]({PLOT})" in card(hub) and b"<svg" in hub.files(REPO)[PLOT]
        publish({"a": known}, REPO)
        assert len(hub.commits(REPO)) == 2  # the same again is no commit
        publish({"b": sae(1)}, REPO)
        assert PLOT in published(hub)  # of `a`
        publish({"a": sae()}, REPO)
        assert PLOT not in published(hub) and PLOT not in card(hub)


# ---- what others have put there


@pytest.mark.usefixtures("unverified")
class TestStrangers:
    @pytest.mark.parametrize("levels", [True, False])
    def test_a_level_that_publish_did_not_write(self, hub, tmp_path, levels):
        """By hand, or by somebody's own scripts: replaced and removed by nobody else."""
        publish({"a": sae()}, REPO)
        MatryoshkaSAE(sae(), WIDTHS).level(0).save_model(tmp_path)
        name = f"a/level_0_width_{WIDTHS[0]}"
        by_hand = {f"{name}/{p.name}": p.read_bytes() for p in tmp_path.iterdir()}
        hub.commit(REPO, by_hand)
        before = hub.files(REPO)
        with pytest.raises(PublishError, match=f"holds {name}, which publish did not write"):
            publish({"a": sae(1)}, REPO, levels=levels)
        assert hub.files(REPO) == before
        publish({"b": sae(1)}, REPO, levels=levels)  # elsewhere is not its business
        assert by_hand.items() <= hub.files(REPO).items()

    def test_weights_alone_in_the_place_of_a_level(self, hub):
        publish({"a": sae()}, REPO)
        weights = f"a/level_0_width_{WIDTHS[0]}/sae_weights.safetensors"
        hub.commit(REPO, {weights: b"mine"})
        with pytest.raises(PublishError, match="which publish did not write"):
            publish({"a": sae(1)}, REPO)
        assert hub.files(REPO)[weights] == b"mine"

    def test_notes_beside_a_level_stay_when_it_goes(self, hub):
        publish({"a": sae()}, REPO, levels=True)
        notes = f"a/level_0_width_{WIDTHS[0]}/notes.txt"
        hub.commit(REPO, {notes: b"mine"})
        publish({"a": sae(1)}, REPO)
        assert hub.files(REPO)[notes] == b"mine"

    def test_a_plot_of_that_name(self, hub):
        hub.create(REPO)
        hub.commit(REPO, {PLOT: b"<svg>mine</svg>"})
        with pytest.raises(PublishError, match=f"holds {PLOT}, which publish did not write"):
            publish({"a": sae()}, REPO)
        assert hub.files(REPO)[PLOT] == b"<svg>mine</svg>"


# ---- rights and revisions


@pytest.mark.usefixtures("unverified")
class TestRights:
    def test_a_private_repo(self, hub, tmp_path, monkeypatch):
        publish({ID: sae()}, REPO, private=True)
        assert hub.repo(REPO).private
        assert MatryoshkaSAE.from_pretrained(REPO, ID).widths == tuple(WIDTHS)
        hub.patch_client(monkeypatch, tmp_path / "bobs_home", STRANGER)
        with pytest.raises(FileNotFoundError, match=f"no repo {REPO}, or does not show it to you"):
            MatryoshkaSAE.from_pretrained(REPO, ID)

    def test_a_public_repo_does_not_turn_private(self, hub):
        publish({ID: sae()}, REPO)
        with pytest.raises(PublishError, match="private=True, but alice/saes is public already"):
            publish({ID: sae(1)}, REPO, private=True)
        assert len(hub.commits(REPO)) == 2

    @pytest.mark.parametrize("token", [None, "hf_nobody_knows"])
    def test_no_token_or_an_unknown_one(self, hub, tmp_path, monkeypatch, token, caplog):
        hub.patch_client(monkeypatch, tmp_path / "home2", token)
        with pytest.raises(PublishError, match="hf auth login") as error:
            publish({ID: sae()}, REPO)
        assert "hf_nobody_knows" not in str(error.value) + caplog.text
        assert REPO not in hub.store.repos

    @pytest.mark.parametrize("token", [READER, STRANGER])
    @pytest.mark.parametrize("exists", [True, False])
    def test_no_rights(self, hub, tmp_path, monkeypatch, token, exists):
        if exists:
            hub.create(REPO)
        hub.patch_client(monkeypatch, tmp_path / "home2", token)
        with pytest.raises(PublishError, match="may not write to alice/saes") as error:
            publish({ID: sae()}, REPO)
        assert token not in str(error.value)
        assert REPO not in hub.store.repos or len(hub.commits(REPO)) == 1

    def test_a_branch(self, hub):
        publish({ID: sae()}, REPO)
        HfApi().create_branch(REPO, branch="next")
        publish({ID: sae(1)}, REPO, revision="next")
        on_next = MatryoshkaSAE.from_pretrained(REPO, ID, revision="next")
        assert torch.equal(on_next.sae.W_dec, sae(1).W_dec)
        assert torch.equal(MatryoshkaSAE.from_pretrained(REPO, ID).sae.W_dec, sae().W_dec)

    def test_a_branch_that_is_not_there(self, hub):
        with pytest.raises(PublishError, match="no repo alice/saes yet.*Publish there"):
            publish({ID: sae()}, REPO, revision="next")
        hub.create(REPO)
        with pytest.raises(PublishError, match="revision='next': alice/saes has no such branch"):
            publish({ID: sae()}, REPO, revision="next")
        assert len(hub.commits(REPO)) == 1
        with pytest.raises(
            FileNotFoundError, match="alice/saes has no branch, tag or commit 'next'"
        ):
            MatryoshkaSAE.from_pretrained(REPO, ID, revision="next")

    def test_an_organisation(self, hub):
        publish({ID: sae()}, "lab/saes")
        assert published(hub, "lab/saes") > FILES


# ---- faults


@pytest.mark.usefixtures("unverified")
class TestFaults:
    @pytest.mark.parametrize(
        ("method", "path", "times"),
        [("POST", "/commit/", 1), ("PUT", "/lfs-storage/", 20), ("POST", "/preupload/", 20)],
    )
    @pytest.mark.parametrize("how", ["status", "drop"])
    def test_nothing_is_half_published_and_a_retry_completes(self, hub, method, path, times, how):
        publish({"a": sae()}, REPO)
        before = hub.files(REPO)
        if how == "status":
            hub.fail(method, path, status=503, times=times)
        else:
            hub.drop(method, path, times=times)
        with pytest.raises(PublishError, match="The repo is as it was") as error:
            publish({"b": sae(1)}, REPO)
        assert WRITER not in str(error.value)
        assert hub.files(REPO) == before
        hub.heal()
        publish({"b": sae(1)}, REPO)
        assert {"a/cfg.json", "b/cfg.json"} < published(hub)

    def test_a_lost_answer(self, hub):
        hub.drop("POST", "/commit/", applied=True)
        with pytest.raises(PublishError, match="Whether the commit arrived is not known"):
            publish({ID: sae()}, REPO)
        publish({ID: sae()}, REPO)
        assert len(hub.commits(REPO)) == 2  # it had arrived, and nothing is there twice

    def test_somebody_else_commits_in_between(self, hub):
        publish({"a": sae()}, REPO)
        hub.before_commit = lambda: hub.commit(REPO, {"README.md": b"# Theirs\n"})
        publish({"b": sae(1)}, REPO)
        assert "# Theirs" in card(hub)
        assert "`a`" in card(hub) and "`b`" in card(hub)

    def test_two_publishers_at_once(self, hub):
        publish({"a": sae()}, REPO)
        errors: list[BaseException] = []

        def one(sae_id: str, seed: int) -> None:
            try:
                publish({sae_id: sae(seed)}, REPO)
            except BaseException as error:
                errors.append(error)

        threads = [
            threading.Thread(target=one, args=(sae_id, i)) for i, sae_id in enumerate("bcd", 1)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert {f"{sae_id}/cfg.json" for sae_id in "abcd"} < published(hub)
        assert all(f"`{sae_id}`" in card(hub) for sae_id in "abcd")

    def test_a_repo_that_never_stands_still(self, hub, monkeypatch):
        publish({"a": sae()}, REPO)
        monkeypatch.setattr("sae_lens_matryoshka.hub.publishing.ATTEMPTS", 2)
        hub.fail("POST", "/commit/", status=412, times=2)
        with pytest.raises(PublishError, match="kept changing while 2 commits were tried"):
            publish({"b": sae(1)}, REPO)

    def test_a_gitignore_leaves_nothing_half_published(self, hub):
        publish({"a": sae()}, REPO)
        hub.commit(REPO, {".gitignore": b"*.safetensors\n"})
        before = hub.files(REPO)
        for sae_id in ("a", "b"):
            with pytest.raises(PublishError, match=r"holds a \.gitignore.*Remove it"):
                publish({sae_id: sae(1)}, REPO)
        assert hub.files(REPO) == before

    def test_an_old_sae_in_the_repo(self, hub):
        hub.create(REPO)
        old = {
            "d_in": 8,
            "d_sae": 16,
            "hook_point": "blocks.0.hook_resid_pre",
            "model_name": "gpt2",
        }
        hub.commit(
            REPO,
            {
                "old/cfg.json": json.dumps(old).encode(),
                "old/sae_weights.safetensors": b"weights",
                "odd/cfg.json": b"[]",
                "odd/sae_weights.safetensors": b"weights",
            },
        )
        publish({"a": sae()}, REPO)
        assert "`old`" in card(hub) and "`odd`" not in card(hub)

    @pytest.mark.parametrize("where", ["runner_cfg", "metadata"])
    def test_a_token_in_the_configuration(self, hub, tmp_path, where):
        given = sae()
        kwargs = {"token": "hf_" + "a1B2" * 9}
        if where == "metadata":
            given.cfg.metadata.model_from_pretrained_kwargs = {"token": WRITER}
        given.save_model(tmp_path)
        if where == "runner_cfg":
            settings = json.dumps({"model_from_pretrained_kwargs": kwargs})
            (tmp_path / "runner_cfg.json").write_text(settings)
        with pytest.raises(ValueError, match=r"would publish a token") as error:
            publish({ID: tmp_path}, REPO)
        assert WRITER not in str(error.value) and kwargs["token"] not in str(error.value)
        assert not HfApi().repo_exists(REPO)

    def test_the_token_stands_nowhere(self, hub, caplog, capfd):
        publish({ID: sae()}, REPO)
        output = capfd.readouterr()
        everything = caplog.text + output.out + output.err
        everything += "".join(content.decode("latin-1") for content in hub.files(REPO).values())
        assert WRITER not in everything


# ---- arguments


def test_nothing_to_publish(tmp_path: Path):
    with pytest.raises(ValueError, match="nothing to publish"):
        publish({}, REPO, dry_run=tmp_path)


@pytest.mark.parametrize("repo_id", ["saes", "alice/a b", "alice/../x", "a/b/c", ""])
def test_no_name_of_a_repo(repo_id: str):
    with pytest.raises(ValueError, match="repo_id="):
        publish({ID: sae()}, repo_id)


@pytest.mark.parametrize("options", [{"private": True}, {"revision": "next"}])
def test_options_without_effect_on_a_dry_run(tmp_path: Path, options: dict[str, Any]):
    with pytest.raises(ValueError, match="no effect on a dry run"):
        publish({ID: sae()}, REPO, dry_run=tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_stock_and_flat_saes_are_published_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sae_lens_matryoshka.hub.publishing.verify", lambda *_: None)
    publish({ID: random_sae()}, REPO, dry_run=tmp_path)
    assert SAE.load_from_disk(tmp_path / ID).cfg.metadata.hook_name == HOOK
    text = (tmp_path / CARD).read_text()
    assert "Matryoshka" not in text
    assert "matryoshka" not in ModelCard(text).data.tags
