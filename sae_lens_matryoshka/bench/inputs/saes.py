"""The SAEs of a benchmark: opened, put into the form that SAEBench measures rightly, cut into levels."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_lens import SAE
from sae_lens.loading.pretrained_sae_loaders import dictionary_learning_sae_huggingface_loader_1
from sae_lens.saes.sae import SAEMetadata, TrainingSAE

from sae_lens_matryoshka.bench.config import SAESource
from sae_lens_matryoshka.levels.matryoshka_sae import MatryoshkaSAE
from sae_lens_matryoshka.loading.download import download_sae
from sae_lens_matryoshka.loading.hub_access import NotFetchedError, fetching
from sae_lens_matryoshka.loading.sae_folder import CFG_FILENAME, require_sae
from sae_lens_matryoshka.loading.saved_folder import open_folder
from sae_lens_matryoshka.saes.inference_sae import (
    copy_of,
    has_unit_norms,
    inference_form,
    named_widths,
    not_finite,
)
from sae_lens_matryoshka.settings.model_names import hook_of
from sae_lens_matryoshka.settings.yaml_file import ConfigError

# What may have been done to a model's weights when an SAE was trained; SAELens's metadata says so.
PROCESSING = (
    "fold_ln",
    "center_writing_weights",
    "center_unembed",
    "fold_value_biases",
    "refactor_factored_attn_matrices",
)


@dataclass(frozen=True)
class Level:
    """
    One level of an SAE.

    Args:
        index: 0 the innermost.
        of: Number of levels of the SAE.
        width: Its latents.
    """

    index: int
    of: int
    width: int


def demo_sae_folder(demo_folder: Path, which: str, seed: int) -> Path:
    """Where one of the demo's SAEs is, among all of them."""
    return demo_folder / which / f"seed_{seed}"


def check_sae_folder(name: str, folder: Path, hook_name: str) -> None:
    """
    Check that a folder holds an SAE of a hook; imports nothing slow.

    Args:
        name: The SAE's name, for errors.
        folder: The folder.
        hook_name: The hook that the benchmark reads.

    Raises:
        ConfigError: It holds none, or one that was trained elsewhere.
    """
    try:
        require_sae(folder)
        content = json.loads((folder / CFG_FILENAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"SAE {name!r} cannot be opened: {error}") from error
    metadata = content.get("metadata") if isinstance(content, dict) else None
    if isinstance(metadata, dict):  # not in files of SAELens before version 6
        check_where_trained(name, metadata, hook_name)


def open_sae(source: SAESource, demo_folder: Path) -> SAE[Any]:
    """
    The SAE as it was saved, or as a checkpoint would be, in float32 on the CPU.

    Args:
        source: Where it is.
        demo_folder: Where the demo's SAEs were trained.

    Raises:
        ConfigError: There is no such SAE.
    """
    try:
        with fetching(f"SAE {source.name!r}", "Give the folder of a saved SAE as folder."):
            return _open(source, demo_folder)
    except NotFetchedError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"SAE {source.name!r} cannot be opened: {error}") from error


def _open(source: SAESource, demo_folder: Path) -> SAE[Any]:
    folder = source.folder
    if source.demo:
        folder = demo_sae_folder(demo_folder, source.demo, source.training_seed)
    elif source.repo and source.id and source.format == "saelens":
        folder = download_sae(source.repo, source.id, source.revision)
    if folder is not None:
        return open_folder(folder, dtype="float32")
    release, sae_id = source.release or source.repo, source.id
    assert release and sae_id  # checked with the config
    converter = None
    if source.format == "dictionary_learning":
        converter = dictionary_learning_sae_huggingface_loader_1
    return SAE.from_pretrained(release, sae_id, device="cpu", converter=converter)


def bench_form(sae: SAE[Any], name: str, hook_name: str, model_name: str) -> SAE[Any]:
    """
    A copy of an SAE that SAEBench measures rightly: decoder norms folded, metadata complete.

    SAEBench only warns about other norms, and its absorption numbers change with them.

    Args:
        sae: Any SAE of SAELens; stays as it is.
        name: What to call it in errors.
        hook_name: The hook that the benchmark reads.
        model_name: The model's label, for an SAE that names none.

    Raises:
        ConfigError: It was trained on another hook, on one head or as a transcoder, its weights are not
            finite, or its norms cannot be folded.
    """
    copied = inference_form(sae) if isinstance(sae, TrainingSAE) else copy_of(sae)
    if hasattr(copied.cfg, "d_out"):
        raise ConfigError(
            f"SAE {name!r} is a transcoder: it reconstructs another activation than its input, which neither SAEBench "
            "nor FVU here measures. Leave it out."
        )
    check_where_trained(name, copied.cfg.metadata, hook_name)
    if broken := not_finite(copied):
        raise ConfigError(f"SAE {name!r} holds numbers that are not finite in {', '.join(broken)}.")
    if copied.cfg.reshape_activations != "none":
        copied.cfg.reshape_activations = "none"  # here heads are flattened before the SAE sees them
        copied.turn_off_forward_pass_hook_z_reshaping()
    copied.cfg.metadata.hook_name = hook_name
    copied.cfg.metadata.model_name = copied.cfg.metadata.model_name or model_name
    if copied.cfg.metadata.prepend_bos is None:
        copied.cfg.metadata.prepend_bos = True  # SAELens's default in training
    if not has_unit_norms(copied):
        try:
            copied.fold_W_dec_norm()
        except NotImplementedError as error:
            raise ConfigError(
                f"SAE {name!r} has decoder norms that are not 1, and folding them would change which "
                f"latents fire ({error}). For a topk SAE, calibrate_threshold(sae, activations, "
                "target_l0, as_jumprelu=True) gives one that can be measured."
            ) from error
    return copied


def check_where_trained(
    name: str, metadata: SAEMetadata | Mapping[str, Any], hook_name: str
) -> None:
    """
    Check that an SAE was trained on what a benchmark measures it on, as far as its metadata says.

    Args:
        name: The SAE's name, for errors.
        metadata: Its metadata.
        hook_name: The hook that the benchmark reads.

    Raises:
        ConfigError: It was trained on another hook, on one head, or on processed weights.
    """
    if (head := metadata.get("hook_head_index")) is not None:
        raise ConfigError(
            f"SAE {name!r} was trained on head {head} alone, but SAEBench's probing reads all heads of a hook. Leave "
            "it out."
        )
    place = metadata.get("hook_name")
    try:
        trained_on = place and hook_of(place)
    except ValueError as error:
        raise ConfigError(f"SAE {name!r} cannot be measured: {error}.") from error
    kwargs: dict[str, Any] = metadata.get("model_from_pretrained_kwargs") or {}
    if processed := [key for key in PROCESSING if kwargs.get(key)]:
        raise ConfigError(
            f"SAE {name!r} was trained on a model with {', '.join(processed)}, but the benchmark runs it with its "
            "weights as they are, on which the SAE's numbers would mean nothing."
        )
    if trained_on not in (None, hook_name):
        raise ConfigError(
            f"SAE {name!r} was trained on {trained_on}, but hook_name is {hook_name}. Its numbers there "
            "would mean nothing: give the SAE's own hook, in a config of its own."
        )


def chosen_levels(sae: SAE[Any], source: SAESource) -> list[Level]:
    """
    The levels to measure, innermost first; a flat SAE has one.

    Raises:
        ConfigError: A level does not exist, or the SAE's levels do not stand alone (topk).
    """
    widths = source.widths or named_widths(sae.cfg.metadata) or [sae.cfg.d_sae]
    try:
        matryoshka = MatryoshkaSAE(sae, widths)
    except ValueError as error:
        raise ConfigError(f"SAE {source.name!r}: {error}") from error
    every = [Level(i, len(matryoshka.widths), w) for i, w in enumerate(matryoshka.widths)]
    if source.levels == "outermost":
        return every[-1:]
    if source.levels == "all":
        chosen = every
    else:
        missing = [i for i in source.levels if not 0 <= i < len(every)]
        if missing or not source.levels:
            raise ConfigError(
                f"SAE {source.name!r}: levels {missing or '[]'} do not exist. It has the levels 0 to "
                f"{len(every) - 1}, of widths {list(matryoshka.widths)}."
            )
        chosen = [every[i] for i in sorted(set(source.levels))]
    if any(level.width < sae.cfg.d_sae for level in chosen):
        try:
            matryoshka.truncate(1)
        except ValueError as error:
            raise ConfigError(
                f"SAE {source.name!r}: {error} Or ask for levels: outermost."
            ) from error
    return chosen


def cut(sae: SAE[Any], level: Level) -> SAE[Any]:
    """A new SAE of the level's latents; SAEBench may change it."""
    if level.width == sae.cfg.d_sae:
        return copy_of(sae)
    return MatryoshkaSAE(sae, [level.width]).truncate(level.width)


def layer_of(hook_name: str) -> int | None:
    """The layer that a hook belongs to, None for hooks outside the blocks."""
    match = re.match(r"blocks\.(\d+)\.", hook_name)
    return int(match[1]) if match else None
