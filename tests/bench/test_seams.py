"""What is replaced in SAEBench is what is still there, and used in the way that the seams expect."""

import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from sae_lens_matryoshka.bench import seams
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
