"""Code in words that are the same in every process, and others when the code is."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import re
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

from nemo_sdg.pipelines.task_build import source_of

_PLAIN = (str, bytes, int, float, complex, bool, type(None), range)
_HELD = (*_PLAIN, list, tuple, dict, set, frozenset, re.Pattern, functools.partial)
"""Kinds of a module's values that decide what its functions do."""


def code_name(value: Any) -> str:
    """Name a function, class or object by what it does: no place in memory, no order of hashing.

    What belongs to this package goes by its name, since the package's version stands for it. The
    user's own goes by its text, its captured values, and the functions, classes and constants of
    its module that it names. What it imports from elsewhere goes by name.
    """
    return _name(value, ())


def _name(value: Any, inside: tuple[int, ...]) -> str:
    if isinstance(value, _PLAIN):
        return repr(value)
    if id(value) in inside:
        return "itself"
    inside = (*inside, id(value))
    if isinstance(value, functools.partial):
        return f"partial{_names((value.func, *value.args), inside)}{_named(value.keywords, inside)}"
    if inspect.ismethod(value):
        return f"{_name(value.__func__, inside)} of {_name(value.__self__, inside)}"
    if isinstance(value, FunctionType):
        return _function(value, inside)
    if isinstance(value, type):
        return _class(value)
    if isinstance(value, re.Pattern):
        return f"re({value.pattern!r}, {value.flags})"
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, Mapping):
        return _named(value, inside)
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(_name(one, inside) for one in value))}}}"
    if isinstance(value, list | tuple):
        return _names(value, inside)
    if hasattr(value, "__wrapped__"):  # a cache around a function
        return f"{_class(type(value))} {_name(value.__wrapped__, inside)}"
    if inspect.isbuiltin(value):
        owner = "" if isinstance(value.__self__, ModuleType) else _name(value.__self__, inside)
        return f"{value.__module__}.{value.__qualname__} {owner}".rstrip()
    return _object(value, inside)


def _names(values: Any, inside: tuple[int, ...]) -> str:
    return f"({', '.join(_name(one, inside) for one in values)})"


def _named(values: Mapping[Any, Any], inside: tuple[int, ...]) -> str:
    pairs = (f"{_name(k, inside)}: {_name(v, inside)}" for k, v in values.items())
    return f"{{{', '.join(pairs)}}}"


def _qualified(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _class(kind: type) -> str:
    name = _qualified(kind)
    return name if _is_known(kind) else f"{name} {_digest(source_of(kind))}"


def _is_known(value: Any) -> bool:
    return str(value.__module__).partition(".")[0] in ("nemo_sdg", "builtins", "functools")


def _function(function: FunctionType, inside: tuple[int, ...]) -> str:
    held = _captured(function, inside)
    if _is_known(function):
        return f"{_qualified(function)} {held}".rstrip()
    texts = [source_of(function), held]
    for name in sorted(set(_words(function.__code__))):
        other = function.__globals__.get(name)
        mine = getattr(other, "__module__", None) == function.__module__
        if isinstance(other, _HELD) or (mine and isinstance(other, FunctionType | type)):
            texts.append(f"{name} = {_name(other, inside)}" if other is not None else "")
    return f"{_qualified(function)} {_digest(*texts)}"


def _captured(function: FunctionType, inside: tuple[int, ...]) -> str:
    held: list[Any] = [function.__defaults__, function.__kwdefaults__]
    for cell in function.__closure__ or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:  # not filled yet
            held.append(None)
    return _names(held, inside) if any(one is not None for one in held) else ""


def _words(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _words(constant)


def _object(value: Any, inside: tuple[int, ...]) -> str:
    kind = type(value)
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return f"{_class(kind)} {_named({n: getattr(value, n) for n in names}, inside)}"
    shows: Any = kind.__repr__
    shown = "" if shows is object.__repr__ else repr(value)
    if shown and not re.search(r"\bat 0x[0-9a-fA-F]+", shown):
        return f"{_class(kind)} {shown}"
    slots = [n for k in kind.__mro__ for n in getattr(k, "__slots__", ()) if hasattr(value, n)]
    state = {n: getattr(value, n) for n in slots} | getattr(value, "__dict__", {})
    return f"{_class(kind)} {_named(state, inside)}"


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
