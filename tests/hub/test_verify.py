"""The check before an upload: another process, stock SAELens, the same outputs."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_helpers import WIDTHS, random_sae, refined_sae
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.saes.sae import SAEMetadata

from sae_lens_matryoshka import MatryoshkaSAE
from sae_lens_matryoshka.hub import BrokenRepoError, publish, reload
from sae_lens_matryoshka.hub.staging import stage
from sae_lens_matryoshka.hub.verify import expectations
from sae_lens_matryoshka.saes.inference_sae import copy_of
from sae_lens_matryoshka.saes.refined_sae import RefinedSAE

PLUGIN = '''
"""A package with an architecture of its own."""
from sae_lens import register_sae_class
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig

class TheirConfig(StandardSAEConfig):
    @classmethod
    def architecture(cls):
        return "theirs"

class TheirSAE(StandardSAE):
    cfg: TheirConfig
    def encode(self, x):
        return super().encode(x) * 2

register_sae_class("theirs", TheirSAE, TheirConfig)
'''


@pytest.mark.parametrize("widths", [None, WIDTHS])
def test_latents_fire_on_the_inputs(widths: list[int] | None):
    given = random_sae(widths=widths)
    expected = expectations(stage("a", given), levels=widths is not None)
    assert len(expected) == (1 if widths is None else len(WIDTHS))
    x = expected["a"].x
    fired = given.encode(x) > 0
    assert fired.sum(dim=1).max() > 5
    assert fired.any(dim=0).float().mean() > 0.5  # most latents take part
    for sae_id, one in expected.items():
        width = int(sae_id.rpartition("_")[2]) if sae_id != "a" else WIDTHS[-1]
        cut = given if widths is None else MatryoshkaSAE(given, WIDTHS).truncate(width)
        scale = one.out.abs().amax(dim=-1, keepdim=True).clamp(min=1e-6)
        torch.testing.assert_close(one.out / scale, cut(x) / scale, rtol=0, atol=1e-6)


def test_a_latent_at_its_threshold_is_left_to_nobodys_rounding():
    sae = random_sae()
    x = expectations(stage("a", sae), levels=False)["a"].x
    latent = int(sae.encode(x)[50].argmax())
    hidden_pre = (x[50] - sae.b_dec) @ sae.W_enc[:, latent] + sae.b_enc[latent]
    sae.threshold.data[latent] = hidden_pre
    kept = expectations(stage("a", sae), levels=False)["a"].x
    assert not (kept == x[50]).all(dim=-1).any()
    assert len(kept) > len(x) // 2


@pytest.mark.parametrize("of_level", [False, True])
def test_a_first_threshold_and_those_of_levels_are_left_to_nobodys_rounding(of_level: bool):
    sae = refined_sae()
    x = expectations(stage("a", sae, True, True), levels=True)["a"].x
    level = MatryoshkaSAE(sae, WIDTHS).level(0) if of_level else sae
    latent = int(level.encode(x)[50].argmax())
    if of_level:
        sae.threshold.data[latent] = level.encode(x)[50, latent]
    else:
        sae.start_threshold.data[latent] = sae.first_pass(sae.process_sae_in(x))[50, latent]
    kept = expectations(stage("a", sae, True, True), levels=True)["a"].x
    assert not (kept == x[50]).all(dim=-1).any()
    assert len(kept) > len(x) // 2


def test_the_given_sae_is_not_used():
    """It would keep the shape of what it saw first."""
    sae = random_sae(hook_name="blocks.1.attn.hook_z")
    sae.cfg.reshape_activations = "hook_z"
    sae.turn_on_forward_pass_hook_z_reshaping()
    expectations(stage("a", sae), levels=False)
    x = torch.randn(5, 8, 32)
    assert sae(x).shape == x.shape


def test_nothing_to_compare():
    sae = random_sae()
    sae.threshold.data += 1e9
    with pytest.raises(ValueError, match="'a': no latent fires"):
        expectations(stage("a", sae), levels=False)


def test_the_script_imports_nothing_of_this_package():
    source = Path(reload.__file__).read_text()
    assert 'sys.modules["sae_lens_matryoshka"] = None' in source
    assert not re.search("(from|import) sae_lens_matryoshka", source)


@pytest.mark.slow
def test_a_refined_sae_with_its_levels(tmp_path: Path):
    """Reloaded with this package; without it SAELens knows no such architecture."""
    with pytest.raises(
        ValueError, match="'matryoshka_refined' of sae_lens_matryoshka, which stock"
    ):
        publish({"a": refined_sae()}, "me/saes", dry_run=tmp_path / "out")
    publish(
        {"a": refined_sae(), "b": random_sae()},
        "me/saes",
        levels=False,
        dry_run=tmp_path / "out",
        allow_plugin_only=True,
    )
    publish(
        {"c": refined_sae()},
        "me/saes",
        levels=True,
        dry_run=tmp_path / "out",
        allow_plugin_only=True,
    )
    x = torch.randn(20, 256)
    opened = MatryoshkaSAE.from_pretrained(str(tmp_path / "out"), "c")
    torch.testing.assert_close(opened.sae(x), refined_sae()(x))
    level = MatryoshkaSAE.from_pretrained(str(tmp_path / "out"), "c/level_0_width_16")
    torch.testing.assert_close(level.sae(x), opened.level(0)(x))
    assert "`a` needs the package `sae_lens_matryoshka`" in (tmp_path / "out/README.md").read_text()
    code = f"""
import sys
sys.modules["sae_lens_matryoshka"] = None
from sae_lens import SAE
SAE.load_from_disk({str(tmp_path / "out" / "a")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "KeyError: 'matryoshka_refined'"


@pytest.mark.slow
def test_a_refined_sae_that_loads_as_another_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save = RefinedSAE.save_model

    def save_another(self: RefinedSAE, path: Any) -> Any:
        another = copy_of(self)
        another.start_threshold.data += 0.5
        return save(another, path)

    monkeypatch.setattr(RefinedSAE, "save_model", save_another)
    with pytest.raises(BrokenRepoError, match="differs from the original"):
        publish({"a": refined_sae()}, "me/saes", dry_run=tmp_path, allow_plugin_only=True)


@pytest.mark.slow
def test_an_sae_that_stock_saelens_cannot_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "their_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    import their_plugin  # type: ignore[import-not-found]

    try:
        torch.manual_seed(0)
        metadata = SAEMetadata(model_name="m", hook_name="blocks.0.hook_resid_post", context_size=8)
        sae: Any = their_plugin.TheirSAE(
            their_plugin.TheirConfig(d_in=16, d_sae=32, metadata=metadata)
        )
        sae.W_dec.data = torch.nn.functional.normalize(torch.randn(32, 16), dim=-1)
        out = tmp_path / "out"
        with pytest.raises(
            ValueError, match="'theirs' of their_plugin, which stock SAELens cannot"
        ):
            publish({"a": sae}, "me/saes", dry_run=out)
        both = {"a": sae, "b": random_sae()}
        publish(both, "me/saes", dry_run=out, allow_plugin_only=True)
        cfg = json.loads((out / "a" / "cfg.json").read_text())
        assert cfg["architecture"] == "theirs"
        card = (out / "README.md").read_text()
        assert "`a` needs the package `their_plugin`" in card
        assert "`b` needs" not in card
    finally:
        del SAE_CLASS_REGISTRY["theirs"], sys.modules["their_plugin"]
