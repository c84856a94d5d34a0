"""Shapes of the plots in a report: numbers in, positions out; the template draws them.

A plot is drawn in a box of 1000 by 100 that is stretched to the width there is; labels stand
beside it as text, so that they keep their size on a phone. Positions are percent of the box, from
the left and from the top.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

WIDTH, HEIGHT = 1000, 100

# Letters of a label that stand beside one another along an axis, and those between two labels.
_ROOM, _ROOM_ON_A_PHONE, _BETWEEN = 62, 41, 1.5
_EDGE = 4  # percent: closer to an end a label stands inside the box
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_TIMES = [n * unit for unit in (1, _MINUTE) for n in (10, 15, 30)]
_TIMES += [n * _MINUTE for n in (1, 2, 5)] + [n * _HOUR for n in (1, 2, 3, 6, 12, 24)]


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A label on an axis, at a percentage of its length; a spare one has no room on a phone."""

    at: float
    label: str
    is_spare: bool = False


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
    """The numbers behind a drawing. `has_words`: the last column holds words."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    has_words: bool = False


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


def time_steps(length_s: float, most: int = 6) -> list[float]:
    """Return points in time from 0 on that are round as seconds, minutes, hours or days."""
    if length_s < _MINUTE:
        steps = nice_steps(length_s, most)
    else:
        fitting = (step for step in sorted(_TIMES) if step * most >= length_s)
        step = next(fitting, 0) or nice_steps(length_s / _DAY, most)[1] * _DAY
        steps = [n * step for n in range(most + 1)]
    return [step for step in steps if step <= length_s * 1.0001]


def apart(ticks: Sequence[Tick]) -> list[Tick]:
    """Return the labels that do not run into one that stands before it in `ticks`."""

    def kept(room: float) -> list[Tick]:
        found: list[tuple[float, Tick]] = []
        for tick in ticks:
            half = len(tick.label) / 2
            inward = half if tick.at < _EDGE else -half if tick.at > 100 - _EDGE else 0.0
            middle = tick.at * room / 100 + inward
            if all(
                abs(middle - other) >= half + len(one.label) / 2 + _BETWEEN for other, one in found
            ):
                found.append((middle, tick))
        return [tick for _, tick in found]

    on_a_phone = kept(_ROOM_ON_A_PHONE)
    return [replace(tick, is_spare=tick not in on_a_phone) for tick in kept(_ROOM)]


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
