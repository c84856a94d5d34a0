"""What is wrong with a recipe, in words: gathered first, told all at once, each with its place."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ValidationError

from nemo_sdg.errors import ConfigurationError, RecipeError

Place = tuple[str | int, ...]


class Problem(NamedTuple):
    """One thing that is wrong, and the path of keys to it, such as ("tasks", 0, "prompt")."""

    place: Place
    text: str


class WrongRecipe(RecipeError):
    """Everything that is wrong with the fields of a recipe; `problems` keeps the places."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{place_name(p.place)}: {p.text}" for p in problems))


class Problems(list[Problem]):
    """Gathers what is wrong, so that one try tells everything."""

    @contextmanager
    def at(self, *place: str | int) -> Iterator[None]:
        """Note a `ConfigurationError` of the block as a problem of this place, and go on."""
        try:
            yield
        except WrongRecipe as error:
            self.extend(Problem((*place, *p.place), p.text) for p in error.problems)
        except ConfigurationError as error:
            self.append(Problem(place, str(error)))

    def add(self, text: str, *place: str | int) -> None:
        """Note a problem."""
        self.append(Problem(place, text))

    def end(self) -> None:
        """Raise `WrongRecipe` when there is any problem."""
        if self:
            raise WrongRecipe(self)


def place_name(place: Place) -> str:
    """Return a path as people write it: `tasks[0].budget`."""
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return name.removeprefix(".") or "recipe"


def did_you_mean(name: object, known: Collection[str]) -> str:
    """Return "; did you mean ...?" for the known name that is nearest, or nothing."""
    near = difflib.get_close_matches(str(name).lower().replace("-", "_"), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def unknown_key(name: object, known: Collection[str]) -> str:
    """Say that a key is unknown, which one was perhaps meant, and which there are."""
    return f"unknown key {name!r}{did_you_mean(name, known) or '.'} Known here: {', '.join(known)}"


def problems_of(error: ValidationError, model: type[BaseModel]) -> Problems:
    """Put the errors of pydantic into words; `model` is what was validated."""
    found = Problems()
    for one in error.errors(include_url=False):
        place: Place = one["loc"]
        found.append(Problem(place, _words(one, model)))
    return found


def _words(one: Mapping[str, Any], model: type[BaseModel]) -> str:
    kind, place, value = one["type"], one["loc"], one["input"]
    if kind == "extra_forbidden":
        return unknown_key(place[-1], keys_of(_model_at(model, place[:-1])))
    if kind == "missing":
        return "this key is missing"
    if kind == "value_error":
        return str(one["ctx"]["error"])
    if kind == "literal_error":
        return _choice(value, model, place)
    if kind == "string_too_short":
        return "must not be empty"
    if kind in _LIMITS:
        words, limit = _LIMITS[kind]
        return f"must be {words} {one['ctx'][limit]}, not {_shown(value)}"
    wanted = next((words for start, words in _WANTED if kind.startswith(start)), None)
    if wanted is None:
        return f"{one['msg'][:1].lower()}{one['msg'][1:]}, not {_shown(value)}"
    quotes = "; put it in quotes" if wanted == "text" and value is not None else ""
    return f"must be {wanted}, not {_shown(value)}{quotes}"


_LIMITS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
}
_WANTED = (
    ("int_", "a whole number"),
    ("float_", "a number"),
    ("bool_", "true or false"),
    ("string_type", "text"),
    ("list_type", "a list"),
    ("dict_type", "a mapping of names to values"),
    ("model_type", "a mapping of names to values"),
    ("model_attributes_type", "a mapping of names to values"),
)


def _choice(value: object, model: type[BaseModel], place: Place) -> str:
    names: tuple[str, ...] = ()
    parent = _model_at(model, place[:-1])
    for name, field in parent.model_fields.items():
        if (field.alias or name) == place[-1]:
            names = literals(field.annotation)
    return f"must be one of {', '.join(names)}, not {_shown(value)}{did_you_mean(value, names)}"


def literals(annotation: Any) -> tuple[str, ...]:
    """Return the values of a `Literal`, alone or in a union; () where there is none."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return next(filter(None, map(literals, get_args(annotation))), ())


def keys_of(model: type[BaseModel]) -> list[str]:
    """Return the keys that a mapping for this model may have."""
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_at(model: type[BaseModel], place: Place) -> type[BaseModel]:
    for part in place:
        if isinstance(part, str) and part in model.model_fields:
            model = _nested(model.model_fields[part].annotation) or model
    return model


def _nested(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_nested, get_args(annotation))), None)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
