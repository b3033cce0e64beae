"""Turn settings into the config of a training run: every key known, every value of its type."""

from dataclasses import MISSING, fields
from difflib import get_close_matches
from typing import Any, get_args, get_origin, get_type_hints

from sae_lens import logger
from sae_lens.config import LoggingConfig
from sae_lens.saes.sae import TrainingSAEConfig

from sae_lens_matryoshka.saes.config import ARCHITECTURE, MatryoshkaTrainingSAEConfig
from sae_lens_matryoshka.settings.field_types import describe, fit
from sae_lens_matryoshka.settings.yaml_file import SECTIONS, ConfigError, Setting
from sae_lens_matryoshka.training.settings import presets as recipes
from sae_lens_matryoshka.training.settings.runner_config import (
    LanguageModelSAERunnerConfig,
    training_config_class,
)

# SAELens has defaults for these, but nobody means to train on them.
REQUIRED = ("model_name", "hook_name")

# Fields that the runner and the SAE share; alone, they are meant for both.
SHARED = ("device", "dtype")

Schema = dict[str, Any]  # dotted key -> type


def checked_config(
    settings: list[Setting], name: str, is_saved: bool = False
) -> LanguageModelSAERunnerConfig[Any]:
    """The config that the settings describe.

    Args:
        settings: As `read_settings` gives them. The SAE's keys stand under "sae." or alone.
        name: The config file, for error messages.
        is_saved: Whether it is the runner_cfg.json of a run. Its checkpoint_path is used as it is;
            otherwise SAELens appends an id of the run.

    Returns:
        A validated config.

    Raises:
        ConfigError: A key is unknown, given twice or missing, a value is of the wrong type, or
            the config rejects the values.
    """
    sae_class = _sae_config_class(settings)
    schema = _schema(sae_class)
    resolved = _resolve(settings, schema)
    from_cache = "use_cached_activations" in resolved and "cached_activations_path" in resolved
    source = [] if from_cache else ["dataset_path"]
    _require(resolved, [*REQUIRED, *source, *_without_default(sae_class)], name)
    values = {key: _fitting(setting, schema[key]) for key, setting in resolved.items()}

    sae = _section(values, "sae")
    recipe, added = _follow_recipe(values, sae, name)
    for key in SHARED:
        if key in values:
            sae.setdefault(key, values[key])
    try:
        with recipes.named_in_errors(recipe, added):
            sae_config = sae_class.from_dict(sae)
            config = LanguageModelSAERunnerConfig(
                sae=sae_config,
                logger=LoggingConfig(**_section(values, "logger")),
                **{key: value for key, value in values.items() if "." not in key},
            )
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error
    config.sae = sae_config  # a file may give it a device and dtype of its own
    if is_saved:
        config.checkpoint_path = values.get("checkpoint_path")
    return config


def _follow_recipe(
    values: dict[str, Any], sae: dict[str, Any], name: str
) -> tuple[recipes.Recipe | None, dict[str, Any]]:
    """Fill in what the recipe adds, the SAE's options into its section; the recipe, and that."""
    recipe = values.pop("recipe", None)
    if recipe is None:
        return None, {}
    given = {**values, **sae}
    try:
        recipes.check(recipe, sae.get("architecture", ARCHITECTURE))
        added = recipes.options(recipe, given)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error
    if kept := recipes.overruled(recipe, given):
        logger.warning(
            "%s: recipe: %s leaves as they are given: %s. Leave them out to have the recipe's: %s.",
            *(name, recipe, _listed({key: given[key] for key in kept}), _listed(kept)),
        )
    for_sae, for_run = recipes.split(added)
    sae.update(for_sae)
    values.update(for_run)
    return recipe, added


def _listed(options: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items())


# What SAELens's flags lack.
ONLY_IN_FILES = ("recipe", "lr_decay_to", "max_nonfinite_fraction")


def known_flags() -> list[str]:
    """The fields of a run that trains a Matryoshka SAE which SAELens has flags for."""
    names = (key.rpartition(".")[2] for key in _schema(MatryoshkaTrainingSAEConfig))
    return [name for name in names if name not in ONLY_IN_FILES]


def _sae_config_class(settings: list[Setting]) -> type[TrainingSAEConfig]:
    given = [s for s in settings if s.key in ("architecture", "sae.architecture")]
    if not given:
        return training_config_class(ARCHITECTURE)
    try:
        return training_config_class(str(given[-1].value))
    except ValueError as error:
        raise ConfigError(f"{given[-1].source}: {error}") from error


def _schema(sae_class: type[TrainingSAEConfig]) -> Schema:
    hints = get_type_hints(LanguageModelSAERunnerConfig)
    schema = {
        field.name: hints[field.name]
        for field in fields(LanguageModelSAERunnerConfig)
        if field.init and field.name not in SECTIONS
    }
    schema["sae.architecture"] = str
    schema["recipe"] = str
    for section, config_class in (("sae", sae_class), ("logger", LoggingConfig)):
        hints = get_type_hints(config_class)
        schema |= {f"{section}.{f.name}": hints[f.name] for f in fields(config_class) if f.init}
    return schema


def _resolve(settings: list[Setting], schema: Schema) -> dict[str, Setting]:
    """One setting per key of the schema: overrides replace, a file may give each key once."""
    resolved: dict[str, Setting] = {}
    for setting in settings:
        mapping, _, item = setting.key.rpartition(".")
        if mapping in schema and _takes_mapping(schema[mapping]):
            key, value = mapping, {item: setting.value}
            if mapping in resolved and isinstance(resolved[mapping].value, dict):
                value = resolved[mapping].value | value
        else:
            key, value = _full_key(setting, schema), setting.value
            if key in resolved and not setting.is_override:
                raise ConfigError(
                    f"{setting.source}: {setting.key} was given before ({resolved[key].source}: "
                    f"{resolved[key].key}). Keep one of the two."
                )
        resolved[key] = Setting(setting.key, value, setting.source, setting.is_override)
    return resolved


def _full_key(setting: Setting, schema: Schema) -> str:
    for key in (setting.key, f"sae.{setting.key}"):
        if key in schema:
            return key
    flat = [key.removeprefix("sae.") for key in schema if key.startswith("sae.")]
    raise ConfigError(
        f"{setting.source}: unknown key {setting.key!r}."
        f"{_did_you_mean(setting.key, [*schema, *flat])} Keys are the arguments of "
        "LanguageModelSAERunnerConfig, the SAE's alone or under sae:, LoggingConfig's under logger:."
    )


def _did_you_mean(word: str, known: list[str]) -> str:
    nearest = get_close_matches(word, known, n=1)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""


def _without_default(sae_class: type[TrainingSAEConfig]) -> list[str]:
    return [
        f"sae.{field.name}"
        for field in fields(sae_class)
        if field.init and field.default is MISSING and field.default_factory is MISSING
    ]


def _require(resolved: dict[str, Setting], keys: list[str], name: str) -> None:
    missing = [key.removeprefix("sae.") for key in keys if key not in resolved]
    if missing:
        raise ConfigError(
            f"{name} lacks {', '.join(missing)}. Add the missing keys; the repository's "
            "train_configs holds examples."
        )


def _section(values: dict[str, Any], section: str) -> dict[str, Any]:
    prefix = f"{section}."
    return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}


def _fitting(setting: Setting, hint: Any) -> Any:
    try:
        return fit(setting.value, hint)
    except TypeError:
        raise ConfigError(
            f"{setting.source}: {setting.key} is {setting.value!r}, but must be {describe(hint)}."
        ) from None


def _takes_mapping(hint: Any) -> bool:
    return any((get_origin(option) or option) is dict for option in (hint, *get_args(hint)))
