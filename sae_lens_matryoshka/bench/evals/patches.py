"""The few places where SAEBench has no argument for what the suite must give it.

Applied inside a worker process only; each replaces a module's name by one of the same signature.
tests/bench/test_seams.py fails when SAEBench no longer uses these names in this way.
"""

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

ABSORPTION = "sae_bench.evals.absorption.main"
LOAD_BY_NAME = (
    ABSORPTION,
    "sae_bench.evals.sparse_probing.main",
    "sae_bench.evals.scr_and_tpp.main",
    "sae_bench.evals.core.main",
)


class _AlreadyLoaded:
    """Stands for HookedTransformer where an eval loads the model by its name."""

    def __init__(self, model: "HookedTransformer"):
        self.model = model

    def from_pretrained_no_processing(self, *_: Any, **__: Any) -> "HookedTransformer":
        return self.model


def hand_over_model(module: str, model: "HookedTransformer") -> None:
    """
    Let an eval use a model that is already loaded; it would load one by name for every SAE.

    Args:
        module: One of LOAD_BY_NAME.
        model: The model.
    """
    vars(import_module(module))["HookedTransformer"] = _AlreadyLoaded(model)


def redirect_absorption(probes: Path, experiments: Path) -> None:
    """
    Let absorption write into these folders; it would write into the installed package.

    Args:
        probes: For the first-letter probes, shared by all SAEs.
        experiments: For what it computes of one SAE.
    """
    main = vars(import_module(ABSORPTION))
    k_sparse = import_module("sae_bench.evals.absorption.k_sparse_probing")
    absorption = import_module("sae_bench.evals.absorption.feature_absorption")
    main["run_k_sparse_probing_experiment"] = partial(
        k_sparse.run_k_sparse_probing_experiment,
        experiment_dir=experiments / "k_sparse",
        probes_dir=probes,
    )
    main["run_feature_absortion_experiment"] = partial(
        absorption.run_feature_absortion_experiment,
        experiment_dir=experiments / "absorption",
        sparse_probing_experiment_dir=experiments / "k_sparse",
        probes_dir=probes,
    )


def sort_vocabulary(model: "HookedTransformer") -> None:
    """
    Give the model's tokenizer a vocabulary in a fixed order.

    SAEBench draws words in the order of `tokenizer.vocab`, which changes from process to process. Only
    this tokenizer's class is changed, into a subclass of its own.
    """
    tokenizer: Any = model.tokenizer
    cls: Any = type(tokenizer)

    def vocab(self: Any) -> dict[str, int]:
        return dict(sorted(cls.vocab.fget(self).items()))

    tokenizer.__class__ = type(cls.__name__, (cls,), {"vocab": property(vocab)})


def remember_activations(model: "HookedTransformer", position: int) -> None:
    """
    Let the model answer a batch of prompts that it has seen from memory, at one position.

    Absorption runs the same prompts for every SAE (they depend on the seed alone) and reads one position
    of each. Only this model object is changed.

    Args:
        model: The model.
        position: The position that is read, counted from the end: negative.
    """
    compute = model.run_with_cache
    seen: dict[tuple[str, ...], Any] = {}  # prompts -> (batch, d_model)

    def run_with_cache(prompts: Any, names_filter: list[str], **rest: Any) -> tuple[None, Any]:
        [hook] = names_filter
        key = (hook, *prompts)
        if key not in seen:
            seen[key] = compute(prompts, names_filter=names_filter, **rest)[1][hook][
                :, position
            ].clone()
        # repeated without memory, so that [:, position] finds it
        return None, {hook: seen[key][:, None].expand(-1, -position, -1)}

    vars(model)["run_with_cache"] = run_with_cache


def flatten_heads(model: "HookedTransformer", hook_name: str) -> None:
    """
    Show activations with a dimension for heads, such as hook_z's, as SAEs read them.

    SAEBench's probing expects (batch, context, d_in). Only this model object is changed, and only what
    functions on the hook are given; nothing that they return may replace the activations.

    Args:
        model: The model.
        hook_name: The hook.
    """
    point: Any = model.hook_dict[hook_name]
    add_hook = point.add_hook

    def add(function: Any, *args: Any, **kwargs: Any) -> None:
        def on_flat(activations: Any, hook: Any) -> Any:  # (batch, context, heads, d_head) or flat
            return function(activations.flatten(2), hook=hook)

        add_hook(on_flat, *args, **kwargs)

    point.add_hook = add
