"""What is measured at the end of a run: of the SAE that was saved, on tokens that it was not trained on."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runner_helpers import (
    CONTEXT,
    D_IN,
    HOOK,
    TinyModel,
    interrupted,
    make_runner,
    random_tokens,
    results,
    save_cached_activations,
    tidy_process,  # noqa: F401
    token_dataset,
)
from sae_lens import SAE, BatchTopKTrainingSAEConfig, TopKTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig

from sae_lens_matryoshka import MatryoshkaSAE
from sae_lens_matryoshka.levels.measurements import FVU, L0, drop_outdated, results_of
from sae_lens_matryoshka.training import held_out
from sae_lens_matryoshka.training.held_out import measure
from sae_lens_matryoshka.training.runner import (
    LanguageModelSAERunnerConfig,
    MatryoshkaSAETrainingRunner,
)


def note(sae: SAE[Any]) -> str:
    (said,) = sae.cfg.metadata.level_results_notes
    return said


@torch.no_grad()
def by_hand(level: SAE[Any], x: torch.Tensor) -> tuple[float, float]:
    acts = level.encode(x)
    error = (level.decode(acts) - x).double().square().sum()
    variance = (x.double() - x.double().mean(dim=0)).square().sum()
    return float((acts != 0).double().sum(dim=1).mean()), float(error / variance)


def test_every_level_of_the_saved_sae_on_sequences_that_follow_training(tmp_path: Path):
    runner = make_runner(tmp_path)
    runner.run()
    saved = SAE.load_from_disk(tmp_path / "output")
    assert not drop_outdated(saved)  # the numbers are of these very weights and thresholds

    n_held_out = 130  # sequences, in loads of 5, for 1,024 tokens
    dataset = random_tokens(600, CONTEXT)
    model = TinyModel()
    trained_on = [tuple(row) for row in runner.model.seen[:-n_held_out]]
    after = [tuple(row) for row in runner.model.seen[-n_held_out:]]
    assert after == [tuple(row) for row in dataset[len(trained_on) : len(trained_on) + n_held_out]]
    assert not set(after) & set(trained_on)

    x = model.run_with_cache(torch.tensor(after))[1][HOOK].flatten(0, 1)[: held_out.FEWEST]
    nested = MatryoshkaSAE.from_sae(saved)
    for index, width in enumerate([4, 12, 32]):
        found = results_of(saved.cfg.metadata, width)
        l0, fvu = by_hand(nested.level(index), x)
        assert found[L0]["mean"] == pytest.approx(l0, rel=1e-9)
        assert found[FVU]["mean"] == pytest.approx(fvu, rel=1e-5)
    assert "1,024 held-out tokens" in note(saved)
    assert "no special tokens" in note(saved)


class WithBOS(TinyModel):
    """A tokenizer that calls token 0 BOS, and activations of BOS that are far away."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = SimpleNamespace(bos_token_id=0, padding_side="right")

    def run_with_cache(self, tokens: torch.Tensor, **kwargs: Any) -> Any:
        out, cache = super().run_with_cache(tokens, **kwargs)
        cache[HOOK][tokens == 0] += 100
        return out, cache


def run_with(model: TinyModel, folder: Path, **changes: Any) -> SAE[Any]:
    from runner_helpers import options

    torch.manual_seed(0)
    cfg = LanguageModelSAERunnerConfig(**options(folder, **changes))
    MatryoshkaSAETrainingRunner(cfg, override_model=model, override_dataset=token_dataset()).run()
    return SAE.load_from_disk(folder / "output")


def test_bos_is_left_out(tmp_path: Path):
    model = WithBOS()
    saved = run_with(model, tmp_path)
    tokens = torch.tensor([list(row) for row in model.seen[-130:]])  # (sequences, context)
    x = WithBOS().run_with_cache(tokens)[1][HOOK].flatten(0, 1)[: held_out.FEWEST]
    others = tokens.flatten()[: held_out.FEWEST] != 0
    assert not others.all()
    assert "special tokens (BOS, EOS, padding) are left out" in note(saved)
    assert f" {int(others.sum()):,} held-out tokens" in note(saved)
    measured = results_of(saved.cfg.metadata, 32)
    l0, fvu = by_hand(saved, x[others])
    assert measured[L0]["mean"] == pytest.approx(l0, rel=1e-9)
    assert measured[FVU]["mean"] == pytest.approx(fvu, rel=1e-5)


def test_a_data_set_that_was_read_twice_is_not_called_held_out(tmp_path: Path):
    runner = make_runner(tmp_path, dataset=token_dataset(60))
    with pytest.warns(UserWarning, match="exhausted"):
        runner.run()
    assert "not held out" in note(SAE.load_from_disk(tmp_path / "output"))


def test_a_resumed_run_measures_the_same(tmp_path: Path):
    make_runner(tmp_path / "whole").run()
    checkpoint = interrupted(make_runner(tmp_path / "part"), step=11)
    make_runner(tmp_path / "part", resume_from_checkpoint=checkpoint).run()
    whole, part = (
        SAE.load_from_disk(tmp_path / name / "output").cfg.metadata for name in ("whole", "part")
    )
    assert whole.level_results == part.level_results
    assert whole.level_results_notes == part.level_results_notes


def test_passes_over_the_data_are_counted_through_a_checkpoint(tmp_path: Path):
    few = token_dataset(60)
    with pytest.warns(UserWarning, match="exhausted"):
        checkpoint = interrupted(make_runner(tmp_path, dataset=few), step=20)
    resumed = make_runner(tmp_path, dataset=few, resume_from_checkpoint=checkpoint)
    resumed.run()
    assert "not held out" in note(SAE.load_from_disk(tmp_path / "output"))


def test_cached_activations(tmp_path: Path):
    cached = save_cached_activations(tmp_path)
    options = {"use_cached_activations": True, "cached_activations_path": cached}
    make_runner(tmp_path, **options).run()
    saved = SAE.load_from_disk(tmp_path / "output")
    assert "BOS is included, since the cached activations" in note(saved)
    assert "held-out tokens" in note(saved)
    assert results_of(saved.cfg.metadata, 32)[L0]["mean"] == pytest.approx(3, rel=0.3)


@pytest.mark.parametrize(
    "sae_cfg",
    [
        TopKTrainingSAEConfig(d_in=D_IN, d_sae=32, k=3),
        BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=32, k=3),
    ],
    ids=lambda cfg: cfg.architecture(),
)
def test_any_sae_of_saelens(tmp_path: Path, sae_cfg: Any):
    from runner_helpers import options
    from sae_lens import LanguageModelSAERunnerConfig as StockConfig

    ours = ("d_in", "d_sae", "k", "matryoshka_widths")
    given = {k: v for k, v in options(tmp_path).items() if k not in ours}
    MatryoshkaSAETrainingRunner(
        StockConfig(sae=sae_cfg, **given),
        override_model=TinyModel(),
        override_dataset=token_dataset(),
    ).run()
    metadata = SAE.load_from_disk(tmp_path / "output").cfg.metadata
    assert list(metadata.level_results) == ["32"]
    assert results_of(metadata, 32)[FVU]["mean"] > 0
    assert (
        results_of(metadata, 32)[L0]["mean"] >= 3
    )  # batchtopk: its running threshold has barely begun


@pytest.mark.parametrize("where", ["get_raw_llm_batch", "load"])
def test_a_failure_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
):
    make_runner(tmp_path / "good").run()

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the data stream broke")

    runner = make_runner(tmp_path / "bad")
    if where == "load":
        monkeypatch.setattr(held_out.SAE, "load_from_disk", broken)
    else:
        monkeypatch.setattr(held_out._HeldOut, "__iter__", broken)
    runner.run()
    monkeypatch.undo()
    assert "were not measured" in caplog.text and "the data stream broke" in caplog.text
    good, bad = results(tmp_path / "good"), results(tmp_path / "bad")
    assert all(torch.equal(good[name], bad[name]) for name in good)
    assert SAE.load_from_disk(tmp_path / "bad" / "output").cfg.metadata.level_results is None


def test_only_the_metadata_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sae_lens_matryoshka.training.runner.record_held_out", lambda *_: None)
    make_runner(tmp_path / "a").run()
    monkeypatch.undo()
    make_runner(tmp_path / "b").run()
    before, after = (
        json.loads((tmp_path / name / "output" / "cfg.json").read_text()) for name in "ab"
    )
    more = ("level_results", "level_results_fingerprint", "level_results_notes")
    for key in more:
        after["metadata"].pop(key)
    assert before == after
    assert sorted(p.name for p in (tmp_path / "a" / "output").iterdir()) == sorted(
        p.name for p in (tmp_path / "b" / "output").iterdir()
    )


def random_jumprelu(**changes: Any) -> JumpReLUSAE:
    torch.manual_seed(0)
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=D_IN, d_sae=32, **changes))
    sae.W_dec.data = torch.nn.functional.normalize(torch.randn(32, D_IN), dim=-1)
    sae.W_enc.data = sae.W_dec.data.T.contiguous()
    sae.threshold.data.fill_(0.8)
    return sae


def test_attention_heads_are_measured_as_one_vector():
    x = torch.randn(50, D_IN)
    (flat,) = measure(random_jumprelu(), [x])
    (heads,) = measure(random_jumprelu(reshape_activations="hook_z"), [x[:20], x[20:]])
    assert (heads.l0, heads.fvu) == pytest.approx((flat.l0, flat.fvu))


def test_tokens_that_are_all_alike_have_no_fvu():
    with pytest.raises(ValueError, match="no variance"):
        measure(random_jumprelu(), [torch.ones(5, D_IN)])
    with pytest.raises(ValueError, match="the 0 held-out tokens"):
        measure(random_jumprelu(), [])
