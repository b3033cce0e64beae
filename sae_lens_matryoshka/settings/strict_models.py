"""Settings of a YAML file against a pydantic model: an error with the nearest name for each wrong one."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeGuard, TypeVar, cast, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from sae_lens_matryoshka.settings.yaml_file import ConfigError

AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]


def _all_differ(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{seeds} holds a seed twice, which would count one run as two")
    return seeds


Seed = Annotated[int, Field(ge=0, lt=2**32)]
Seeds = Annotated[list[Seed], Field(min_length=1), AfterValidator(_all_differ)]


class Strict(BaseModel):
    """A part of a configuration that takes the keys it knows, and no other."""

    model_config = ConfigDict(extra="forbid", frozen=True)


M = TypeVar("M", bound=Strict)

MOST_LISTED = 60


def validated(
    model: type[M],
    settings: dict[str, Any],
    name: str = "config",
    overrides: Sequence[tuple[str, Any]] = (),
) -> M:
    """
    The configuration that settings describe.

    Args:
        model: Its class.
        settings: As read from YAML, nested; stay as they are.
        name: What to call them in errors, e.g. the file.
        overrides: Dotted keys and values that replace those of the settings.

    Raises:
        ConfigError: A key is unknown or missing, or a value cannot be used. Every wrong key is named.
    """
    for key, value in overrides:
        settings = with_setting(settings, str(key), value, name)
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        problems = "\n".join(f"  {_explain(model, dict(e))}" for e in error.errors())
        raise ConfigError(f"{name} cannot be used:\n{problems}") from error


def with_setting(settings: dict[str, Any], key: str, value: Any, source: str) -> dict[str, Any]:
    """
    A copy of the settings with one of them replaced.

    Args:
        settings: Nested; stays as it is.
        key: Dotted, e.g. "evals.absorption.max_k_value"; numbers count list entries: "saes.0.levels".
        value: The new value.
        source: Where it was given, for errors.

    Raises:
        ConfigError: The key leads through something that has no keys.
    """
    first, _, rest = key.partition(".")
    is_list = isinstance(settings, list)
    copied = cast(dict[Any, Any], list(settings) if is_list else dict(settings))
    place: Any = first
    if is_list:
        if not first.isdigit() or int(first) >= len(copied):
            raise ConfigError(f"{source}: {first!r} is no entry of a list of {len(copied)}.")
        place = int(first)
    if not rest:
        copied[place] = value
        return copied
    inner = copied[place] if is_list else copied.get(place)
    inner = {} if inner is None else inner
    if not isinstance(inner, dict | list):
        raise ConfigError(
            f"{source}: {first} is {inner!r} and has no keys, so {key} cannot be set."
        )
    copied[place] = with_setting(cast(dict[str, Any], inner), rest, value, source)
    return copied


def _explain(model: type[BaseModel], error: dict[str, Any]) -> str:
    path = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        known = _keys_at(model, path[:-1])
        return f"{'.'.join(path)}: unknown key.{did_you_mean(path[-1], known)}"
    if error["type"] == "literal_error" and path[-1] == "[key]":
        known = re.findall("'([^']+)'", error["ctx"]["expected"])
        what = path[0].removesuffix("s")
        return f"{'.'.join(path[:-1])}: no such {what}.{did_you_mean(path[-2], known)}"
    message = error["msg"].removeprefix("Value error, ")
    given = "" if error["type"] in ("missing", "value_error") else f" (given: {error['input']!r})"
    return f"{'.'.join(path) or 'config'}: {message}{given}"


def did_you_mean(word: str, known: Any) -> str:
    """The nearest known name as a question, then all of them, or the first of very many."""
    known = list(known)
    nearest = get_close_matches(word, known, n=1)
    if len(known) > MOST_LISTED:
        known = [*known[:MOST_LISTED], f"... ({len(known)} in all)"]
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return f"{hint} Known: {', '.join(known)}."


def _keys_at(model: type[BaseModel], path: list[str]) -> list[str]:
    """The keys that the schema knows below a path."""
    for part in path:
        inner = model.model_fields.get(part)
        if inner is not None:
            candidates = (inner.annotation, *get_args(inner.annotation))
            model = next((c for c in candidates if _is_model(c)), model)
    return list(model.model_fields)


def _is_model(candidate: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(candidate, type) and issubclass(candidate, BaseModel)
