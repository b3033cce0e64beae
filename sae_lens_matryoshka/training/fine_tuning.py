"""Start training from an SAE that was trained before: from_pretrained_path and override_sae."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from sae_lens import (
    SAE,
    LanguageModelSAERunnerConfig,
    SAETrainer,
    TrainingSAE,
    TrainingSAEConfig,
    logger,
)
from sae_lens.saes.sae import SAEConfig
from sae_lens.saes.topk_sae import TopKSAE

from sae_lens_matryoshka.loading.sae_folder import require_sae
from sae_lens_matryoshka.loading.saved_folder import open_folder
from sae_lens_matryoshka.saes.inference_sae import has_unit_norms

# Inference architectures with an encoder, a decoder and two biases, and what they select latents by.
SELECTS_BY = {"standard": "sign", "topk": "rank", "jumprelu": "threshold"}

# How training SAEs select latents, by architecture or by the activation of a Matryoshka SAE.
TRAINS_BY = {
    "standard": "sign",
    "relu": "sign",
    "topk": "rank",
    "jumprelu": "threshold",
    "batchtopk": "threshold",  # saved as one
    "matryoshka_batchtopk": "threshold",
}

SCALED = "expected_average_only_in"

# Fields that saving changes, that say nothing of an SAE, or that concern fresh weights only.
NOT_COMPARED = {
    "device",
    "dtype",
    "metadata",
    "normalize_activations",
    "reshape_activations",
    "rescale_acts_by_decoder_norm",
    "decoder_init_norm",
    "jumprelu_init_threshold",
}


def new_sae(cfg: LanguageModelSAERunnerConfig[Any]) -> TrainingSAE[Any]:
    """The training SAE that a run's configuration describes, with fresh weights."""
    sae_cfg = TrainingSAEConfig.from_dict(cfg.get_training_sae_cfg_dict())  # a copy of its own
    return TrainingSAE.from_dict(sae_cfg.to_dict())


def sae_from_disk(cfg: LanguageModelSAERunnerConfig[Any]) -> TrainingSAE[Any]:
    """
    The training SAE that a run's configuration describes, with the weights of a saved SAE.

    The saved SAE, or what would be saved of a checkpoint, gives the weights in its order of latents;
    everything else is the configuration's.

    Args:
        cfg: The run's configuration, with from_pretrained_path.

    Raises:
        FileNotFoundError: There is no SAE in from_pretrained_path.
        ValueError: The saved SAE cannot become the configured one; names each difference.
    """
    folder = Path(str(cfg.from_pretrained_path)).expanduser()
    try:
        require_sae(folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"from_pretrained_path: {error}") from error
    # norms and thresholds are folded before the weights are rounded to the run's data type
    saved = open_folder(folder, "float64" if cfg.sae.dtype == "float64" else "float32")
    _check_convertible(saved, cfg)
    _report_differences(saved, cfg)
    ranks_otherwise = isinstance(saved, TopKSAE) and not _ranks_by_norm(saved.cfg)
    any_ranks_by_norm = _ranks_by_norm(saved.cfg) or _ranks_by_norm(cfg.sae)
    if any_ranks_by_norm and not ranks_otherwise and not has_unit_norms(saved):
        saved.fold_W_dec_norm()
    sae = new_sae(cfg)
    _copy_weights(saved, sae)
    return sae


@torch.no_grad()
def scale_to_run(trainer: SAETrainer[Any, Any]) -> None:
    """
    Bring loaded weights, made for unscaled activations, to the scale of a run's activations.

    Args:
        trainer: The trainer before its first step. It measures the scale only once.
    """
    sae, scaler = trainer.sae, trainer.activation_scaler
    if sae.cfg.normalize_activations != SCALED:
        return
    scaler.estimate_scaling_factor(
        d_in=sae.cfg.d_in,
        data_provider=trainer.data_provider,
        n_batches_for_norm_estimate=trainer.cfg.n_batches_for_norm_estimate,
    )
    assert scaler.scaling_factor is not None
    sae.fold_activation_norm_scaling_factor(1 / scaler.scaling_factor)
    sae.cfg.normalize_activations = SCALED  # folding says that it is done


def check_override(sae: TrainingSAE[Any], cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """
    Check that an SAE given as an object is the one that the configuration describes.

    Args:
        sae: The given SAE.
        cfg: The run's configuration, which is what the results record.

    Raises:
        TypeError: It is no training SAE.
        ValueError: It is not the configured one; names each difference.
    """
    if not isinstance(sae, TrainingSAE):
        raise TypeError(
            f"override_sae is a {type(sae).__name__}, not a training SAE. To train a saved SAE further, "
            "give its folder as from_pretrained_path."
        )
    if cfg.from_pretrained_path is not None:
        raise ValueError(
            f"from_pretrained_path={cfg.from_pretrained_path!r} has no effect beside override_sae. "
            "Give one of the two."
        )
    ours, given = cfg.sae, sae.cfg
    names = [field.name for field in fields(ours) if field.name not in ("device", "metadata")]
    wrong = [
        f"{name}={getattr(given, name, None)!r} instead of {getattr(ours, name)!r}"
        for name in names
        if getattr(given, name, None) != getattr(ours, name)
    ]
    if given.architecture() != ours.architecture():
        wrong = [f"architecture={given.architecture()!r} instead of {ours.architecture()!r}"]
    if wrong:
        raise ValueError(
            f"override_sae is not the SAE of the configuration: it has {', '.join(wrong)}. Give the "
            "runner a configuration with sae=override_sae.cfg."
        )


# ---- what can become what


def _check_convertible(saved: SAE[Any], cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    ours, theirs = cfg.sae, saved.cfg
    wrong = [
        f"{name}={getattr(ours, name)!r} instead of {getattr(theirs, name)!r}"
        for name in ("d_in", "d_sae")
        if getattr(ours, name) != getattr(theirs, name)
    ]
    if not _has_same_weights(theirs.architecture(), ours):
        wrong.append(
            f"architecture={ours.architecture()!r}, whose weights are not those of "
            f"{theirs.architecture()!r}"
        )
    as_saved = {theirs.normalize_activations}
    if theirs.normalize_activations == "none":
        as_saved.add(SCALED)
    if ours.normalize_activations not in as_saved or theirs.normalize_activations == SCALED:
        wrong.append(
            f"normalize_activations={ours.normalize_activations!r} instead of "
            f"{theirs.normalize_activations!r}"
        )
    ranks_otherwise = isinstance(saved, TopKSAE) and not _ranks_by_norm(theirs)
    # weights saved in low precision do not have norms of exactly 1
    if ranks_otherwise and _ranks_by_norm(ours) and not has_unit_norms(saved, tolerance=0.01):
        wrong.append("rescale_acts_by_decoder_norm=True instead of False")
    if getattr(ours, "b_dec_init", "zeros") != "zeros":
        wrong.append(
            f"b_dec_init={ours.b_dec_init!r} instead of 'zeros', which keeps the saved b_dec"
        )
    if wrong:
        raise ValueError(
            f"from_pretrained_path={cfg.from_pretrained_path!r} cannot become the SAE that the run "
            f"asks for: {'; '.join(wrong)}. Give the values of the saved SAE, or leave the path out."
        )


def _has_same_weights(saved: str, ours: TrainingSAEConfig) -> bool:
    if saved in SELECTS_BY:
        return _kind(ours) in TRAINS_BY
    return saved == ours.architecture()


def _ranks_by_norm(cfg: SAEConfig) -> bool:
    """Whether latents are compared by their activation times the norm of their decoder row."""
    return getattr(cfg, "rescale_acts_by_decoder_norm", False)


def _kind(cfg: TrainingSAEConfig) -> str:
    return getattr(cfg, "activation", cfg.architecture())


def _report_differences(saved: SAE[Any], cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """Say what the configuration changes, since its defaults do so as well."""
    metadata = saved.cfg.metadata
    details = metadata.training_architecture_details or {}
    theirs = {**details, **vars(saved.cfg)}
    names = {field.name for field in fields(cfg.sae)} & theirs.keys() - NOT_COMPARED
    if metadata.training_architecture != cfg.sae.architecture():
        names &= {"k", "matryoshka_widths", "apply_b_dec_to_input"}
    changes = [(name, getattr(cfg.sae, name), theirs[name]) for name in sorted(names)]
    changes += [
        (name, getattr(cfg, name), metadata[name])
        for name in ("model_name", "hook_name", "hook_head_index")
        if metadata[name] is not None or name == "hook_head_index"
    ]
    texts = [f"{name}={new!r} instead of {old!r}" for name, new, old in changes if new != old]
    selects = SELECTS_BY.get(saved.cfg.architecture())
    if selects is not None and TRAINS_BY[_kind(cfg.sae)] != selects:
        texts.append(
            f"{_kind(cfg.sae)!r} activations instead of {saved.cfg.architecture()!r}, so that other "
            "latents are active from the first step on"
        )
    if texts:
        logger.warning(
            f"Training goes on from {cfg.from_pretrained_path} as this run is configured: "
            f"{'; '.join(texts)}."
        )


@torch.no_grad()
def _copy_weights(saved: SAE[Any], sae: TrainingSAE[Any]) -> None:
    weights = dict(saved.named_parameters())
    for name, parameter in sae.named_parameters():
        if name in weights:  # no threshold to start from: the configured one
            parameter.copy_(weights[name])
    if saved.cfg.apply_b_dec_to_input != sae.cfg.apply_b_dec_to_input:
        if "b_enc" not in weights:
            raise ValueError(
                f"apply_b_dec_to_input={sae.cfg.apply_b_dec_to_input} instead of "
                f"{saved.cfg.apply_b_dec_to_input} cannot be had with this architecture. Leave it as it was."
            )
        shift = weights["b_dec"] @ weights["W_enc"]  # (d_sae,): keeps the pre-activations
        b_enc = weights["b_enc"] + (shift if sae.cfg.apply_b_dec_to_input else -shift)
        sae.b_enc.copy_(b_enc)  # pyright: ignore[reportCallIssue, reportUnknownMemberType]
    threshold, running = weights.get("threshold"), dict(sae.named_buffers()).get("topk_threshold")
    # one for all latents, but for rounding: what a batch top-k is saved with
    if running is not None and threshold is not None and threshold.max() < 1.01 * threshold.min():
        running.copy_(threshold.mean())
