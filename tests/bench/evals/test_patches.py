"""What is replaced in SAEBench is what is still there, and used in the way that the seams expect."""

import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_lens_matryoshka.bench.evals import patches as seams
from sae_lens_matryoshka.demo.model import load_model


@pytest.fixture
def restored() -> Iterator[None]:
    """Undo what a seam does: outside a worker, other tests follow."""
    before = {name: dict(vars(import_module(name))) for name in seams.LOAD_BY_NAME}
    yield
    for name, names in before.items():
        vars(import_module(name)).update(names)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("module", seams.LOAD_BY_NAME)
def test_evals_load_the_model_by_name_in_one_call(module: str):
    source = inspect.getsource(import_module(module))
    assert source.count("HookedTransformer.from_pretrained_no_processing(") == 1
    assert source.count("HookedTransformer.") == 1
    model = object()
    seams.hand_over_model(module, model)  # type: ignore[arg-type]
    given = vars(import_module(module))["HookedTransformer"]
    assert given.from_pretrained_no_processing("any", device="cpu", dtype=None) is model


@pytest.mark.usefixtures("restored")
def test_absorption_takes_its_folders_as_arguments(tmp_path: Path):
    main = import_module(seams.ABSORPTION)
    run_eval = inspect.getsource(main.run_eval)
    for name in ("run_k_sparse_probing_experiment", "run_feature_absortion_experiment"):
        assert run_eval.count(f"{name}(") == 1
        parameters = inspect.signature(getattr(main, name)).parameters
        assert {"experiment_dir", "probes_dir"} <= set(parameters)
        assert "_dir=" not in run_eval  # else our folders would be overruled
    seams.redirect_absorption(tmp_path / "probes", tmp_path / "experiments")
    ours = main.run_k_sparse_probing_experiment.keywords
    assert ours["probes_dir"] == tmp_path / "probes"
    assert "sparse_probing_experiment_dir" in main.run_feature_absortion_experiment.keywords


def test_the_vocabulary_gets_a_fixed_order():
    from sae_bench.evals.absorption.vocab import get_alpha_tokens

    model, plain = load_model(), load_model()
    seams.sort_vocabulary(model)
    words = get_alpha_tokens(model.tokenizer)  # type: ignore[arg-type]
    assert sorted(words) == sorted(get_alpha_tokens(plain.tokenizer))  # type: ignore[arg-type]
    vocab = model.tokenizer.vocab  # type: ignore[union-attr]
    assert list(vocab) == sorted(vocab)
    assert vocab == plain.tokenizer.vocab  # type: ignore[union-attr]
    assert model.tokenizer("a word").input_ids == plain.tokenizer("a word").input_ids  # type: ignore
    assert type(plain.tokenizer) is not type(model.tokenizer)  # no other tokenizer changes


def test_saebench_reads_the_vocabulary_where_it_is_sorted():
    source = inspect.getsource(import_module("sae_bench.evals.absorption.vocab"))
    assert source.count(".vocab.") == 1
    assert "tokenizer.vocab.keys()" in source
    assert "get_vocab" not in source


def test_prompts_that_were_seen_are_answered_alike(monkeypatch: pytest.MonkeyPatch):
    model = load_model()
    hook = "blocks.1.hook_resid_post"
    prompts = ["one two three four five", "six seven eight nine ten"]
    expected = model.run_with_cache(prompts, names_filter=[hook])[1][hook]
    seams.remember_activations(model, -3)
    for _ in range(2):
        found = model.run_with_cache(prompts, names_filter=[hook])[1][hook]
        assert torch.equal(found[:, -3, :], expected[:, -3, :])

        def broken(*_: Any, **__: Any) -> None:
            raise AssertionError("the model was asked again")

        monkeypatch.setattr(model, "forward", broken)  # the second time from memory
    with pytest.raises(AssertionError):
        model.run_with_cache(prompts[:1], names_filter=[hook])


def test_absorption_reads_one_position_of_one_hook():
    from sae_bench.evals.absorption import feature_absorption_calculator

    source = inspect.getsource(feature_absorption_calculator)
    assert source.count("self.model.run_with_cache(") == 1
    assert (
        "names_filter=[hook_point],\n            )[1][hook_point][:, self.word_token_pos, :]"
        in source
    )
