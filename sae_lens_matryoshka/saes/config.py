"""Every knob of a Matryoshka SAE, with unit, default and source."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from sae_lens.saes.jumprelu_sae import JumpReLUSAEConfig
from sae_lens.saes.sae import SAEConfig, TrainingSAEConfig
from sae_lens.saes.standard_sae import StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAEConfig
from typing_extensions import override

from sae_lens_matryoshka.saes import config_rules
from sae_lens_matryoshka.saes.config_rules import is_whole
from sae_lens_matryoshka.saes.refined_sae import RefinedSAEConfig

ARCHITECTURE = "matryoshka"

Activation = Literal["batchtopk", "topk", "relu", "jumprelu"]
PrefixSampling = Literal["fixed", "random"]
AuxLoss = Literal["global", "per_level", "none"]
BDecInit = Literal["zeros", "geometric_median"]
LatentOrder = Literal["fixed", "frequency", "energy"]

# Shares of the dictionary that the paper's first four levels add (appendix A); the fifth takes the rest.
PAPER_FRACTIONS = (1 / 32, 1 / 16, 1 / 8, 1 / 4)

# Options that belong to some activations only: (activations, the default where it applies).
ACTIVATION_OPTIONS: dict[str, tuple[tuple[Activation, ...], Any]] = {
    "k": (("batchtopk", "topk"), 100),
    "k_start": (("batchtopk", "topk"), None),
    "k_anneal_steps": (("batchtopk", "topk"), None),
    "refinement_step": (("batchtopk",), None),
    "l1_coefficient": (("relu",), 1.0),
    "l1_warm_up_steps": (("relu",), 0),
    "jumprelu_init_threshold": (("jumprelu",), 0.01),
    "jumprelu_bandwidth": (("jumprelu",), 0.05),
    "l0_coefficient": (("jumprelu",), 1.0),
    "l0_warm_up_steps": (("jumprelu",), 0),
    "target_l0": (("relu", "jumprelu"), None),
}

WHOLE_NUMBERS = (
    "d_in",
    "d_sae",
    "n_prefixes",
    "k_aux",
    "k_anneal_steps",
    "refine_until",
    "l1_warm_up_steps",
    "l0_warm_up_steps",
    "snap_after_steps",
    "resample_every",
    "resample_until",
)

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
        k_start (float | None): k at the first step, from where it goes linearly to k: the start is
            easier with more active latents (dictionary_learning). None: k throughout.
        k_anneal_steps (int | None): Steps that k_start takes to become k; to be given with k_start.
        refinement_step (float | None): "batchtopk": encode a second time, with the same weights, the input plus
            this share of what the first activations leave of it, and take the top k of that (after LISTA, Gregor
            & LeCun 2010; 0.3 in the "LISTA-Matryoshka" recipe on SynthSAEBench). The residual counts as constant.
            Without refine_until saved as "matryoshka_refined", an architecture of this package, which SAELens
            loads only where it is imported. None: encode once.
        refine_until (int | None): Step from which on the encoder looks once, as the saved SAE then does, which is a
            stock one; to be given with refinement_step. None: it looks twice to the end.
        matryoshka_widths (list[int] | None): Widths of the nested levels in latents, strictly
            increasing; d_sae is appended (to a copy) when missing. None: the paper's groups of 1/32,
            1/16, 1/8, 1/4 of d_sae and the rest (appendix A), rounded down, at least 1, without
            duplicates: 65,536 gives 2048, 6144, 14336, 30720, 65536.
        level_weights (list[float] | None): Factor of each level's squared error in the loss, one per
            level, d_sae's included. None: all 1, summed (the paper and SAELens).
        level_weight_mu (float | None): Instead of level_weights: level i of n gets mu^(n - i), the
            outermost 1 (arXiv 2505.11756). 0 is a flat SAE, 1 the paper's; about 0.75 was best there.
        detach_inner_levels (bool): Whether the error of a level between the innermost and the outermost
            one trains that level's own latents alone, given the reconstruction of those inside it. The
            outermost level's error trains all. Default False.
        latent_order (Literal["fixed", "frequency", "energy"]): Which latents the prefixes hold. "fixed"
            (default): those of the smallest index. "frequency": those that fired most often, by a running
            mean over steps (0.99 of it kept per step). "energy": those of largest running mean (0.95) of
            (activation * decoder norm)^2 (the authors' toy code). Saved SAEs are sorted, so that their levels
            are plain prefixes.
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
        tilt (float | None): Weigh each token's error by softmax(tilt * error / mean error) over the batch,
            so that badly reconstructed tokens count more (TERM, arXiv 2007.01162). None: all alike.
        snap_after_steps (int | None): "batchtopk" and "topk": from this step on, the error is the norm of the
            residual instead of its square (the snap loss of the LessWrong post on feature hedging). None: never.
        resample_every (int | None): Every so many steps, latents that the trainer counts as dead (SAELens's
            dead_feature_window) start anew, pointing at what badly reconstructed tokens lack, and the
            optimizer forgets their moments. None: never.
        resample_until (int | None): Last step at which latents are resampled, so that they have time to
            settle. None: no end.
        b_dec_init (Literal["zeros", "geometric_median"]): Start of the decoder bias: zeros, or the
            geometric median of the first batch (dictionary_learning), set once in a fresh SAE.
        rescale_acts_by_decoder_norm (bool): Treat decoder rows as if they had norm 1: activations are
            in units of the reconstruction. Default True, as SAELens; folded into the weights at save.
        l1_coefficient (float | None): "relu": weight of the L1 penalty on activation * decoder norm,
            which carries the level weights of the error that trains the latent. None: 1.
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
    k_start: float | None = None
    k_anneal_steps: int | None = None
    refinement_step: float | None = None
    refine_until: int | None = None
    matryoshka_widths: list[int] | None = None
    level_weights: list[float] | None = None
    level_weight_mu: float | None = None
    detach_inner_levels: bool = False
    latent_order: LatentOrder = "fixed"
    prefix_sampling: PrefixSampling = "fixed"
    n_prefixes: int = 10
    pareto_power: float = 0.5
    aux_loss: AuxLoss | None = None
    aux_loss_coefficient: float | None = None
    k_aux: int | None = None
    tilt: float | None = None
    snap_after_steps: int | None = None
    resample_every: int | None = None
    resample_until: int | None = None
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
        self._unwrap_numpy()
        config_rules.one_of("activation", self.activation, Activation)
        self._fill_in_activation_options()
        if self.aux_loss is None:
            self.aux_loss = "global" if self.uses_top_k else "none"
        self.matryoshka_widths = resolve_widths(self.matryoshka_widths, self.d_sae)
        self.validate()
        if self.level_weights is not None:
            self.level_weights = [float(weight) for weight in self.level_weights]
        self._make_whole_numbers_int()
        super().__post_init__()

    @property
    def uses_top_k(self) -> bool:
        """Whether the number of active latents is set by k."""
        return self.activation in ("batchtopk", "topk")

    @property
    def needs_trainer(self) -> bool:
        """Whether an option acts after the optimizer's step, or counts steps of the run."""
        counted = (
            self.k_anneal_steps,
            self.refine_until,
            self.snap_after_steps,
            self.resample_every,
        )
        return self.latent_order != "fixed" or any(steps is not None for steps in counted)

    @property
    def is_saved_refined(self) -> bool:
        """Whether the saved SAE encodes twice as well."""
        return self.refinement_step is not None and self.refine_until is None

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

    def _unwrap_numpy(self) -> None:
        # NumPy's numbers do as numbers, but cannot be saved as JSON
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.generic):
                setattr(self, field.name, value.item())

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
        if not is_whole(self.d_in) or self.d_in <= 0:
            raise ValueError(
                f"d_in={self.d_in!r} must be a positive whole number: the dimension of the activations."
            )
        config_rules.one_of("prefix_sampling", self.prefix_sampling, PrefixSampling)
        config_rules.one_of("aux_loss", self.aux_loss, AuxLoss)
        config_rules.one_of("b_dec_init", self.b_dec_init, BDecInit)
        config_rules.one_of("latent_order", self.latent_order, LatentOrder)
        config_rules.check_k(self)
        config_rules.check_level_weights(self)
        config_rules.check_prefixes(self)
        config_rules.check_aux_loss(self)
        config_rules.check_annealing(self)
        config_rules.check_refinement(self)
        config_rules.check_nesting(self)
        config_rules.check_resampling(self)
        config_rules.check_number(self, "tilt", "greater than 0", lambda value: value > 0)
        for name in ("l1_coefficient", "l0_coefficient", "jumprelu_init_threshold"):
            config_rules.check_number(self, name, "at least 0", lambda value: value >= 0)
        config_rules.check_snapping(self)
        for name in ("l1_warm_up_steps", "l0_warm_up_steps"):
            config_rules.check_number(self, name, "at least 0 steps", lambda value: value >= 0)
        for name in ("jumprelu_bandwidth", "decoder_init_norm"):
            config_rules.check_number(self, name, "greater than 0", lambda value: value > 0)
        config_rules.check_controller(self)
        for name in WHOLE_NUMBERS:
            config_rules.check_whole(self, name)

    @override
    @classmethod
    def architecture(cls) -> str:
        return ARCHITECTURE

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        if self.is_saved_refined:
            return RefinedSAEConfig
        return INFERENCE_CONFIGS[self.activation]


def resolve_widths(widths: Sequence[int] | np.ndarray[Any, Any] | None, d_sae: int) -> list[int]:
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
    if not is_whole(d_sae) or d_sae <= 0:
        raise ValueError(f"d_sae={d_sae!r} must be a positive whole number of latents.")
    if widths is None:
        shares = [sum(PAPER_FRACTIONS[: i + 1]) for i in range(len(PAPER_FRACTIONS))]
        return sorted({max(1, int(share * d_sae)) for share in shares} | {int(d_sae)})
    to_list = getattr(widths, "tolist", None)  # of an array or a tensor
    if to_list is not None:
        widths = to_list()
    if not isinstance(widths, Sequence) or isinstance(widths, str) or len(widths) == 0:
        raise ValueError(
            f"matryoshka_widths={widths!r} names no levels. Give a list of increasing widths, e.g. "
            f"{resolve_widths(None, d_sae)}, or leave it out for these."
        )
    if any(not is_whole(width) or width <= 0 for width in widths):
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
