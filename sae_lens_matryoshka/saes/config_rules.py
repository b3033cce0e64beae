"""Which options of a configuration are possible, and which fit each other."""

import math
from numbers import Real
from typing import TYPE_CHECKING, Any, get_args

from sae_lens_matryoshka.saes.objective import level_weights

if TYPE_CHECKING:
    from sae_lens_matryoshka.saes.config import MatryoshkaTrainingSAEConfig


def one_of(name: str, value: Any, allowed: Any) -> None:
    """Raise unless the value is one of a Literal's."""
    if value not in get_args(allowed):
        raise ValueError(f"{name}={value!r} must be one of {list(get_args(allowed))}.")


def is_whole(value: Any) -> bool:
    """Whether it is a finite whole number, of any type."""
    return _is_number(value) and value == int(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_whole(cfg: "MatryoshkaTrainingSAEConfig", name: str) -> None:
    value = getattr(cfg, name)
    if _is_number(value) and not is_whole(value):
        raise ValueError(f"{name}={value!r} must be a whole number.")


def check_k(cfg: "MatryoshkaTrainingSAEConfig") -> None:
    if not cfg.uses_top_k:
        return
    check_number(
        cfg,
        "k",
        f"greater than 0 and at most d_sae ({cfg.d_sae}); the default is 100",
        lambda value: 0 < value <= cfg.d_sae,
    )
    if cfg.activation == "topk" and not is_whole(cfg.k):
        raise ValueError(
            f"k={cfg.k!r} must be a whole number with activation='topk', which keeps k latents of "
            "every token. For an average of fractions use activation='batchtopk'."
        )


def check_level_weights(cfg: "MatryoshkaTrainingSAEConfig") -> None:
    weights, mu = cfg.level_weights, cfg.level_weight_mu
    if weights is not None and mu is not None:
        raise ValueError(
            f"level_weights={weights} and level_weight_mu={mu} both set the level weights. Give one."
        )
    check_number(cfg, "level_weight_mu", "at least 0", lambda value: value >= 0)
    if weights is None:
        return
    if cfg.prefix_sampling == "random":
        raise ValueError(
            f"level_weights={weights} needs fixed levels, but prefix_sampling='random' draws them "
            "anew each step. Use level_weight_mu, or prefix_sampling='fixed'."
        )
    if not isinstance(weights, list | tuple):
        raise ValueError(f"level_weights={weights!r} must be a list of numbers, one per level.")
    if len(weights) != len(cfg.widths):
        raise ValueError(
            f"level_weights={weights} has {len(weights)} entries for the {len(cfg.widths)} levels "
            f"{cfg.widths} (d_sae is always the last). Give one weight per level."
        )
    if any(not _is_number(weight) or weight < 0 for weight in weights):
        raise ValueError(
            f"level_weights={weights} must be finite numbers, at least 0 (0 leaves a level out)."
        )
    if not any(weights):
        raise ValueError(
            f"level_weights={weights} leaves every level out: nothing would be reconstructed. "
            "Give at least one level a positive weight."
        )


def check_prefixes(cfg: "MatryoshkaTrainingSAEConfig") -> None:
    if cfg.prefix_sampling == "fixed":
        for name in ("n_prefixes", "pareto_power"):
            if getattr(cfg, name) != getattr(type(cfg), name):
                raise ValueError(
                    f"{name}={getattr(cfg, name)!r} has no effect with prefix_sampling='fixed'. "
                    f"Leave it out or set prefix_sampling='random'."
                )
        return
    if not is_whole(cfg.n_prefixes) or not 1 <= cfg.n_prefixes <= cfg.d_sae:
        raise ValueError(
            f"n_prefixes={cfg.n_prefixes!r} must be a whole number from 1 to d_sae ({cfg.d_sae}): "
            "the widths are drawn without replacement."
        )
    check_number(cfg, "pareto_power", "greater than 0", lambda value: value > 0)


def check_aux_loss(cfg: "MatryoshkaTrainingSAEConfig") -> None:
    if cfg.aux_loss == "none":
        for name in ("aux_loss_coefficient", "k_aux"):
            if getattr(cfg, name) is not None:
                raise ValueError(
                    f"{name}={getattr(cfg, name)!r} has no effect with aux_loss='none'"
                    f"{'' if cfg.uses_top_k else f', the default of {cfg.activation}'}. "
                    "Leave it out or set aux_loss='global' or 'per_level'."
                )
    if cfg.aux_loss == "per_level" and cfg.prefix_sampling == "random":
        raise ValueError(
            "aux_loss='per_level' needs fixed levels, but prefix_sampling='random' draws them anew "
            "each step. Use aux_loss='global', or prefix_sampling='fixed'."
        )
    check_number(cfg, "aux_loss_coefficient", "at least 0", lambda value: value >= 0)
    if cfg.k_aux is not None and not (is_whole(cfg.k_aux) and cfg.k_aux > 0):
        raise ValueError(f"k_aux={cfg.k_aux!r} must be a positive whole number of latents.")


def check_number(
    cfg: "MatryoshkaTrainingSAEConfig", name: str, allowed: str, is_allowed: Any
) -> None:
    value = getattr(cfg, name)
    if value is None:
        return
    if not _is_number(value) or not is_allowed(value):
        raise ValueError(f"{name}={value!r} must be {allowed}.")


def check_annealing(cfg: "MatryoshkaTrainingSAEConfig") -> None:
    """k_start and k_anneal_steps: both or neither."""
    if (cfg.k_start is None) != (cfg.k_anneal_steps is None):
        raise ValueError(
            f"k_start={cfg.k_start!r} and k_anneal_steps={cfg.k_anneal_steps!r} belong together: k goes "
            "from k_start to k in that many steps. Give both or neither."
        )
    check_number(
        cfg,
        "k_start",
        f"greater than 0 and at most d_sae ({cfg.d_sae})",
        lambda value: 0 < value <= cfg.d_sae,
    )
    check_number(cfg, "k_anneal_steps", "at least 1 step", lambda value: value >= 1)
    if cfg.k_start is not None and cfg.k_start == cfg.k:
        raise ValueError(
            f"k_start={cfg.k_start!r} is k: there is nothing to anneal. Leave it out, or give another."
        )
    if cfg.activation == "topk" and cfg.k_start is not None and cfg.k_start < 1:
        raise ValueError(
            f"k_start={cfg.k_start!r} must be at least 1 with activation='topk', which keeps whole numbers "
            "of latents."
        )


def check_nesting(cfg: "MatryoshkaTrainingSAEConfig") -> None:
    """detach_inner_levels and latent_order: only where there are levels that they concern."""
    if cfg.prefix_sampling == "random":
        if cfg.detach_inner_levels:
            raise ValueError(
                "detach_inner_levels=True needs fixed levels, but prefix_sampling='random' draws them "
                "anew each step. Leave one of the two out."
            )
        return
    if cfg.detach_inner_levels and len(cfg.widths) < 3:
        raise ValueError(
            f"detach_inner_levels=True has no effect with the levels {cfg.widths}: it concerns those "
            "between the innermost and the outermost. Leave it out or give three widths or more."
        )
    between = level_weights(len(cfg.widths), cfg.level_weights, cfg.level_weight_mu)[1:-1]
    if cfg.detach_inner_levels and not any(between):
        raise ValueError(
            "detach_inner_levels=True has no effect where every level between the innermost and the outermost "
            "has weight 0. Leave it out, or give one of them a weight."
        )
    if cfg.level_weight_mu is not None and len(cfg.widths) < 2:
        raise ValueError(
            f"level_weight_mu={cfg.level_weight_mu} has no effect with one level. Leave it out or give "
            "matryoshka_widths."
        )
    if cfg.latent_order != "fixed" and len(cfg.widths) < 2:
        raise ValueError(
            f"latent_order={cfg.latent_order!r} has no effect with one level. Leave it out or give "
            "matryoshka_widths."
        )


def check_refinement(cfg: "MatryoshkaTrainingSAEConfig") -> None:
    """refinement_step and refine_until."""
    check_number(cfg, "refinement_step", "greater than 0", lambda value: value > 0)
    check_number(cfg, "refine_until", "at least 1 step", lambda value: value >= 1)
    if cfg.refine_until is not None and cfg.refinement_step is None:
        raise ValueError(
            f"refine_until={cfg.refine_until} has no effect without refinement_step. Leave it out or set "
            "refinement_step."
        )


def check_controller(cfg: "MatryoshkaTrainingSAEConfig") -> None:
    """target_l0: only where it is reached."""
    check_number(
        cfg,
        "target_l0",
        f"greater than 0 and at most d_sae ({cfg.d_sae})",
        lambda value: 0 < value <= cfg.d_sae,
    )
    if cfg.target_l0 is not None and cfg.l1_coefficient == 0:
        raise ValueError(
            f"target_l0={cfg.target_l0} has no effect with l1_coefficient=0, which its controller multiplies. "
            "Raise it, or leave target_l0 out."
        )


def check_snapping(cfg: "MatryoshkaTrainingSAEConfig") -> None:
    """snap_after_steps: only where nothing is weighed against the error."""
    check_number(cfg, "snap_after_steps", "at least 0 steps", lambda value: value >= 0)
    if cfg.snap_after_steps is not None and not cfg.uses_top_k:
        raise ValueError(
            f"snap_after_steps={cfg.snap_after_steps} with activation={cfg.activation!r}: the error would fall "
            "from a square to a norm while the sparsity penalty keeps its weight, and few latents would be left. "
            "Leave it out, or set activation='batchtopk' or 'topk'."
        )


def check_resampling(cfg: "MatryoshkaTrainingSAEConfig") -> None:
    """resample_every and resample_until."""
    check_number(cfg, "resample_every", "at least 1 step", lambda value: value >= 1)
    if cfg.resample_until is None:
        return
    if cfg.resample_every is None:
        raise ValueError(
            f"resample_until={cfg.resample_until!r} has no effect without resample_every. Leave it out or "
            "set resample_every."
        )
    check_number(
        cfg,
        "resample_until",
        f"at least resample_every ({cfg.resample_every})",
        lambda value: value >= cfg.resample_every,
    )


def check_schedule(n_steps: int, warm_up: int, decay: int) -> None:
    """
    Learning rate schedule against the run.

    Raises:
        ValueError: It does not fit into the run.
    """
    if warm_up + decay > n_steps:
        raise ValueError(
            f"lr_warm_up_steps={warm_up} and lr_decay_steps={decay} do not fit into the run of {n_steps} steps: the "
            "learning rate would jump. Lower them, or train longer."
        )


def check_lengths(
    cfg: "MatryoshkaTrainingSAEConfig", n_steps: int, dead_feature_window: int
) -> None:
    """Options that count steps, against the run that they are given to.

    Args:
        cfg: The SAE's configuration.
        n_steps: Training steps of the run.
        dead_feature_window: Steps without firing after which the trainer counts a latent as dead.

    Raises:
        ValueError: One of them would have no effect, or end in the middle.
    """
    if cfg.k_anneal_steps is not None and cfg.k_anneal_steps > n_steps:
        raise ValueError(
            f"k_anneal_steps={cfg.k_anneal_steps} is longer than the run of {n_steps} steps, which would end "
            "with more active latents than k. Lower it, or train longer."
        )
    if cfg.refine_until is not None and cfg.refine_until >= n_steps:
        raise ValueError(
            f"refine_until={cfg.refine_until} is not reached in a run of {n_steps} steps, whose SAE is saved as one "
            "that looks once. Lower it, or leave it out."
        )
    if cfg.snap_after_steps is not None and cfg.snap_after_steps >= n_steps:
        raise ValueError(
            f"snap_after_steps={cfg.snap_after_steps} has no effect in a run of {n_steps} steps. Lower it, or "
            "leave it out."
        )
    controlled = cfg.activation == "relu" and cfg.target_l0 is not None
    if controlled and (cfg.l1_warm_up_steps or 0) >= n_steps:
        raise ValueError(
            f"target_l0={cfg.target_l0} has no effect: its controller begins after "
            f"l1_warm_up_steps={cfg.l1_warm_up_steps}, and the run has {n_steps} steps. Lower these, or leave "
            "target_l0 out."
        )
    if cfg.resample_every is None:
        return
    if cfg.resample_until is not None and cfg.resample_until >= n_steps:
        raise ValueError(
            f"resample_until={cfg.resample_until} has no effect in a run of {n_steps} steps. Lower it, or "
            "leave it out."
        )
    last = n_steps - 1 if cfg.resample_until is None else cfg.resample_until
    last = last // cfg.resample_every * cfg.resample_every
    if dead_feature_window >= last:
        raise ValueError(
            f"resample_every={cfg.resample_every} has no effect: the last step to resample at is {last}, and "
            f"latents count as dead after dead_feature_window={dead_feature_window} steps. Lower these, or "
            "train longer."
        )
