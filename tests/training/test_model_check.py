"""The configuration of a run against its model, before anything is trained."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from runner_helpers import (
    CONTEXT,
    D_IN,
    HOOK,
    TinyModel,
    options,
    save_cached_activations,
    text_dataset,
    tidy_process,  # noqa: F401  (a fixture of every test here)
    token_dataset,
)
from sae_lens import (
    SAE,
    HookedSAETransformer,
    LanguageModelSAETrainingRunner,
    StandardTrainingSAEConfig,
)
from sae_lens import LanguageModelSAERunnerConfig as StockRunnerConfig
from sae_lens.load_model import HookedProxyLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_lens_matryoshka import LanguageModelSAERunnerConfig, MatryoshkaSAETrainingRunner
from sae_lens_matryoshka.demo.model import MODEL_FOLDER

HOOK_Z = "blocks.0.attn.hook_z"  # 2 heads of 8


def build(folder: Path, model: Any = None, **changes: Any) -> MatryoshkaSAETrainingRunner:
    cfg = LanguageModelSAERunnerConfig(**options(folder, **changes))
    return MatryoshkaSAETrainingRunner(
        cfg, override_model=model or TinyModel(), override_dataset=token_dataset()
    )


def refusal(folder: Path, model: Any = None, **changes: Any) -> str:
    """Why a run is refused, which leaves nothing behind."""
    with pytest.raises(ValueError) as caught:
        build(folder, model, **changes)
    assert not (folder / "output").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hook_name": "blocks.0.hook_resid_pots"}, [HOOK]),
        ({"hook_name": "blocks.7.hook_resid_post"}, [HOOK]),
        ({"hook_name": "transformer.h.0"}, ["blocks.0"]),
        ({"hook_name": "blocks.0.attn.hook_result"}, ["only on request"]),
        ({"hook_name": "blocks.0.attn.hook_pattern"}, ["one vector per token", "(1, 2, 7, 7)"]),
        ({"d_in": D_IN - 1}, ["d_in=15", "Set d_in=16"]),
        ({"hook_name": "blocks.0.mlp.hook_post"}, ["d_in=16", "Set d_in=64"]),
        ({"hook_name": "blocks.0.attn.hook_q", "d_in": 8}, ["2 heads of 8", "hook_head_index"]),
        ({"context_size": CONTEXT + 1}, ["context_size=9", "8 tokens"]),
        ({"hook_head_index": 0}, ["hook_head_index=0", "no heads"]),
        ({"hook_name": HOOK_Z, "hook_head_index": 2, "d_in": 8}, ["heads 0 to 1"]),
        ({"hook_name": HOOK_Z, "hook_head_index": 1}, ["Set d_in=8"]),
    ],
    ids=str,
)
def test_what_does_not_fit_the_model(tmp_path: Path, changes: dict[str, Any], says: list[str]):
    message = refusal(tmp_path, **changes)
    for part in says:
        assert part in message


def test_the_check_comes_before_the_dataset_is_opened(tmp_path: Path):
    cfg = LanguageModelSAERunnerConfig(
        **options(tmp_path, hook_name="blocks.0.resid_post", dataset_path="no/such-dataset")
    )
    with pytest.raises(ValueError, match=HOOK):
        MatryoshkaSAETrainingRunner(cfg, override_model=TinyModel())


def test_a_stock_configuration_is_checked_as_well(tmp_path: Path):
    def stock(**changes: Any) -> StockRunnerConfig[Any]:
        given = options(tmp_path, **changes)
        fields = {name: given.pop(name) for name in ("d_in", "d_sae")}
        del given["k"], given["matryoshka_widths"]
        return StockRunnerConfig(sae=StandardTrainingSAEConfig(**fields), **given)

    for changes, says in [
        ({"hook_name": "blocks.0.hook_resid_pots"}, HOOK),
        ({"d_in": 12}, "Set d_in=16"),
        ({"training_tokens": 0}, "training_tokens=0"),
        ({"training_tokens": 31}, "less than one batch"),
        ({"hook_name": HOOK_Z}, "reshape_activations='hook_z'"),
        ({"seed": -1}, "seed=-1"),
    ]:
        with pytest.raises(ValueError, match=says):
            MatryoshkaSAETrainingRunner(
                stock(**changes), override_model=TinyModel(), override_dataset=token_dataset()
            )


def test_the_probe_is_no_part_of_the_data(tmp_path: Path):
    model = TinyModel()
    hooks = []
    model.add_hook(HOOK, lambda act, **_: hooks.append(act.shape))  # type: ignore
    build(tmp_path, model)
    assert model.seen == []
    model(torch.zeros(1, 3, dtype=torch.long))
    assert hooks[-1] == (1, 3, D_IN)  # the caller's own hook is still there


# ---- attention heads


def test_all_heads_train_and_the_sae_can_be_attached(tmp_path: Path):
    build(tmp_path, hook_name=HOOK_Z, reshape_activations="hook_z").run()
    sae = SAE.load_from_disk(tmp_path / "output")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = HookedSAETransformer(TinyModel().cfg)
    _, cache = model.run_with_cache_with_saes(torch.zeros(1, 4, dtype=torch.long), saes=[sae])
    assert cache[f"{HOOK_Z}.hook_sae_acts_post"].shape == (1, 4, 32)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hook_name": None}, "hook_name=None must name a hook"),
        ({"hook_name": HOOK_Z}, "Set reshape_activations='hook_z'"),
        ({"reshape_activations": "hook_Z"}, "must be 'none' or 'hook_z'"),
        ({"reshape_activations": "hook_z"}, "does not fit hook_name='blocks.0.hook_resid_post'"),
        (
            {"hook_name": HOOK_Z, "reshape_activations": "hook_z", "hook_head_index": 0},
            "one of the two",
        ),
        ({"hook_name": HOOK_Z, "hook_head_index": -1}, "hook_head_index=-1"),
    ],
    ids=str,
)
def test_heads_are_refused_by_the_configuration(tmp_path: Path, changes: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        LanguageModelSAERunnerConfig(**options(tmp_path, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"hook_name": HOOK_Z, "hook_head_index": 1, "d_in": 8},
        {"hook_name": "blocks.0.attn.hook_q"},
    ],
    ids=str,
)
def test_an_sae_that_cannot_be_attached_is_announced(
    tmp_path: Path, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
):
    build(tmp_path, **changes).run()
    assert "cannot be attached" in caplog.text


# ---- models of transformers


@pytest.fixture(scope="module")
def wrapped() -> HookedProxyLM:
    model = AutoModelForCausalLM.from_pretrained(MODEL_FOLDER)
    return HookedProxyLM(model, AutoTokenizer.from_pretrained(MODEL_FOLDER))


MODULE = {"hook_name": "gpt_neox.layers.1", "d_in": 256, "model_class_name": "AutoModelForCausalLM"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hook_name": "gpt_neox.layer.1"}, "gpt_neox.layers.1"),
        ({"hook_name": "blocks.1.hook_resid_post"}, "nearest hooks"),
        ({"d_in": 16}, "Set d_in=256"),
        ({"context_size": 1024}, "512 tokens"),
        ({"hook_head_index": 1}, "no heads"),
    ],
    ids=str,
)
def test_module_names(tmp_path: Path, wrapped: HookedProxyLM, changes: dict[str, Any], says: str):
    assert says in refusal(tmp_path, wrapped, **MODULE | changes)


def test_a_module_name_is_checked_before_the_weights_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    given = MODULE | {"hook_name": "gpt_neox.layers.9", "model_name": str(MODEL_FOLDER)}
    cfg = LanguageModelSAERunnerConfig(**options(tmp_path, **given))
    with pytest.raises(ValueError, match="'gpt_neox.layers.3'"):
        MatryoshkaSAETrainingRunner(cfg, override_dataset=token_dataset())


def test_a_model_without_hooks(tmp_path: Path, wrapped: HookedProxyLM):
    with pytest.raises(TypeError, match="GPTNeoXForCausalLM, which has no hooks.*HookedProxyLM"):
        build(tmp_path, wrapped.model, **MODULE)


# ---- what SAELens must keep for this to work


def test_saelens_still_offers_the_moment_between_model_and_dataset():
    assert callable(getattr(LanguageModelSAETrainingRunner, "_compile_llm_if_needed", None))
    assert callable(getattr(LanguageModelSAETrainingRunner, "_set_sae_metadata", None))


def test_cached_activations_are_checked_against_the_model(tmp_path: Path):
    cached = {
        "use_cached_activations": True,
        "cached_activations_path": save_cached_activations(tmp_path),
    }
    wide = HookedSAETransformer(
        TinyModel().cfg.__class__.from_dict(
            TinyModel().cfg.to_dict() | {"d_model": 24, "seed": None}
        )
    )
    assert "Set d_in=24" in refusal(tmp_path, wide, **cached)


def test_text_data(tmp_path: Path):
    cfg = LanguageModelSAERunnerConfig(**options(tmp_path, dataset_path=""))
    with pytest.raises(ValueError, match="Give dataset_path"):
        MatryoshkaSAETrainingRunner(cfg, override_model=TinyModel())
    MatryoshkaSAETrainingRunner(cfg, override_model=TinyModel(), override_dataset=text_dataset())


def test_an_empty_dataset_does_not_mean_another_one(tmp_path: Path):
    cfg = LanguageModelSAERunnerConfig(**options(tmp_path))
    with pytest.raises(ValueError, match="override_dataset is empty"):
        MatryoshkaSAETrainingRunner(
            cfg, override_model=TinyModel(), override_dataset=text_dataset(n_rows=0)
        )
