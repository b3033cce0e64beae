"""Checkpoints of other libraries, read as stock SAELens SAEs: as data only, nothing in them is run."""

import ast
import json
import zipfile
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from sae_lens import logger
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAEMetadata

from sae_lens_matryoshka.levels.matryoshka_sae import MatryoshkaSAE
from sae_lens_matryoshka.saes.inference_sae import build

DICTIONARY_LEARNING_WEIGHTS = "ae.pt"
MATRYOSHKA_SAE_WEIGHTS = "sae.pt"
CONFIG_FILENAME = "config.json"

_DICT_CLASS = "MatryoshkaBatchTopKSAE"
_SAE_TYPE = "global-matryoshka-topk"


def read_dictionary_learning(folder: Path, hook_name: str | None) -> MatryoshkaSAE:
    """
    Read what `dictionary_learning` saved of a Matryoshka SAE.

    Args:
        folder: Folder with ae.pt and config.json.
        hook_name: The hook that it was trained on. None: the one that its configuration stands for.

    Returns:
        The SAE; the name of its data set is not in such a checkpoint.

    Raises:
        ValueError: It is another class, is damaged, or its hook is unknown.
    """
    file = folder / CONFIG_FILENAME
    config = read_json(file)
    trainer: dict[str, Any] = config.get("trainer") or {}
    buffer: dict[str, Any] = config.get("buffer") or {}
    _require_keys(trainer, ("dict_class", "activation_dim", "dict_size"), f"{file}: trainer")
    if trainer["dict_class"] != _DICT_CLASS:
        raise ValueError(
            f"{file} describes a {trainer['dict_class']}, which has no levels; {_DICT_CLASS} has. Load "
            "it with SAELens alone: SAE.from_pretrained(repo_id, folder, converter="
            "dictionary_learning_sae_huggingface_loader_1)."
        )
    hook = _residual_hook(trainer, buffer, hook_name, file)
    d_in, d_sae = trainer["activation_dim"], trainer["dict_size"]
    weights = load_weights(folder / DICTIONARY_LEARNING_WEIGHTS)
    groups = _agreed_groups(weights.pop("group_sizes", None), trainer.get("group_sizes"), folder)
    shapes = _shapes(d_in, d_sae) | {"k": ()}
    _require_shapes(weights, shapes, folder / DICTIONARY_LEARNING_WEIGHTS)
    if weights["threshold"] < 0:
        logger.warning(
            f"{folder} was trained for fewer steps than threshold_start_step, so its threshold was "
            "never set: every positive latent fires, as in dictionary_learning. calibrate_threshold("
            "sae, activations, target_l0) sets one."
        )
        weights["threshold"] = torch.tensor(0.0)
    lm_name: str | None = trainer.get("lm_name")
    details = {"k": weights["k"].item(), "level_weights": trainer.get("group_weights")}
    return _as_stock(
        weights,
        _widths(groups, d_sae, folder),
        details,
        normalize_activations="none",
        model_name=lm_name and lm_name.split("/")[-1],  # as SAELens's loader calls it
        hook_name=hook,
        context_size=buffer.get("ctx_len"),
        training_architecture=f"{_DICT_CLASS} (dictionary_learning)",
        source_config=config,
    )


def read_matryoshka_sae(folder: Path) -> MatryoshkaSAE:
    """
    Read what the paper authors' `matryoshka_sae` code saved.

    Args:
        folder: Folder with sae.pt and config.json.

    Raises:
        ValueError: It is another kind of SAE, or is damaged.
    """
    file = folder / CONFIG_FILENAME
    config = read_json(file)
    needed = ("sae_type", "act_size", "dict_size", "group_sizes", "input_unit_norm")
    _require_keys(config, needed, str(file))
    if config["sae_type"] != _SAE_TYPE:
        raise ValueError(
            f"{file} has sae_type={config['sae_type']!r}, which has no levels; {_SAE_TYPE!r} has. If it "
            f"was trained as GlobalBatchTopKMatryoshkaSAE all the same, write {_SAE_TYPE!r} there."
        )
    d_in, d_sae = config["act_size"], config["dict_size"]
    weights = load_weights(folder / MATRYOSHKA_SAE_WEIGHTS)
    _require_shapes(weights, _shapes(d_in, d_sae), folder / MATRYOSHKA_SAE_WEIGHTS)
    weights["b_enc"] = torch.zeros(d_sae)  # saved, but no part of their encoder
    return _as_stock(
        weights,
        _widths(_literal(config["group_sizes"]), d_sae, folder),
        {"k": config.get("top_k")},
        normalize_activations="layer_norm" if _literal(config["input_unit_norm"]) else "none",
        model_name=config.get("model_name"),
        hook_name=config.get("hook_point"),
        context_size=config.get("seq_len"),
        dataset_path=config.get("dataset_path"),
        training_architecture="GlobalBatchTopKMatryoshkaSAE (matryoshka_sae)",
        source_config=config,
    )


def read_json(file: Path) -> dict[str, Any]:
    """
    Read a configuration.

    Raises:
        ValueError: The file holds no JSON object.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}. Copy it again.") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} must hold a JSON object, not {type(config).__name__}.")
    return config


def load_weights(file: Path) -> dict[str, torch.Tensor]:
    """
    Read a state dict that torch.save wrote, and run no code that the file may bring along.

    Raises:
        ValueError: It is no state dict of tensors.
    """
    refusal = (
        f"{file} was not read: it is damaged, or holds more than tensors, and to read that is to run "
        "code that comes with the file. Where you trust it, save its weights alone: "
        "torch.save(sae.state_dict(), path)."
    )
    # PyTorch before 2.6 runs code from its formats of before 1.6, which are no zip archives
    if not zipfile.is_zipfile(file):
        raise ValueError(refusal)
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise anything
        raise ValueError(refusal) from error
    if not isinstance(loaded, dict) or not all(torch.is_tensor(v) for v in loaded.values()):
        raise ValueError(
            f"{file} holds no state dict, which is a dict of tensors. Save one: "
            "torch.save(sae.state_dict(), path)."
        )
    return loaded


def _as_stock(
    weights: Mapping[str, torch.Tensor],
    widths: Sequence[int],
    details: Mapping[str, Any],
    normalize_activations: Any,
    **metadata: Any,
) -> MatryoshkaSAE:
    """A JumpReLU SAE whose thresholds are all the one of the checkpoint."""
    d_in, d_sae = weights["W_enc"].shape
    threshold = weights["threshold"].item()
    known = {key: value for key, value in details.items() if value is not None}
    cfg = JumpReLUSAEConfig(
        d_in=d_in,
        d_sae=d_sae,
        normalize_activations=normalize_activations,
        metadata=SAEMetadata(
            sae_lens_training_version=None,
            training_architecture_details={
                "matryoshka_widths": list(widths),
                "threshold": threshold,
                **known,
            },
            **metadata,
        ),
    )
    state_dict = {name: weights[name].float() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    state_dict["threshold"] = torch.full((d_sae,), threshold)
    return MatryoshkaSAE(build(JumpReLUSAE, cfg, state_dict), widths)


def _residual_hook(
    trainer: dict[str, Any], buffer: dict[str, Any], given: str | None, file: Path
) -> str:
    layer, submodule = trainer.get("layer"), trainer.get("submodule_name")
    # the buffer of attention heads names its layer, and no side
    io = buffer.get("io", "heads" if "layer" in buffer else "out")
    if io == "in_and_out":
        raise ValueError(
            f"{file} has io='in_and_out': it reads one place and writes another, a transcoder and no "
            "SAE. Only SAEs are converted."
        )
    if given is not None:
        return given
    if isinstance(layer, int) and submodule in (None, f"resid_post_layer_{layer}"):
        if io == "out":
            return f"blocks.{layer}.hook_resid_post"
        if io == "in":
            return f"blocks.{layer}.hook_resid_pre"
    raise ValueError(
        f"{file} has layer={layer!r}, submodule_name={submodule!r} and io={io!r}: only the input and "
        "the output of a residual block are known by such names. Say which of TransformerLens's hooks "
        "it is, e.g. hook_name='blocks.8.hook_mlp_out'."
    )


# ---- groups and shapes


def _agreed_groups(saved: torch.Tensor | None, configured: Any, folder: Path) -> Any:
    weights_say = configured if saved is None else saved.tolist()
    if configured not in (None, weights_say):
        raise ValueError(
            f"{folder}: {DICTIONARY_LEARNING_WEIGHTS} has group_sizes={weights_say}, {CONFIG_FILENAME} "
            f"has {configured}: they are of different SAEs. Bring the two files of one run together."
        )
    return weights_say


def _literal(value: Any) -> Any:
    """A value that the authors' code may have written as text, such as "[2304, 4608]"."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def _widths(groups: Any, d_sae: int, folder: Path) -> list[int]:
    is_whole = isinstance(groups, list | tuple) and all(type(g) is int and g > 0 for g in groups)
    if not is_whole or sum(groups) != d_sae:
        raise ValueError(
            f"{folder} has group_sizes={groups!r}, which must be positive whole numbers that sum to "
            f"dict_size={d_sae}. Correct them in {CONFIG_FILENAME} if they were mistyped; else these "
            "files do not belong together."
        )
    return list(accumulate(groups))


def _shapes(d_in: int, d_sae: int) -> dict[str, tuple[int, ...]]:
    return {
        "W_enc": (d_in, d_sae),
        "b_enc": (d_sae,),
        "W_dec": (d_sae, d_in),
        "b_dec": (d_in,),
        "threshold": (),
    }


def _require_shapes(
    weights: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]], file: Path
) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    problems = [f"{name} is missing" for name in shapes if name not in found]
    problems += [f"{name} is unknown" for name in found if name not in shapes]
    problems += [
        f"{name} has the shape {found[name]}, not {shape}"
        for name, shape in shapes.items()
        if found.get(name, shape) != shape
    ]
    if problems:
        raise ValueError(
            f"{file} does not fit {CONFIG_FILENAME}: {'; '.join(problems)}. Bring the two files of one "
            "run together; a changed SAE class cannot be converted."
        )


def _require_keys(config: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    missing = [key for key in keys if key not in config]
    if missing:
        raise ValueError(
            f"{where} lacks {', '.join(missing)}. Give the {CONFIG_FILENAME} that training wrote."
        )
