"""Values of a YAML file against the type hints of SAELens's dataclasses."""

from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from sae_lens.saes.sae import SAEMetadata

TYPE_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    dict: "a mapping",
    SAEMetadata: "a mapping",
    NoneType: "null",
}


def fit(value: Any, hint: Any) -> Any:
    """
    The value as the type wants it: lists become tuples, 5e8 a whole number.

    Raises:
        TypeError: The value is of another type.
    """
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        return _fit_one_of(value, args)
    if origin is Literal:
        # only the type: SAELens accepts values that its annotations leave out, and checks them
        return _fit_one_of(value, tuple({type(option) for option in args}))
    if origin in (list, tuple) and isinstance(value, list | tuple):
        return origin(fit(item, args[0]) for item in value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    expected = {float: (int, float), SAEMetadata: dict}.get(hint, origin or hint)
    if not isinstance(value, expected) or (isinstance(value, bool) and hint is not bool):
        raise TypeError
    return value


def _fit_one_of(value: Any, hints: tuple[Any, ...]) -> Any:
    for hint in hints:
        try:
            return fit(value, hint)
        except TypeError:
            continue
    raise TypeError


def describe(hint: Any) -> str:
    """The type in words, for those who write YAML."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(describe(option) for option in args)
    if origin is Literal:
        return " or ".join(repr(option) for option in args)
    if origin in (list, tuple):
        return f"a list (each {describe(args[0])})"
    return TYPE_NAMES.get(origin or hint, getattr(hint, "__name__", str(hint)))
