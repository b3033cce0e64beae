"""Read YAML files of runs and benchmarks, and what the command line adds to them.

Nothing here imports SAELens: a missing file or a slip in the YAML shows at once.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

# Keys whose mappings are configs of their own: the SAE's and the logger's.
SECTIONS = ("sae", "logger")


class ConfigError(ValueError):
    """A config file or a --set option cannot be used. The message says why and what to do."""


@dataclass(frozen=True)
class Setting:
    """One key of a run's configuration.

    Args:
        key: Dotted, e.g. "sae.k".
        value: As YAML reads it.
        source: Where it was given, for error messages.
        is_override: Whether it replaces what came before it; a config file's own keys may not.
    """

    key: str
    value: Any
    source: str
    is_override: bool = False


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but 3e-4 is a number, as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def read_settings(path: Path, overrides: list[str]) -> list[Setting]:
    """The settings of a config file, then those of the overrides.

    Args:
        path: A YAML (or JSON) file.
        overrides: "a.b=value", the value in YAML. Later ones win.

    Returns:
        Settings in the order in which they were given.

    Raises:
        ConfigError: The file cannot be read, or it or an override is no valid YAML.
    """
    settings = _parse(_read(path), f"{path}")
    if not settings:
        raise ConfigError(
            f"{path} is empty. It needs at least model_name, hook_name, "
            "dataset_path, d_in and d_sae; the repository's train_configs holds examples."
        )
    for override in overrides:
        settings += _parse_override(override)
    return settings


def read_mapping(path: Path) -> dict[str, Any]:
    """The nested mapping that a YAML (or JSON) file holds.

    Args:
        path: The file.

    Raises:
        ConfigError: The file cannot be read, is no valid YAML, holds no mapping or gives a key twice.
    """
    source = str(path)
    node = _compose(_read(path), source)
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{source} must hold lines of the form KEY: VALUE, not a {_kind(node)}.")
    _refuse_repeated_keys(node, source)
    return _construct(node, source)


def parse_override(text: str) -> tuple[str, Any]:
    """The key and the value of "a.b=value", the value in YAML.

    Raises:
        ConfigError: It is not of that form.
    """
    key, node, source = _split_override(text)
    return key, _construct(node, source)


def _refuse_repeated_keys(node: yaml.Node, source: str) -> None:
    if not isinstance(node, yaml.CollectionNode):
        return
    lines: dict[str, int] = {}
    for entry in node.value:
        if isinstance(node, yaml.MappingNode):
            key, line = _name(entry[0], source), entry[0].start_mark.line + 1
            if key in lines:
                raise ConfigError(
                    f"{source}, line {line}: {key} was given before, in line {lines[key]}. Keep one."
                )
            lines[key] = line
        _refuse_repeated_keys(entry[1] if isinstance(entry, tuple) else entry, source)


def _read(path: Path) -> str:
    if path.is_dir():
        raise ConfigError(f"{path} is a folder. Name the YAML file in it:{_yaml_files(path)}")
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"There is no file {path}.{_similar_files(path)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _similar_files(path: Path) -> str:
    if not path.parent.is_dir():
        return f" Nor is there a folder {path.parent}."
    names = [other.name for other in path.parent.iterdir() if other.is_file()]
    similar = get_close_matches(path.name, names, n=3, cutoff=0.5)
    if similar:
        return f" Did you mean {' or '.join(str(path.with_name(name)) for name in similar)}?"
    files = _yaml_files(path.parent)
    return f" {path.parent} holds:{files}" if files else ""


def _yaml_files(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if path.suffix in (".yaml", ".yml"))
    return " " + ", ".join(names) if names else ""


def _parse_override(text: str) -> list[Setting]:
    key, node, source = _split_override(text)
    if key in SECTIONS:
        nested = _flatten(_mapping(node, source, key), source, f"{key}.")
        return [replace(setting, source=source, is_override=True) for setting in nested]
    return [Setting(key, _construct(node, source), source, is_override=True)]


def _split_override(text: str) -> tuple[str, yaml.Node | None, str]:
    """Key, value and source of "key=value"."""
    key, equals, value = text.partition("=")
    source = f"--set {text}"
    if not equals or not key.strip():
        raise ConfigError(f"{source} is not of the form KEY=VALUE.")
    return key.strip(), _compose(value, source), source


def _parse(text: str, source: str) -> list[Setting]:
    node = _compose(text, source)
    if node is None or not node.value:
        return []
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{source} must hold lines of the form KEY: VALUE, not a {_kind(node)}.")
    return list(_flatten(node, source))


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        context = f" ({error.context})" if error.context else ""
        raise ConfigError(f"{source}{place}: no valid YAML: {error.problem}{context}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: no valid YAML: {error}") from error


def _flatten(node: yaml.MappingNode, source: str, prefix: str = "") -> Iterator[Setting]:
    for key_node, value_node in node.value:
        place = f"{source}, line {key_node.start_mark.line + 1}"
        key = f"{prefix}{_name(key_node, source)}"
        if key in SECTIONS:
            yield from _flatten(_mapping(value_node, place, key), source, f"{key}.")
        else:
            yield Setting(key, _construct(value_node, place), place)


def _name(key: yaml.Node, source: str) -> str:
    if isinstance(key, yaml.ScalarNode):
        return key.value
    line = key.start_mark.line + 1
    raise ConfigError(f"{source}, line {line}: a key must be a name, not a {_kind(key)}.")


def _mapping(node: yaml.Node | None, place: str, key: str) -> yaml.MappingNode:
    if isinstance(node, yaml.MappingNode):
        return node
    raise ConfigError(f"{place}: {key} must be a mapping of keys to values, not a {_kind(node)}.")


def _construct(node: yaml.Node | None, place: str) -> Any:
    if node is None:
        return None
    loader = _Loader("")
    try:
        return loader.construct_object(node, deep=True)
    except (yaml.MarkedYAMLError, ValueError) as error:
        problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else error
        raise ConfigError(f"{place}: no valid YAML: {problem}.") from error


def _kind(node: yaml.Node | None) -> str:
    if isinstance(node, yaml.MappingNode):
        return "mapping"
    if isinstance(node, yaml.SequenceNode):
        return "list"
    return "single value" if node is None or not node.value else f"single value ({node.value})"
