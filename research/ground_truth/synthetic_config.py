"""`kind: synthetic`: what its YAML file may say."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import fields
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_type_hints

from pydantic import ConfigDict, Field, field_validator, model_validator
from sae_lens import LoggingConfig, TrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.synthetic import SYNTHETIC_MODEL_CONFIG_FILENAME, SyntheticSAERunnerConfig

from research.ground_truth.synth_sae_bench import MODELS
from sae_lens_matryoshka.saes.config import (
    ACTIVATION_OPTIONS,
    ARCHITECTURE,
    MatryoshkaTrainingSAEConfig,
)
from sae_lens_matryoshka.saes.config_rules import check_lengths, check_schedule
from sae_lens_matryoshka.saes.inference_sae import FOLDED_NORMALIZATIONS
from sae_lens_matryoshka.settings.field_types import describe, fit
from sae_lens_matryoshka.settings.strict_models import (
    AbsolutePath,
    Seeds,
    Strict,
    did_you_mean,
)
from sae_lens_matryoshka.training.settings import presets as recipes
from sae_lens_matryoshka.training.settings.runner_config import training_config_class

# Equal for all arms: the model's, and what stands at the top of the file.
GIVEN_BY_THE_BENCHMARK = ("d_in", "d_sae", "k")
# Nothing that a comparison is about.
NOT_FOR_ARMS = ("device", "dtype", "metadata")


class TrainerSettings(Strict):
    """
    SAELens's trainer, under its names. None: SyntheticSAERunnerConfig's default.

    Args:
        lr: Learning rate of Adam.
        lr_warm_up_steps: Steps over which it rises from 0.
        lr_decay_steps: Steps at the end over which it falls to 0.
        dead_feature_window: Steps without firing after which a latent counts as dead.
    """

    lr: float | None = Field(default=None, gt=0)
    lr_warm_up_steps: int | None = Field(default=None, ge=0)
    lr_decay_steps: int | None = Field(default=None, ge=0)
    dead_feature_window: int | None = Field(default=None, ge=1)

    def given(self) -> dict[str, Any]:
        """What is not None."""
        return self.model_dump(include=set(TrainerSettings.model_fields), exclude_none=True)


class Arm(Strict):
    """
    One SAE of the comparison. Further keys are the fields of the architecture's configuration.

    Args:
        architecture: A training architecture registered with SAELens.
        recipe: What fills in the fields that are not given, for architecture "matryoshka"; not
            normalize_activations, since all arms are to see the same numbers.
        training: Where its trainer differs from the others'.
    """

    model_config = ConfigDict(extra="allow")

    architecture: str = ARCHITECTURE
    recipe: recipes.Recipe | None = None
    training: TrainerSettings = TrainerSettings()

    @model_validator(mode="before")
    @classmethod
    def _fields_are_the_architectures(cls, data: Any) -> Any:
        if data is None:  # `name:` alone in YAML
            return {}
        if not isinstance(data, Mapping):
            raise ValueError("give a mapping, e.g. {architecture: batchtopk}")
        given = cast(Mapping[str, Any], data)
        hints = _field_hints(str(given.get("architecture", ARCHITECTURE)))
        return {
            key: value if key in cls.model_fields else _checked(key, value, hints)
            for key, value in given.items()
        }

    @property
    def sae_fields(self) -> dict[str, Any]:
        """Fields of the SAE's configuration that the file gives; a copy."""
        return deepcopy(self.model_extra or {})

    def config(
        self, d_in: int, d_sae: int, k: float, defaults: Mapping[str, Any]
    ) -> TrainingSAEConfig:
        """
        The SAE's configuration.

        Args:
            d_in: Dimension of the activations.
            d_sae: Latents.
            k: Active latents per sample, for architectures that are given a number of them.
            defaults: Fields of the SAE where the file gives none.

        Raises:
            ValueError: The fields do not fit each other.
        """
        config_class = training_config_class(self.architecture)
        options: dict[str, Any] = {"d_in": d_in, "d_sae": d_sae, **defaults, **self.sae_fields}
        if self._takes_k(config_class):
            options["k"] = _fitted("k", k, get_type_hints(config_class)["k"])
        return config_class(**options)

    def _takes_k(self, config_class: type[TrainingSAEConfig]) -> bool:
        if issubclass(config_class, MatryoshkaTrainingSAEConfig):
            activations, _ = ACTIVATION_OPTIONS["k"]
            return self.sae_fields.get("activation", config_class.activation) in activations
        return "k" in {field.name for field in fields(config_class)}


class SyntheticConfig(TrainerSettings):
    """
    A comparison on a synthetic model.

    Args:
        kind: "synthetic".
        model: "mini", "medium", "16k", a folder that SyntheticModel.save wrote, or a Hub id.
        d_sae: Latents of every SAE.
        k: Active latents per sample of every SAE whose architecture is given a number of them.
        samples: What each SAE is trained on.
        batch_size: Samples per step.
        seeds: Each is another start and other data.
        eval_samples: What all SAEs are judged on.
        jobs: Seeds side by side, each in a process of its own.
        output: Folder for the results.
        arms: The SAEs, by name.
        baseline: The arm that differences are taken to.
    """

    kind: Literal["synthetic"]
    model: str
    d_sae: int = Field(ge=1)
    k: int | float = Field(gt=0)
    samples: int = Field(ge=1)
    batch_size: int = Field(default=1024, ge=1)
    seeds: Seeds = [0, 1, 2, 3, 4]
    eval_samples: int = Field(default=100_000, ge=1)
    jobs: int = Field(default=1, ge=1)
    output: AbsolutePath
    arms: dict[Annotated[str, Field(pattern=r"^\w[\w.+-]*$")], Arm] = Field(min_length=1)
    baseline: str | None = None

    @field_validator("model")
    @classmethod
    def _model_can_be_found(cls, model: str) -> str:
        folder = Path(model).expanduser()
        if model in MODELS:
            return model
        if folder.is_dir() or model.startswith((".", "/", "~")):
            if not (folder / SYNTHETIC_MODEL_CONFIG_FILENAME).is_file():
                raise ValueError(
                    f"{model} holds no {SYNTHETIC_MODEL_CONFIG_FILENAME}. Give a folder that "
                    "SyntheticModel.save wrote"
                )
            return str(folder.absolute())
        if "/" not in model:
            raise ValueError(
                f"there is neither a model nor a folder {model!r}.{did_you_mean(model, MODELS)} "
                "A Hub id has the form user/repo or user/repo:folder"
            )
        return model

    @model_validator(mode="after")
    def _arms_can_be_trained(self) -> "SyntheticConfig":
        for name in self.arms:
            try:
                if self.arms[name].recipe is not None:
                    recipes.check(self.arms[name].recipe, self.arms[name].architecture)
                # the model, which knows d_in, is not there yet
                sae, trainer = self.sae_config(name, d_in=self.d_sae), self.trainer_config(name)
                with recipes.named_in_errors(self.arms[name].recipe, self._recipe_options(name)):
                    self._check(sae, trainer)
            except (TypeError, ValueError) as error:
                raise ValueError(f"arms.{name}: {error}") from error
        if self.baseline is not None and self.baseline not in self.arms:
            raise ValueError(
                f"baseline: there is no arm {self.baseline!r}.{did_you_mean(self.baseline, self.arms)}"
            )
        return self

    @staticmethod
    def _check(sae: TrainingSAEConfig, trainer: SAETrainerConfig) -> None:
        if sae.normalize_activations in FOLDED_NORMALIZATIONS:
            raise ValueError(
                f"normalize_activations={sae.normalize_activations!r} scales by statistics of the "
                "data, but all arms are to see the same numbers. Leave it out"
            )
        n_steps = trainer.total_training_steps
        if n_steps < 1:
            raise ValueError(
                f"{trainer.total_training_samples} samples do not fill a batch of "
                f"{trainer.train_batch_size_samples}. Raise samples, or lower batch_size"
            )
        check_schedule(n_steps, trainer.lr_warm_up_steps, trainer.lr_decay_steps)
        if isinstance(sae, MatryoshkaTrainingSAEConfig):
            check_lengths(sae, n_steps, trainer.dead_feature_window)

    def sae_config(self, arm: str, d_in: int) -> TrainingSAEConfig:
        """A new configuration of the arm's SAE."""
        added = self._recipe_options(arm)
        defaults, _ = recipes.split(added)
        with recipes.named_in_errors(self.arms[arm].recipe, added):
            return self.arms[arm].config(d_in, self.d_sae, self.k, defaults)

    def _recipe_options(self, arm: str) -> dict[str, Any]:
        """What the arm's recipe adds to what the file says."""
        settings = self.arms[arm]
        if settings.recipe is None:
            return {}
        given = self.given() | settings.sae_fields | settings.training.given()
        given |= {"d_sae": self.d_sae, "k": self.k, "normalize_activations": "none"}
        given |= {"training_tokens": self.samples, "train_batch_size_tokens": self.batch_size}
        return recipes.options(settings.recipe, given)

    def trainer_config(self, arm: str) -> SAETrainerConfig:
        """SAELens's configuration of the arm's trainer, as its SyntheticSAERunner would make it."""
        _, of_recipe = recipes.split(self._recipe_options(arm))
        return SyntheticSAERunnerConfig(
            synthetic_model=self.model,
            sae=self.sae_config(arm, d_in=self.d_sae),
            training_samples=self.samples,
            batch_size=self.batch_size,
            checkpoint_path=None,
            logger=LoggingConfig(log_to_wandb=False),
            **{**of_recipe, **self.given(), **self.arms[arm].training.given()},
        ).to_sae_trainer_config()

    @property
    def n_steps(self) -> int:
        """Training steps; SAELens takes a last whole batch where samples are left over."""
        return ceil(self.samples / self.batch_size)


def _field_hints(architecture: str) -> dict[str, Any]:
    """What an arm may give, and its type."""
    config_class = training_config_class(architecture)
    hints = get_type_hints(config_class)
    names = [field.name for field in fields(config_class) if field.init]
    return {name: hints[name] for name in names if name not in NOT_FOR_ARMS}


def _checked(key: str, value: Any, hints: Mapping[str, Any]) -> Any:
    """The value of an arm's key as the type wants it, if an arm may give it."""
    if key in GIVEN_BY_THE_BENCHMARK:
        raise ValueError(
            f"{key}={value!r} belongs to the top of the file: all arms have the same d_in, d_sae and k, "
            "or their numbers could not be compared. Leave it out here"
        )
    if key not in hints:
        known = [*Arm.model_fields, *(key for key in hints if key not in GIVEN_BY_THE_BENCHMARK)]
        raise ValueError(f"unknown key {key!r}.{did_you_mean(key, known)}")
    return _fitted(key, value, hints[key])


def _fitted(key: str, value: Any, hint: Any) -> Any:
    try:
        return fit(value, hint)
    except TypeError:
        raise ValueError(f"{key} is {value!r}, but must be {describe(hint)}") from None
