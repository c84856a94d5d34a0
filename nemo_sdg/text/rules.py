"""Replace patterns in a text column until none is found, and look only where one may be.

A pass of a regular expression over text that holds no match is what costs: about 4 ms a megabyte
and pattern. On the CPU a `Look` therefore tells beforehand, from the bytes of the whole column, in
which rows a rule can match at all. What comes out is the same with and without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nemo_sdg.data.backend import from_arrow, is_cudf, replace_regex, to_arrow
from nemo_sdg.data.regex import to_re2
from nemo_sdg.text.pieces import Places, cut_up, lengths_of, put_together

Rules: TypeAlias = tuple[tuple[str, str], ...]
Mask: TypeAlias = npt.NDArray[np.bool_]

MAX_PASSES = 40


class Found(NamedTuple):
    """What a look at the bytes of a column tells of its rows; both have a row for each rule.

    Attributes:
        now: where a rule can match the text as it stands.
        ever: where it can match what is left when characters were taken out.
    """

    now: Mask
    ever: Mask


Look: TypeAlias = Callable[["pa.LargeStringArray"], Found]
"""Tell of a column without nulls in which rows each rule can match. True is never wrong."""

Cut: TypeAlias = Callable[["pa.LargeStringArray"], Places]
"""Find places in the buffer of a column, inside texts, over which no match ever reaches."""


def replace_until_stable(
    series: Any, rules: Rules, look: Look, *, cut: Cut | None = None, blanks: str = ""
) -> Any:
    """Apply the rules in turn, again and again until none finds anything.

    Each rule must make what it changes shorter: lengths then tell when they are done, and what
    comes out is left alone by the next application. Several rounds are needed where matches share
    a character (there is no look-around) or marks are nested; 40 end it for a text that is made to
    go on.

    Args:
        series: text column.
        rules: pattern and replacement, see `replace_regex`.
        look: where to try.
        cut: where texts may be taken apart, so that rules are tried on the pieces.
        blanks: characters that are stripped from both ends after each round; none where empty.
    """
    name = series.name
    if is_cudf(series):
        return _everywhere(series, rules, blanks).rename(name)
    column: Any = to_arrow(series)
    bare: Any = pc.fill_null(column, "") if column.null_count else column
    pieces, firsts = (bare, None) if cut is None else cut_up(bare, cut(bare))
    changed, at = _where_found(pieces, rules, look, blanks)
    if not len(at):
        return from_arrow(column, like=series).rename(name)
    mask = np.zeros(len(pieces), np.bool_)
    mask[at] = True
    clean = pc.replace_with_mask(pieces, pa.array(mask), changed)
    if firsts is not None:
        clean = put_together(clean, firsts)
    if column.null_count:
        clean = pc.if_else(column.is_valid(), clean, pa.scalar(None, pa.large_string()))
    return from_arrow(clean, like=series).rename(name)


def _everywhere(series: Any, rules: Rules, blanks: str) -> Any:
    before = -1
    for _ in range(MAX_PASSES):  # a look would cost a card more than it spares
        for pattern, replacement in rules:
            series = replace_regex(series, pattern, replacement)
        if blanks:
            series = series.str.strip(blanks)
        after = int(series.str.len().sum())
        if after == before:
            break
        before = after
    return series


def _where_found(
    column: Any, rules: Rules, look: Look, blanks: str
) -> tuple[Any, npt.NDArray[np.int64]]:
    """Give the texts that changed and their rows, in order."""
    found = look(column)
    active = np.flatnonzero(found.now.any(axis=0))
    texts = column.take(pa.array(active))
    first = lengths_of(texts)
    now, ever = found.now[:, active], found.ever[:, active]
    waiting = np.arange(len(active))
    for _ in range(MAX_PASSES):
        before = lengths_of(texts)
        texts = _one_pass(texts, rules, now, ever, waiting)
        if blanks:
            texts = pc.utf8_trim(texts, characters=blanks)
        waiting = np.flatnonzero(lengths_of(texts) != before)
        if not len(waiting):
            break
        found = look(texts.take(pa.array(waiting)))
        now, ever = found.now, found.ever
    rows = np.flatnonzero(lengths_of(texts) != first)
    return texts.take(pa.array(rows)), active[rows]


def _one_pass(
    texts: Any, rules: Rules, now: Mask, ever: Mask, waiting: npt.NDArray[np.int64]
) -> Any:
    """Apply every rule once to the rows `waiting`, of which `now` and `ever` tell."""
    touched = np.zeros(len(waiting), np.bool_)
    for number, (pattern, replacement) in enumerate(rules):
        # Where an earlier rule took something out, the first look no longer holds.
        chosen = np.flatnonzero(now[number] | (touched & ever[number]))
        if not len(chosen):
            continue
        old = texts.take(pa.array(waiting[chosen]))
        new = pc.replace_substring_regex(old, pattern=to_re2(pattern), replacement=replacement)
        shorter = lengths_of(new) != lengths_of(old)
        if not shorter.any():
            continue
        touched[chosen[shorter]] = True
        mask = np.zeros(len(texts), np.bool_)
        mask[waiting[chosen[shorter]]] = True
        texts = pc.replace_with_mask(texts, pa.array(mask), new.filter(pa.array(shorter)))
    return texts
