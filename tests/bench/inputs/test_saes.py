"""SAEs in the form that SAEBench measures rightly, and never the caller's own object changed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bench_helpers import D_MODEL, HOOK, WIDTHS, random_sae, rescaled
from sae_lens import SAE
from sae_lens.saes.jumprelu_sae import JumpReLUSAE
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

from sae_lens_matryoshka import MatryoshkaTrainingSAE, MatryoshkaTrainingSAEConfig
from sae_lens_matryoshka.bench.config import SAESource
from sae_lens_matryoshka.bench.inputs.saes import (
    Level,
    bench_form,
    chosen_levels,
    cut,
    open_sae,
)
from sae_lens_matryoshka.settings.yaml_file import ConfigError


def source(**more: Any) -> SAESource:
    return SAESource(**{"name": "nested", "folder": "somewhere", **more})


def state(sae: Any) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in sae.state_dict().items()}


def test_decoder_norms_are_folded_on_a_copy():
    original = random_sae()
    other = rescaled(original)
    before, config = state(other), other.cfg.to_dict()
    folded = bench_form(other, "a", HOOK, "demo")
    torch.testing.assert_close(folded.W_dec.norm(dim=-1), torch.ones(WIDTHS[-1]))
    x = torch.randn(50, D_MODEL)
    torch.testing.assert_close(folded.encode(x), original.encode(x), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(before[key], tensor) for key, tensor in other.state_dict().items())
    assert other.cfg.to_dict() == config


def test_an_sae_of_another_hook_is_refused():
    with pytest.raises(ConfigError, match="was trained on blocks.1.hook_resid_post, but hook_name"):
        bench_form(random_sae(), "a", "blocks.2.hook_resid_post", "demo")


def test_an_sae_of_a_processed_model_is_refused():
    sae = random_sae()
    sae.cfg.metadata.model_from_pretrained_kwargs = {"center_writing_weights": False}
    bench_form(sae, "a", HOOK, "demo")
    sae.cfg.metadata.model_from_pretrained_kwargs = {"center_writing_weights": True}
    with pytest.raises(ConfigError, match="'a' was trained on a model with center_writing_weights"):
        bench_form(sae, "a", HOOK, "demo")


def test_missing_metadata_is_filled_in_the_copy_only():
    sae = random_sae(hook_name=None)
    sae.cfg.metadata.model_name = None
    copied = bench_form(sae, "a", HOOK, "demo")
    assert (copied.cfg.metadata.hook_name, copied.cfg.metadata.model_name) == (HOOK, "demo")
    assert sae.cfg.metadata.hook_name is None


def test_numbers_that_are_not_finite_are_refused():
    sae = random_sae()
    sae.b_enc.data[3] = float("nan")
    with pytest.raises(ConfigError, match="not finite in b_enc"):
        bench_form(sae, "a", HOOK, "demo")


def topk_sae(rescale: bool) -> TopKSAE:
    config = TopKSAEConfig(d_in=8, d_sae=16, k=2, rescale_acts_by_decoder_norm=rescale)
    sae = TopKSAE(config)
    sae.W_dec.data *= 2
    sae.cfg.metadata.hook_name = HOOK
    return sae


def test_topk_norms_that_cannot_be_folded_are_refused():
    with pytest.raises(ConfigError, match="would change which latents fire.*as_jumprelu=True"):
        bench_form(topk_sae(rescale=False), "a", HOOK, "demo")
    bench_form(topk_sae(rescale=True), "a", HOOK, "demo")


def test_levels_of_topk_are_refused_but_the_whole_is_not():
    sae = bench_form(topk_sae(rescale=True), "a", HOOK, "demo")
    with pytest.raises(ConfigError, match="do not stand alone.*levels: outermost"):
        chosen_levels(sae, source(widths=[4, 16]))
    assert chosen_levels(sae, source(widths=[4, 16], levels="outermost")) == [Level(1, 2, 16)]
    assert chosen_levels(sae, source()) == [Level(0, 1, 16)]


def test_levels_come_from_the_metadata_or_the_config():
    nested = random_sae(widths=WIDTHS)
    assert [level.width for level in chosen_levels(nested, source())] == WIDTHS
    assert chosen_levels(nested, source(levels=[2, 0])) == [Level(0, 3, 16), Level(2, 3, 160)]
    assert chosen_levels(nested, source(levels="outermost")) == [Level(2, 3, 160)]
    assert chosen_levels(random_sae(), source()) == [Level(0, 1, 160)]
    assert chosen_levels(random_sae(), source(widths=[10, 160]))[0] == Level(0, 2, 10)
    for levels in ([3], []):
        with pytest.raises(ConfigError, match="has the levels 0 to 2"):
            chosen_levels(nested, source(levels=levels))
    with pytest.raises(ConfigError, match="SAE 'nested'"):
        chosen_levels(nested, source(widths=[64, 10]))


def test_a_level_is_a_stock_sae_cut_by_hand():
    sae = random_sae(widths=WIDTHS)
    level = cut(sae, Level(1, 3, 64))
    assert type(level) is JumpReLUSAE
    by_hand = random_sae(d_sae=64)
    by_hand.load_state_dict(
        {
            "W_enc": sae.W_enc[:, :64],
            "W_dec": sae.W_dec[:64],
            "b_enc": sae.b_enc[:64],
            "b_dec": sae.b_dec,
            "threshold": sae.threshold[:64],
        }
    )
    x = torch.randn(20, D_MODEL)
    assert torch.equal(level(x), by_hand(x))
    whole = cut(sae, Level(2, 3, 160))
    whole.W_dec.data.zero_()
    assert sae.W_dec.abs().sum() > 0


def test_opening(sae_folder: Path, tmp_path: Path):
    sae = open_sae(source(folder=sae_folder), tmp_path)
    assert isinstance(sae, SAE)
    assert sae.dtype == torch.float32
    checkpoint = MatryoshkaTrainingSAE(MatryoshkaTrainingSAEConfig(d_in=8, d_sae=16, k=2))
    checkpoint.save_model(tmp_path / "checkpoint")
    opened = open_sae(source(folder=tmp_path / "checkpoint"), tmp_path)
    assert opened.cfg.architecture() == "jumprelu"
    with pytest.raises(ConfigError, match="SAE 'nested' cannot be opened: .*holds no SAE"):
        open_sae(source(folder=tmp_path), tmp_path)
    with pytest.raises(ConfigError, match="SAE 'a' cannot be opened"):
        open_sae(SAESource(name="a", release="no-such-release", id="x"), tmp_path)
