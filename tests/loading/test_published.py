"""Opening published SAEs: folders, releases, repos; the levels from wherever they are named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_helpers import WIDTHS, random_sae
from sae_lens import SAE, MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig

from sae_lens_matryoshka import MatryoshkaSAE


def test_a_local_folder(tmp_path: Path):
    sae = random_sae(widths=WIDTHS)
    sae.save_model(tmp_path / "deep" / "er")
    for place in ((tmp_path, "deep/er"), (tmp_path / "deep" / "er", None)):
        opened = MatryoshkaSAE.from_pretrained(str(place[0]), place[1])
        assert opened.widths == tuple(WIDTHS)
        assert torch.equal(opened.sae.W_enc, sae.W_enc)


def test_what_saelens_users_published(tmp_path: Path):
    """Its own matryoshka_batchtopk, saved as its runner saves; then as it did before 6.46."""
    training = MatryoshkaBatchTopKTrainingSAE(
        MatryoshkaBatchTopKTrainingSAEConfig(d_in=8, d_sae=32, k=4, matryoshka_widths=[4, 12])
    )
    training.save_inference_model(str(tmp_path))
    assert MatryoshkaSAE.from_pretrained(str(tmp_path)).widths == (4, 12, 32)

    cfg = json.loads((tmp_path / "cfg.json").read_text())
    del cfg["metadata"]["training_architecture_details"]
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    with pytest.raises(ValueError, match=r"names? no|holds no matryoshka_widths.*widths="):
        MatryoshkaSAE.from_pretrained(str(tmp_path))
    assert MatryoshkaSAE.from_pretrained(str(tmp_path), widths=[8]).widths == (8, 32)
    runner_cfg = {"sae": {"matryoshka_widths": [4, 12, 32]}}
    (tmp_path / "runner_cfg.json").write_text(json.dumps(runner_cfg))
    assert MatryoshkaSAE.from_pretrained(str(tmp_path)).widths == (4, 12, 32)


def test_a_release_is_saelens_business(monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []

    def from_pretrained(release: str, sae_id: str, **options: Any) -> Any:
        asked.append((release, sae_id, options))
        return random_sae(widths=WIDTHS)

    monkeypatch.setattr(SAE, "from_pretrained", from_pretrained)
    release, sae_id = "gemma-scope-2b-pt-res-canonical", "layer_12/width_16k/canonical"
    opened = MatryoshkaSAE.from_pretrained(release, sae_id, dtype="bfloat16")
    assert opened.widths == tuple(WIDTHS)
    options = {"device": "cpu", "dtype": "bfloat16", "force_download": False}
    assert asked == [(release, sae_id, options)]
    with pytest.raises(ValueError, match="revision='v1' has no effect on a release of SAELens"):
        MatryoshkaSAE.from_pretrained(release, sae_id, revision="v1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"repo_id": "me/saes"}, "Which SAE of me/saes"),
        ({"repo_id": "saes", "sae_id": "a"}, "no folder, no release of SAELens and no Hub repo"),
    ],
)
def test_arguments(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        MatryoshkaSAE.from_pretrained(**arguments)


@pytest.mark.parametrize("option", [{"revision": "v1"}, {"force_download": True}])
def test_options_without_effect_on_a_folder(tmp_path: Path, option: dict[str, Any]):
    random_sae(widths=WIDTHS).save_model(tmp_path)
    with pytest.raises(ValueError, match="has no effect on a local folder"):
        MatryoshkaSAE.from_pretrained(str(tmp_path), **option)


def test_no_sae_in_the_folder(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="holds no SAE"):
        MatryoshkaSAE.from_pretrained(str(tmp_path), "a")
