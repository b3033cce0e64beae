"""SAELens's runner configuration with the SAE's fields given flat."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Generic, Literal, overload

import sae_lens
from sae_lens import TrainingSAEConfig
from sae_lens.config import T_TRAINING_SAE_CONFIG, SAETrainerConfig
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
from typing_extensions import override

from sae_lens_matryoshka.saes.config import ARCHITECTURE, MatryoshkaTrainingSAEConfig
from sae_lens_matryoshka.saes.config_rules import check_lengths, check_schedule
from sae_lens_matryoshka.training.activations.finite_rows import MAX_NONFINITE_FRACTION
from sae_lens_matryoshka.training.settings import presets as recipes
from sae_lens_matryoshka.training.settings.option_copies import own_copy
from sae_lens_matryoshka.training.settings.run_check import COUNTS, check_counts, check_run
from sae_lens_matryoshka.training.settings.run_record import with_objects_described


@dataclass(init=False)
class LanguageModelSAERunnerConfig(
    sae_lens.LanguageModelSAERunnerConfig[T_TRAINING_SAE_CONFIG],
    Generic[T_TRAINING_SAE_CONFIG],
):
    """
    SAELens's configuration of a training run, with the SAE's fields given flat.

        LanguageModelSAERunnerConfig(d_in=768, d_sae=16_384, k=40, model_name="gpt2", ...)

    SAELens's runner takes it, and SAELens reads the runner_cfg.json that a run writes, unless lr_decay_to
    or max_nonfinite_fraction is given, which it does not know. What is passed in is copied, never changed; only
    objects, such as a loaded model in model_from_pretrained_kwargs, are kept as they are.

    Args:
        sae (TrainingSAEConfig | None): The SAE's configuration, as SAELens takes it. None: built from
            the SAE's fields among the keywords, of which d_in and d_sae are required.
        architecture (str | None): What to train: any architecture registered with SAELens. None:
            that of sae, or "matryoshka".
        recipe (Literal["paper", "best"] | None): Fills in what is not given: the paper's main experiment, or
            the best that docs/results/synthetic.md supports. The filled in options stand in the configuration
            like given ones. None: SAELens's defaults.
        lr_decay_to (float): Share of lr at which the decay over lr_decay_steps ends (the authors' toy code:
            0.1). Needs MatryoshkaSAETrainingRunner. Default 0, as SAELens.
        max_nonfinite_fraction (float): Largest fraction of the activations that may be NaN or infinite, at
            least one batch. MatryoshkaSAETrainingRunner skips and counts them, and ends the run when there are
            more. 0: none may be. Defaults to 0.01.
        **kwargs: Every field of SAELens's LanguageModelSAERunnerConfig and, without sae, of the
            architecture's configuration. device and dtype, which both have, go to both.

    Raises:
        TypeError: A keyword is unknown, or sae is no training configuration.
        ValueError: The architecture is unknown or not that of sae, d_in or d_sae is missing, a field of
            the SAE is given beside sae, or an option is not possible, alone or beside the others.
    """

    lr_decay_to: float = 0.0
    max_nonfinite_fraction: float = MAX_NONFINITE_FRACTION

    runner_ends_decay = False  # set by the runner that minds lr_decay_to and max_nonfinite_fraction

    @overload
    def __init__(
        self, sae: T_TRAINING_SAE_CONFIG, *, architecture: str | None = None, **kwargs: Any
    ) -> None: ...

    @overload
    def __init__(
        self: "LanguageModelSAERunnerConfig[MatryoshkaTrainingSAEConfig]",
        sae: None = None,
        *,
        architecture: Literal["matryoshka"] | None = None,
        **kwargs: Any,
    ) -> None: ...

    @overload
    def __init__(
        self: "LanguageModelSAERunnerConfig[TrainingSAEConfig]",
        sae: None = None,
        *,
        architecture: str,
        **kwargs: Any,
    ) -> None: ...

    def __init__(
        self,
        sae: TrainingSAEConfig | None = None,
        *,
        architecture: str | None = None,
        recipe: recipes.Recipe | None = None,
        lr_decay_to: float = 0.0,
        max_nonfinite_fraction: float = MAX_NONFINITE_FRACTION,
        **kwargs: Any,
    ) -> None:
        options: dict[str, Any] = own_copy(kwargs)
        check_counts(options)
        options |= {name: int(options[name]) for name in COUNTS if name in options}
        added: dict[str, Any] = {}
        if recipe is not None:
            recipes.check(recipe, architecture or ARCHITECTURE)
            if sae is not None:
                raise ValueError(
                    f"recipe={recipe!r} fills in the SAE's fields, but sae= gives all of them. Give them flat "
                    "instead."
                )
            added = recipes.options(recipe, options)
            options |= added
        if sae is None:
            with recipes.named_in_errors(recipe, added):
                sae = _sae_config(architecture or ARCHITECTURE, options)
        else:
            _check_given(sae, architecture, options)
            copied: TrainingSAEConfig = own_copy(sae)
            copied.device = options.get("device", copied.device)
            copied.dtype = options.get("dtype", copied.dtype)
            sae = copied
        run_options = {name: options[name] for name in _RUN_FIELDS & options.keys()}
        super().__init__(sae=sae, **run_options)  # pyright: ignore[reportArgumentType]
        self.lr_decay_to = lr_decay_to
        self._check_decay()
        if not 0 <= max_nonfinite_fraction <= 1:
            raise ValueError(
                f"max_nonfinite_fraction={max_nonfinite_fraction!r} must be between 0 and 1."
            )
        self.max_nonfinite_fraction = max_nonfinite_fraction
        with recipes.named_in_errors(recipe, added):
            check_run(self)
            check_schedule(self.total_training_steps, self.lr_warm_up_steps, self.lr_decay_steps)
            if isinstance(sae, MatryoshkaTrainingSAEConfig):
                check_lengths(sae, self.total_training_steps, self.dead_feature_window)

    def _check_decay(self) -> None:
        if not 0 <= self.lr_decay_to < 1:
            raise ValueError(
                f"lr_decay_to={self.lr_decay_to!r} must be a share of lr, from 0 to below 1, at which the decay "
                "over lr_decay_steps ends."
            )
        if self.lr_decay_to > 0 and (
            self.lr_decay_steps == 0 or self.lr_scheduler_name != "constant"
        ):
            raise ValueError(
                f"lr_decay_to={self.lr_decay_to!r} needs lr_decay_steps (now {self.lr_decay_steps}) and "
                f"lr_scheduler_name='constant' (now {self.lr_scheduler_name!r}): other schedules are low already "
                "where SAELens's decay begins."
            )

    @override
    def to_sae_trainer_config(self) -> SAETrainerConfig:
        if self.lr_decay_to > 0 and not self.runner_ends_decay:
            raise ValueError(
                f"lr_decay_to={self.lr_decay_to} is not known to SAELens, whose decay ends at 0. Run it with "
                "MatryoshkaSAETrainingRunner, or leave it out."
            )
        if self.max_nonfinite_fraction != MAX_NONFINITE_FRACTION and not self.runner_ends_decay:
            raise ValueError(
                f"max_nonfinite_fraction={self.max_nonfinite_fraction} is not known to SAELens. Run it "
                "with MatryoshkaSAETrainingRunner, or leave it out."
            )
        return super().to_sae_trainer_config()

    @override
    def to_dict(self) -> dict[str, Any]:
        described = with_objects_described(self)  # SAELens would copy a loaded model
        options = super(LanguageModelSAERunnerConfig, described).to_dict()
        if self.lr_decay_to == 0:
            del options["lr_decay_to"]  # SAELens does not know it
        if self.max_nonfinite_fraction == MAX_NONFINITE_FRACTION:
            del options["max_nonfinite_fraction"]
        return options

    @override
    @classmethod
    def from_dict(cls, cfg_dict: dict[str, Any]) -> "LanguageModelSAERunnerConfig[Any]":
        """
        The configuration that to_dict wrote, of this class or of SAELens's.

        Args:
            cfg_dict (dict[str, Any]): The dictionary, which may have been through JSON.
        """
        cfg_dict = own_copy(cfg_dict)
        if "architecture" in cfg_dict.get("sae", {}):
            training_config_class(cfg_dict["sae"]["architecture"])
        if "seqpos_slice" in cfg_dict:  # JSON has no tuples
            cfg_dict["seqpos_slice"] = tuple(cfg_dict["seqpos_slice"])
        cfg = super().from_dict(cfg_dict)
        assert isinstance(cfg, LanguageModelSAERunnerConfig)
        cfg.sae = TrainingSAEConfig.from_dict(cfg_dict["sae"])  # its own device and dtype
        return cfg


def training_config_class(architecture: str) -> type[TrainingSAEConfig]:
    """
    The configuration class of an architecture that is registered for training.

    Raises:
        ValueError: It is not registered; lists those that are.
    """
    if architecture not in SAE_TRAINING_CLASS_REGISTRY:
        raise ValueError(
            f"architecture={architecture!r} is not registered with SAELens. Known ones: "
            f"{', '.join(sorted(SAE_TRAINING_CLASS_REGISTRY))}. Import the package that registers "
            "it, or choose one of these."
        )
    return SAE_TRAINING_CLASS_REGISTRY[architecture][1]


def _names(config_class: type[Any]) -> frozenset[str]:
    return frozenset(field.name for field in fields(config_class) if field.init)


_RUN_FIELDS = _names(sae_lens.LanguageModelSAERunnerConfig) - {"sae"}


def _sae_config(architecture: str, options: dict[str, Any]) -> TrainingSAEConfig:
    config_class = training_config_class(architecture)
    sae_fields = _names(config_class)
    _check_known(options, sae_fields, architecture)
    missing = [name for name in ("d_in", "d_sae") if name not in options]
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} must be given: d_in is the dimension of the activations, "
            "d_sae the number of latents. Or give the SAE's configuration as sae=."
        )
    return config_class(**{name: options[name] for name in sae_fields & options.keys()})


def _check_given(sae: Any, architecture: str | None, options: dict[str, Any]) -> None:
    if not isinstance(sae, TrainingSAEConfig):
        raise TypeError(
            f"sae={sae!r} must be a training configuration of SAELens, such as "
            "MatryoshkaTrainingSAEConfig(d_in=..., d_sae=...). Or leave it out and give its fields "
            "flat."
        )
    if architecture is not None and architecture != sae.architecture():
        raise ValueError(
            f"architecture={architecture!r} is not that of sae, a {type(sae).__name__} of "
            f"architecture {sae.architecture()!r}. Leave architecture out, or give another sae."
        )
    sae_fields = _names(type(sae))
    _check_known(options, sae_fields, sae.architecture())
    twice = sorted((sae_fields - _RUN_FIELDS) & options.keys())
    if twice:
        raise ValueError(
            f"{', '.join(twice)} given beside sae=. Set {'it' if len(twice) == 1 else 'them'} in "
            "that configuration, or leave sae= out and give all of the SAE's fields flat."
        )


def _check_known(options: Iterable[str], sae_fields: frozenset[str], architecture: str) -> None:
    known = (
        _RUN_FIELDS
        | sae_fields
        | {"sae", "architecture", "recipe", "lr_decay_to", "max_nonfinite_fraction"}
    )
    for name in options:
        if name in known:
            continue
        owners = [
            other
            for other, (_, config_class) in sorted(SAE_TRAINING_CLASS_REGISTRY.items())
            if name in _names(config_class)
        ]
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        if owners:
            hint = f"It belongs to architecture {', '.join(owners)}."
        else:
            hint = f"The nearest known one is {nearest[0]!r}."
        raise TypeError(
            f"{name!r} is no option of a run with architecture {architecture!r}. {hint}"
        )
