"""docs/bench.md lists every field that an eval takes, with its type and default."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from sae_lens_matryoshka.bench.evals import catalogue as evals
from sae_lens_matryoshka.bench.evals.catalogue import EVALS, eval_config
from sae_lens_matryoshka.settings.yaml_file import ConfigError

PAGE = (Path(__file__).parents[3] / "docs" / "bench.md").read_text(encoding="utf-8")
TYPES = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "list of int": list[int],
    "list of str": list[str],
    "dict of list of pairs": dict[str, list[tuple[str, str]]],
}
LONG = 20  # a default with more entries is counted, not listed


def section(name: str) -> str:
    """The part of the page about an eval."""
    parts = re.split(r"^(#{2,3} .*)$", PAGE, flags=re.MULTILINE)
    [text] = [text for head, text in zip(parts[1::2], parts[2::2]) if f"`{name}`" in head]
    return text


def listed(name: str) -> dict[str, tuple[str, str]]:
    """Field to type and default, as the page has them."""
    rows = re.findall(
        r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| [^|]+ \|$", section(name), re.MULTILINE
    )
    found = {field: (kind, default) for field, kind, default in rows}
    assert len(found) == len(rows) > 0
    return found


def is_taken(name: str, field: str, default: Any) -> bool:
    try:
        eval_config(name, {field: default})
    except ConfigError:
        return False
    return True


def accepted(name: str) -> dict[str, Any]:
    """The fields of SAEBench's config that the suite does not set itself."""
    cls = evals._light_class(name, "eval_config", EVALS[name].config_class)
    default = eval_config(name, {})
    return {
        field.name: field
        for field in fields(cls)
        if is_taken(name, field.name, getattr(default, field.name))
    }


def strings(value: Any) -> set[str]:
    if isinstance(value, str):
        return {value}
    inner = [*value, *value.values()] if isinstance(value, dict) else value
    return set().union(*map(strings, inner))


@pytest.mark.parametrize("name", EVALS)
def test_the_page_lists_what_an_eval_takes(name: str):
    assert set(listed(name)) == set(accepted(name))


@pytest.mark.parametrize("name", EVALS)
def test_types_and_defaults_are_saebenchs(name: str):
    default = eval_config(name, {})
    for field, (kind, written) in listed(name).items():
        annotation, value = accepted(name)[field].type, getattr(default, field)
        assert TYPES[kind] == annotation, field
        if code := re.fullmatch("`(.*)`", written):
            assert yaml.safe_load(code[1]) == value, field
        elif len(value) > LONG:
            assert str(len(value)) in written, field
        else:
            assert all(word in section(name) for word in strings(value)), field
