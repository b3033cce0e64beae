"""Every knob of a Matryoshka SAE, with unit, default and source."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

from sae_lens.saes.jumprelu_sae import JumpReLUSAEConfig
from sae_lens.saes.sae import SAEConfig, TrainingSAEConfig
from sae_lens.saes.standard_sae import StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAEConfig
from typing_extensions import override

ARCHITECTURE = "matryoshka"

Activation = Literal["batchtopk", "topk", "relu", "jumprelu"]
PrefixSampling = Literal["fixed", "random"]
AuxLoss = Literal["global", "per_level", "none"]
BDecInit = Literal["zeros", "geometric_median"]

# Shares of the dictionary that the paper's first four levels add (appendix A); the fifth takes the rest.
PAPER_FRACTIONS = (1 / 32, 1 / 16, 1 / 8, 1 / 4)

# Options that belong to some activations only: (activations, the default where it applies).
ACTIVATION_OPTIONS: dict[str, tuple[tuple[Activation, ...], Any]] = {
    "k": (("batchtopk", "topk"), 100),
    "l1_coefficient": (("relu",), 1.0),
    "l1_warm_up_steps": (("relu",), 0),
    "jumprelu_init_threshold": (("jumprelu",), 0.01),
    "jumprelu_bandwidth": (("jumprelu",), 0.05),
    "l0_coefficient": (("jumprelu",), 1.0),
    "l0_warm_up_steps": (("jumprelu",), 0),
    "target_l0": (("relu", "jumprelu"), None),
}

WHOLE_NUMBERS = ("d_in", "d_sae", "n_prefixes", "k_aux", "l1_warm_up_steps", "l0_warm_up_steps")

INFERENCE_CONFIGS: dict[Activation, type[SAEConfig]] = {
    "batchtopk": JumpReLUSAEConfig,
    "jumprelu": JumpReLUSAEConfig,
    "topk": TopKSAEConfig,
    "relu": StandardSAEConfig,
}


@dataclass
class MatryoshkaTrainingSAEConfig(TrainingSAEConfig):
    """
    Configuration of a Matryoshka SAE (Bussmann, Nabeshima, Karvonen, Nanda 2025, arXiv 2503.17547).

    Given the same widths, the defaults train exactly what SAELens's ``matryoshka_batchtopk`` trains.
    An option counts as given when it differs from its default; one that has no effect beside the
    others is an error. Options that belong to one activation default to None and are filled in
    where they apply, the widths as well: a config made with dataclasses.replace keeps them.

    Args:
        activation (Literal["batchtopk", "topk", "relu", "jumprelu"]): What makes the latents sparse.
            "batchtopk" (default): the k * batch largest over the whole batch, one global selection
            for all levels (paper, section 3). "topk": the k largest per token. "relu": an L1 penalty
            (the paper's toy and TinyStories runs). "jumprelu": a learned threshold per latent under
            an L0 penalty.
        k (float | None): Active latents per token: an average for "batchtopk" (fractions allowed), a
            whole number for "topk". None: 100, as SAELens.
        matryoshka_widths (list[int] | None): Widths of the nested levels in latents, strictly
            increasing; d_sae is appended (to a copy) when missing. None: the paper's groups of 1/32,
            1/16, 1/8, 1/4 of d_sae and the rest (appendix A), rounded down, at least 1, without
            duplicates: 65,536 gives 2048, 6144, 14336, 30720, 65536.
        level_weights (list[float] | None): Factor of each level's squared error in the loss, one per
            level, d_sae's included. None: all 1, summed (the paper and SAELens).
        level_weight_mu (float | None): Instead of level_weights: level i of n gets mu^(n - i), the
            outermost 1 (arXiv 2505.11756). 0 is a flat SAE, 1 the paper's; about 0.75 was best there.
        prefix_sampling (Literal["fixed", "random"]): "fixed" (default): the loss sums over
            matryoshka_widths. "random": over n_prefixes widths drawn anew each step (paper, section
            3); matryoshka_widths are then only the levels reported and saved.
        n_prefixes (int): For "random": prefixes per step, d_sae always among them (the authors' 10).
        pareto_power (float): For "random": P(width <= w) = (w / d_sae)^pareto_power (the authors' 0.5).
        aux_loss (Literal["global", "per_level", "none"] | None): What dead latents are asked to fit.
            "global": the whole SAE's residual. "per_level": each level's dead latents fit that level's
            residual. None: "global" for the top-k activations, else "none".
        aux_loss_coefficient (float | None): Weight of the auxiliary loss. None: 1, as SAELens.
        k_aux (int | None): Dead latents per token that the auxiliary loss uses, at most. None:
            d_in / 2, as SAELens.
        b_dec_init (Literal["zeros", "geometric_median"]): Start of the decoder bias: zeros, or the
            geometric median of the first batch (dictionary_learning), set once in a fresh SAE.
        rescale_acts_by_decoder_norm (bool): Treat decoder rows as if they had norm 1: activations are
            in units of the reconstruction. Default True, as SAELens; folded into the weights at save.
        l1_coefficient (float | None): "relu": weight of the L1 penalty on activation * decoder norm,
            which carries the level weights of the error. None: 1.
        l1_warm_up_steps (int | None): "relu": steps over which the L1 weight rises from 0. None: 0.
        target_l0 (float | None): "relu": active latents per token that a controller steers towards by
            changing the L1 weight by 0.03 % a step once it is warmed up (the authors' code): a
            factor of 20 takes 10,000 steps. "jumprelu": target of the quadratic L0 penalty (Gemma
            Scope 2), met exactly at save by scaling the thresholds. None: no target.
        jumprelu_init_threshold (float | None): "jumprelu": threshold at the start. None: 0.01.
        jumprelu_bandwidth (float | None): "jumprelu": width of the straight-through estimator's
            window. None: 0.05.
        l0_coefficient (float | None): "jumprelu": weight of the L0 penalty. None: 1.
        l0_warm_up_steps (int | None): "jumprelu": steps over which the L0 weight rises from 0. None: 0.
        decoder_init_norm (float | None): Norm of the decoder rows at the start; the encoder starts as
            their transpose. Default 0.1. None: SAELens's unscaled initialisation.
        d_in (int): Dimension of the activations. Inherited from SAEConfig.
        d_sae (int): Number of latents, the outermost level's width. Inherited from SAEConfig.
        dtype (str): Data type of the parameters. Inherited from SAEConfig.
        device (str): Device of the parameters. Inherited from SAEConfig.
        apply_b_dec_to_input (bool): Subtract the decoder bias from the input. Inherited from SAEConfig.
        normalize_activations (str): Normalization of the input, as SAELens. Inherited from SAEConfig.
        reshape_activations (Literal["none", "hook_z"]): Inherited from SAEConfig.
        metadata (SAEMetadata): Model, hook and the like. Inherited from SAEConfig.
    """

    activation: Activation = "batchtopk"
    k: float | None = None
    matryoshka_widths: list[int] | None = None
    level_weights: list[float] | None = None
    level_weight_mu: float | None = None
    prefix_sampling: PrefixSampling = "fixed"
    n_prefixes: int = 10
    pareto_power: float = 0.5
    aux_loss: AuxLoss | None = None
    aux_loss_coefficient: float | None = None
    k_aux: int | None = None
    b_dec_init: BDecInit = "zeros"
    rescale_acts_by_decoder_norm: bool = True
    l1_coefficient: float | None = None
    l1_warm_up_steps: int | None = None
    target_l0: float | None = None
    jumprelu_init_threshold: float | None = None
    jumprelu_bandwidth: float | None = None
    l0_coefficient: float | None = None
    l0_warm_up_steps: int | None = None

    def __post_init__(self) -> None:
        _one_of("activation", self.activation, Activation)
        self._fill_in_activation_options()
        if self.aux_loss is None:
            self.aux_loss = "global" if self.uses_top_k else "none"
        self.matryoshka_widths = resolve_widths(self.matryoshka_widths, self.d_sae)
        self.validate()
        self._make_whole_numbers_int()
        super().__post_init__()

    @property
    def uses_top_k(self) -> bool:
        """Whether the number of active latents is set by k."""
        return self.activation in ("batchtopk", "topk")

    @property
    def wanted_l0(self) -> float | None:
        """Active latents per token that the saved SAE is to have, if the options name a number."""
        return self.k if self.uses_top_k else self.target_l0

    @property
    def widths(self) -> list[int]:
        """The nested widths, resolved: never None, ends with d_sae."""
        assert self.matryoshka_widths is not None  # set in __post_init__
        return self.matryoshka_widths

    def _fill_in_activation_options(self) -> None:
        for name, (activations, default) in ACTIVATION_OPTIONS.items():
            if self.activation in activations:
                if getattr(self, name) is None:
                    setattr(self, name, default)
            elif getattr(self, name) is not None:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} has no effect with activation="
                    f"{self.activation!r}; it belongs to {' and '.join(activations)}. "
                    f"Leave {name} out or change the activation."
                )

    def _make_whole_numbers_int(self) -> None:
        # 8.0 is a fine width to write down, but no index and no shape
        names = [*WHOLE_NUMBERS, *(["k"] if self.activation == "topk" else [])]
        for name in names:
            if getattr(self, name) is not None:
                setattr(self, name, int(getattr(self, name)))

    def validate(self) -> None:
        """Check that the options are possible and fit each other.

        Raises:
            ValueError: Says what was given, what is allowed and what to do.
        """
        if not _is_whole(self.d_in) or self.d_in <= 0:
            raise ValueError(
                f"d_in={self.d_in!r} must be a positive whole number: the dimension of the activations."
            )
        _one_of("prefix_sampling", self.prefix_sampling, PrefixSampling)
        _one_of("aux_loss", self.aux_loss, AuxLoss)
        _one_of("b_dec_init", self.b_dec_init, BDecInit)
        _check_k(self)
        _check_level_weights(self)
        _check_prefixes(self)
        _check_aux_loss(self)
        for name in ("l1_coefficient", "l0_coefficient", "jumprelu_init_threshold"):
            _check_number(self, name, "at least 0", lambda value: value >= 0)
        for name in ("l1_warm_up_steps", "l0_warm_up_steps"):
            _check_number(self, name, "at least 0 steps", lambda value: value >= 0)
        for name in ("jumprelu_bandwidth", "decoder_init_norm"):
            _check_number(self, name, "greater than 0", lambda value: value > 0)
        _check_number(
            self,
            "target_l0",
            f"greater than 0 and at most d_sae ({self.d_sae})",
            lambda value: 0 < value <= self.d_sae,
        )

    @override
    @classmethod
    def architecture(cls) -> str:
        return ARCHITECTURE

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return INFERENCE_CONFIGS[self.activation]


def resolve_widths(widths: Sequence[int] | None, d_sae: int) -> list[int]:
    """Nested widths as they will be used.

    Args:
        widths: Strictly increasing widths in latents, or None for the paper's fractions of d_sae.
        d_sae: The dictionary's width, appended when it is missing.

    Returns:
        A new list that ends with d_sae.

    Raises:
        ValueError: d_sae or a width is not a positive whole number, the widths do not increase, or
            one is beyond d_sae.
    """
    if not _is_whole(d_sae) or d_sae <= 0:
        raise ValueError(f"d_sae={d_sae!r} must be a positive whole number of latents.")
    if widths is None:
        shares = [sum(PAPER_FRACTIONS[: i + 1]) for i in range(len(PAPER_FRACTIONS))]
        return sorted({max(1, int(share * d_sae)) for share in shares} | {int(d_sae)})
    if not isinstance(widths, Sequence) or isinstance(widths, str) or len(widths) == 0:
        raise ValueError(
            f"matryoshka_widths={widths!r} names no levels. Give a list of increasing widths, e.g. "
            f"{resolve_widths(None, d_sae)}, or leave it out for these."
        )
    if any(not _is_whole(width) or width <= 0 for width in widths):
        raise ValueError(
            f"matryoshka_widths={list(widths)} must hold positive whole numbers of latents."
        )
    resolved = [int(width) for width in widths]
    if resolved[-1] < d_sae:
        resolved.append(int(d_sae))
    if any(right <= left for left, right in zip(resolved, resolved[1:])):
        raise ValueError(
            f"matryoshka_widths={list(widths)} must be strictly increasing and at most "
            f"d_sae ({d_sae}): each level holds the one before it. Sort the widths, remove "
            "duplicates, or raise d_sae."
        )
    if resolved[-1] > d_sae:
        raise ValueError(
            f"matryoshka_widths={list(widths)} reaches beyond d_sae ({d_sae}). Remove the widths "
            f"above {d_sae} or set d_sae={resolved[-1]}."
        )
    return resolved


def _check_k(cfg: MatryoshkaTrainingSAEConfig) -> None:
    if not cfg.uses_top_k:
        return
    _check_number(
        cfg,
        "k",
        f"greater than 0 and at most d_sae ({cfg.d_sae}); the default is 100",
        lambda value: 0 < value <= cfg.d_sae,
    )
    if cfg.activation == "topk" and not _is_whole(cfg.k):
        raise ValueError(
            f"k={cfg.k!r} must be a whole number with activation='topk', which keeps k latents of "
            "every token. For an average of fractions use activation='batchtopk'."
        )


def _check_level_weights(cfg: MatryoshkaTrainingSAEConfig) -> None:
    weights, mu = cfg.level_weights, cfg.level_weight_mu
    if weights is not None and mu is not None:
        raise ValueError(
            f"level_weights={weights} and level_weight_mu={mu} both set the level weights. Give one."
        )
    _check_number(cfg, "level_weight_mu", "at least 0", lambda value: value >= 0)
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


def _check_prefixes(cfg: MatryoshkaTrainingSAEConfig) -> None:
    if cfg.prefix_sampling == "fixed":
        for name in ("n_prefixes", "pareto_power"):
            if getattr(cfg, name) != getattr(MatryoshkaTrainingSAEConfig, name):
                raise ValueError(
                    f"{name}={getattr(cfg, name)!r} has no effect with prefix_sampling='fixed'. "
                    f"Leave it out or set prefix_sampling='random'."
                )
        return
    if not _is_whole(cfg.n_prefixes) or not 1 <= cfg.n_prefixes <= cfg.d_sae:
        raise ValueError(
            f"n_prefixes={cfg.n_prefixes!r} must be a whole number from 1 to d_sae ({cfg.d_sae}): "
            "the widths are drawn without replacement."
        )
    _check_number(cfg, "pareto_power", "greater than 0", lambda value: value > 0)


def _check_aux_loss(cfg: MatryoshkaTrainingSAEConfig) -> None:
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
    _check_number(cfg, "aux_loss_coefficient", "at least 0", lambda value: value >= 0)
    if cfg.k_aux is not None and not (_is_whole(cfg.k_aux) and cfg.k_aux > 0):
        raise ValueError(f"k_aux={cfg.k_aux!r} must be a positive whole number of latents.")


def _check_number(
    cfg: MatryoshkaTrainingSAEConfig, name: str, allowed: str, is_allowed: Any
) -> None:
    value = getattr(cfg, name)
    if value is None:
        return
    if not _is_number(value) or not is_allowed(value):
        raise ValueError(f"{name}={value!r} must be {allowed}.")


def _one_of(name: str, value: Any, allowed: Any) -> None:
    if value not in get_args(allowed):
        raise ValueError(f"{name}={value!r} must be one of {list(get_args(allowed))}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and value == int(value)
