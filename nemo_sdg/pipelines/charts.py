"""Shapes of the plots in a report: numbers in, positions out; the template draws them.

A plot is drawn in a box of 1000 by 100 that is stretched to the width there is; labels stand
beside it as text, so that they keep their size on a phone. Positions are percent of the box, from
the left and from the top.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 1000, 100


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A label on an axis, at a percentage of its length."""

    at: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A line or an area. `kind` is its class in the style sheet, `path` an SVG path."""

    name: str
    kind: str
    path: str
    is_area: bool = False


@dataclass(frozen=True, kw_only=True)
class Block:
    """A rectangle, in units of the box, with what a pointer over it is told."""

    left: float
    top: float
    width: float
    height: float
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A vertical line with a meaning."""

    at: float
    label: str
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A drawing with its axes. `words` says what it shows to whoever cannot see it."""

    words: str
    shapes: Sequence[Shape] = ()
    blocks: Sequence[Block] = ()
    marks: Sequence[Mark] = ()
    across: Sequence[Tick] = ()
    up: Sequence[Tick] = ()


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a bar: percent of the longest bar."""

    share: float
    kind: str
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A labelled bar of one or several pieces; `note` stands below it."""

    label: str
    value: str
    pieces: Sequence[Piece] = field(default_factory=tuple)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """The numbers behind a drawing."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A plot, or bars, with a title, its key, and the table behind it.

    `is_slim`: the labels of the bars are short and stand beside them.
    """

    title: str
    table: Table
    plot: Plot | None = None
    bars: Sequence[Bar] = ()
    keys: Sequence[tuple[str, str]] = ()
    note: str = ""
    is_slim: bool = False


def nice_steps(top: float, most: int = 4) -> list[float]:
    """Return round numbers from 0 to at least `top`, in at most `most` steps."""
    if top <= 0:
        return [0.0, 1.0]
    rough = top / most
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(s * magnitude for s in (1, 2, 2.5, 5, 10) if s * magnitude >= rough * 0.999999)
    count = math.ceil(top / step - 1e-9)
    return [n * step for n in range(count + 1)]


def stairs(values: Sequence[float], top: float, *, is_area: bool = False) -> str:
    """Return the path of values that hold for a bin each, from left to right."""
    if not values:
        return ""
    width = WIDTH / len(values)
    heights = [_y(value, top) for value in values]
    way = [f"M0 {heights[0]:g}"]
    for number, height in enumerate(heights):
        if number and height != heights[number - 1]:
            way.append(f"V{height:g}")
        way.append(f"H{round((number + 1) * width, 2):g}")
    return "".join(way) + (f"V{HEIGHT}H0Z" if is_area else "")


def columns(values: Sequence[float], titles: Sequence[str], top: float) -> list[Block]:
    """Return one upright block a value; one of `top` is as high as the box."""
    width = WIDTH / max(1, len(values))
    return [
        Block(
            left=round(number * width + width * 0.06, 2),
            top=_y(value, top),
            width=round(width * 0.88, 2),
            height=round(HEIGHT - _y(value, top), 2),
            title=title,
        )
        for number, (value, title) in enumerate(zip(values, titles, strict=True))
    ]


def log_steps(low: float, high: float, most: int = 7) -> list[float]:
    """Return 1, 2, 5, 10 ... between two numbers above 0: all of them, or powers of ten alone."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine, coarse = (
        [d * 10.0**p for p in powers for d in digits if low <= d * 10.0**p <= high]
        for digits in ((1, 2, 5), (1,))
    )
    return fine if len(fine) <= most else coarse


def log_place(value: float, low: float, high: float) -> float:
    """Return where a number stands on a logarithmic axis, in percent."""
    if high <= low:
        return 0.0
    return round(100 * math.log(value / low) / math.log(high / low), 2)


def _y(value: float, top: float) -> float:
    return round(HEIGHT * (1 - min(max(value / top, 0.0), 1.0)), 2) if top else float(HEIGHT)
