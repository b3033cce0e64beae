"""The language model of a benchmark: opened, checked against the hook, fingerprinted."""

from difflib import get_close_matches
from typing import TYPE_CHECKING, cast

import torch

from sae_lens_matryoshka.bench.config import DEMO, ModelSource
from sae_lens_matryoshka.language_models import missing_files, open_local_model
from sae_lens_matryoshka.levels.fingerprint import hash_files
from sae_lens_matryoshka.loading.hub_access import NotFetchedError, fetching
from sae_lens_matryoshka.settings.model_names import official_name, similar_names
from sae_lens_matryoshka.settings.yaml_file import ConfigError

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

GIVE_MODEL = "Give a folder with its config, weights and tokenizer as model.folder."
# files that decide what a local model computes
_DEFINING = ("*.json", "*.safetensors", "pytorch_model*.bin", "*.model", "*.txt")


def device_of(source: ModelSource) -> str:
    """The device to run on."""
    return source.device or ("cuda" if torch.cuda.is_available() else "cpu")


def open_model(source: ModelSource) -> "HookedTransformer":
    """
    The model as SAELens trains SAEs on it: weights as they are, nothing folded.

    Args:
        source: Where it is.

    Raises:
        FileNotFoundError: The folder is no model.
    """
    device, dtype = device_of(source), getattr(torch, source.dtype)
    if source.name == DEMO:
        from sae_lens_matryoshka.demo.model import load_model

        return load_model(device=device).to(dtype)
    if source.folder is not None:
        return open_local_model(source.folder, source.label, device, dtype, source.prepend_bos)
    from transformer_lens import HookedTransformer

    with fetching(f"The model {source.name}", GIVE_MODEL):
        return HookedTransformer.from_pretrained_no_processing(
            cast(str, source.name),
            device=device,
            dtype=dtype,
            default_prepend_bos=source.prepend_bos,
        )


def check_same_model(source: ModelSource, trained_on: str | None, name: str) -> None:
    """
    Check that an SAE's metadata does not name another model than the benchmark's.

    Args:
        source: The benchmark's model.
        trained_on: The model that the metadata names, if any.
        name: The SAE's name, for errors.

    Raises:
        ConfigError: Both are TransformerLens's names, of different models.
    """
    ours, theirs = official_name(source.name), official_name(trained_on)
    if ours and theirs and ours != theirs:
        raise ConfigError(
            f"SAE {name!r} was trained on {trained_on}, but the model is {source.name}. Give the SAE's own."
        )


def check_hook(model: "HookedTransformer", hook_name: str, d_in: dict[str, int]) -> None:
    """
    Check that the hook exists and that SAEs of these sizes fit it.

    Args:
        model: The model.
        hook_name: The hook.
        d_in: SAE name to its input size.

    Raises:
        ConfigError: They do not fit.
    """
    if hook_name not in model.hook_dict:
        near = get_close_matches(hook_name, model.hook_dict, n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(f"hook_name: the model has no hook {hook_name!r}.{hint}")
    with torch.no_grad():
        start = torch.zeros(1, 1, dtype=torch.long, device=model.cfg.device)
        _, cache = model.run_with_cache(start, names_filter=hook_name)
    width = cache[hook_name][0, 0].numel()  # heads are flattened
    wrong = {name: size for name, size in d_in.items() if size != width}
    if wrong:
        listed = ", ".join(f"{name!r} reads {size}" for name, size in wrong.items())
        raise ConfigError(
            f"{hook_name} of this model has {width} numbers per token, but SAE {listed}. It belongs to "
            "another model or hook."
        )


def check_source(source: ModelSource) -> None:
    """
    Check that there is such a model, as far as this machine knows.

    Raises:
        ConfigError: The folder is no model, or TransformerLens does not know the name.
    """
    if source.folder is not None:
        missing = missing_files(source.folder) if source.folder.is_dir() else ["the folder itself"]
        if missing:
            raise ConfigError(
                f"model.folder: {source.folder} is no language model: {', '.join(missing)} is missing. "
                "Give a folder with config, weights and tokenizer."
            )
    elif source.name != DEMO and official_name(source.name) is None:
        raise ConfigError(
            f"model.name: TransformerLens knows no {source.name!r}.{similar_names(source.name)} Give one of its "
            "names, or a local folder as model.folder."
        )


def model_fingerprint(source: ModelSource) -> str:
    """
    A hash of the model's content; for a Hub model its commit.

    Raises:
        ConfigError: The folder is no model, or the Hub does not say which version it gives.
    """
    check_source(source)
    if source.name == DEMO:
        from sae_lens_matryoshka.demo.model import MODEL_FOLDER

        return hash_files(MODEL_FOLDER, _DEFINING)
    if source.folder is not None:
        return hash_files(source.folder, _DEFINING)
    return _hub_commit(cast(str, official_name(source.name)))


def demo_key() -> str:
    """A hash of the demo's model and of all code that trains: what its data sets and SAEs come from."""
    from sae_lens_matryoshka.demo.model import MODEL_FOLDER

    code = ("*.py", "engine/*.py", "saes/*.py", "training/**/*.py", "levels/*.py", "demo/*.py")
    return hash_files(
        MODEL_FOLDER.parents[1], (*code, "demo/model/*.json", "demo/model/*.safetensors")
    )


def _hub_commit(official: str) -> str:
    from transformers import AutoConfig

    try:
        with fetching(f"The model {official}", GIVE_MODEL):
            config = AutoConfig.from_pretrained(official)
    except NotFetchedError:
        raise
    except OSError as error:
        raise ConfigError(f"model.name: {official} cannot be reached: {error}") from error
    commit = getattr(config, "_commit_hash", None)
    if not commit:
        raise ConfigError(
            f"model.name: the Hub does not say which version of {official} it gives, so old results "
            "could not be told from new ones. Download it and give the folder as model.folder."
        )
    return str(commit)
