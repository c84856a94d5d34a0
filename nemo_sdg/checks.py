"""A value of the wrong type is told at once, where it was given, with what would be right.

@dataclass(frozen=True)
class Thing:
    name: str
    limit: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)      # Thing(name=5): "Thing: name must be text, not 5"
"""

from __future__ import annotations

import inspect
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping, Set
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from typing import Any

from nemo_sdg.errors import ConfigurationError

MADE_BY: Mapping[str, str] = {
    "Endpoint": 'Endpoint(url="http://localhost:8000/v1", model="...")',
    "Task": "get_task(NAME)",
    "FlowTask": "@flow(...)",
    "Recipe": "load_recipe(PATH)",
    "Tokenizer": "load_tokenizer(NAME)",
}
"""Class -> how a user comes by one; named where something else was given."""

REPLACEABLE: Mapping[str, str] = {"Tokenizer": "count_column"}
"""Class -> method; whatever has that method may stand in for it."""

_WORDS: Mapping[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    type(None): "None",
    os.PathLike: "a path",
}
_MOST_SHOWN = 60


def check_fields(value: Any) -> None:
    """Compare the fields of a dataclass with their declared types.

    A list may stand for a tuple, any collection but text for a set. Types that only a type checker
    knows are not compared.

    Raises:
        ConfigurationError: names class and field, what it holds and what it may hold.
    """
    cls = type(value)
    for name, hint in _hints(cls).items():  # type: ignore[arg-type]
        expect(getattr(value, name), hint, f"{cls.__name__}: {name}")


def expect(value: Any, hint: Any, place: str) -> None:
    """Raise `ConfigurationError` that begins with `place` unless the value is of the type."""
    if not _fits(value, hint):
        raise ConfigurationError(f"{place} must be {_told(hint)}, not {_shown(value)}")


@cache
def _hints(cls: type) -> dict[str, Any]:
    found = {}
    for one in fields(cls):
        if not one.init:
            continue
        hint: Any = one.type
        if isinstance(hint, str):
            home = next(c for c in cls.__mro__ if one.name in inspect.get_annotations(c))
            try:
                hint = eval(hint, vars(sys.modules[home.__module__]))
            except NameError:  # imported for type checkers alone
                continue
        found[one.name] = hint
    return found


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if hint is None or hint is type(None):
        return value is None
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is typing.Literal:
        return value in inner
    if hint in (float, int):
        number = Real if hint is float else Integral
        return isinstance(value, number) and not isinstance(value, bool)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        if inner[-1:] == (Ellipsis,):
            return all(_fits(one, inner[0]) for one in value)
        return len(value) == len(inner) and all(map(_fits, value, inner))
    kind = origin or hint
    if kind is Callable or kind is typing.Callable:
        return callable(value)
    if not isinstance(kind, type):
        return True
    if getattr(kind, "_is_protocol", False):
        return all(hasattr(value, name) for name in _members(kind))
    if issubclass(kind, Set):
        kind = Set | tuple | list
    elif kind is not str and isinstance(value, str | bytes) and not issubclass(kind, str | bytes):
        return False  # text is a sequence of texts, and never meant as one
    if not isinstance(value, kind):
        return hasattr(value, REPLACEABLE.get(getattr(kind, "__name__", ""), " "))
    if isinstance(value, list | tuple) and len(inner) == 1:
        return all(_fits(one, inner[0]) for one in value)
    return True


def _members(protocol: type) -> list[str]:
    named = {**vars(protocol), **inspect.get_annotations(protocol)}
    return [name for name in named if not name.startswith("_")]


def _told(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_told, inner)))
    if origin is typing.Literal:
        return " or ".join(map(repr, inner))
    if hint in _WORDS:
        return _WORDS[hint]
    if hint is None:
        return "None"
    kind = origin or hint
    if kind is Callable:
        return "a function"
    if isinstance(kind, type):
        if issubclass(kind, Set):
            return "a set" + _of(inner)
        if issubclass(kind, Mapping):
            return "a mapping (dict)"
        if kind in (tuple, list) or kind.__module__ == "collections.abc":
            return "a list or tuple" + _of(inner)
    name = getattr(kind, "__name__", str(kind))
    article = "an" if name[:1] in "AEIOU" else "a"
    return f"{article} {name}" + (f" ({MADE_BY[name]})" if name in MADE_BY else "")


def _of(inner: tuple[Any, ...]) -> str:
    kinds = [_told(one).removeprefix("a ") for one in inner if one is not Ellipsis]
    return f" of {kinds[0]}" if len(kinds) == 1 else ""


def _shown(value: Any) -> str:
    text = repr(value)
    if len(text) > _MOST_SHOWN or "\n" in text:
        return f"a {type(value).__name__}"
    return (
        text if isinstance(value, str | int | float | None) else f"{text} ({type(value).__name__})"
    )
