r"""Count lines, and runs of lines, from one tokenization of the texts that they stand in.

A line has by itself the tokens that it has in its text when a word, in the sense of the tokenizer's
split rules, begins with the line, and either a word ends with it, or it ends with a run of marks
whose tokens are known: the rules put the newline to that run. The same holds of the lines from one
to another, where only the ends matter. Other lines are counted by themselves: in English, few.

Why this is exact for byte-level BPE under the rules of `text.gpu.rules`, when tokens are the bytes
of the text and no added token holds a newline or takes the blanks beside it (`line_rules`):

- A word does not depend on what stands before it.
- No word holds a newline and, behind it, anything but blanks and (some rules) slashes. Words of
  blanks end with their last newline, but for PLAIN rules. So a word begins with a line that begins
  with a letter, digit or mark, and, unless PLAIN, with one that begins with a blank and holds more.
- No word holds a letter or digit and, behind it, a newline: a word ends with a line that ends so.
  Of characters beyond ASCII the reference says whether they are letters, digits or blanks.
- A run of ASCII marks makes one word with the newlines behind it. It begins behind a letter or
  digit, with a blank behind either or a mark, or with the line. By itself, or with one newline, it
  makes the same word with none or one; its tokens stand in a table.
- Lines may begin, and end, with one empty line: its newline is a word, or stands behind such a run.

That a token of the text begins where a word should is looked up in any case.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nemo_sdg.text.engines import Counts
from nemo_sdg.text.gpu.classes import LETTER, NUMBER, SPACE, class_table
from nemo_sdg.text.gpu.rules import PLAIN, SLASHES, NotCompiled, rules_of
from nemo_sdg.text.pieces import bytes_of, codes_at, find_byte, offsets_of

Mask = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Small = npt.NDArray[np.int32]

_MARKS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
_LONGEST_RUN = 3
_SYMBOLS = ("", " ", *_MARKS)
_NEWLINE, _RETURN = b"\n\r"
_WIDE = 0x80
_OTHER, _BLANK, _MARK, _SLASH, _WORD = range(5)
_LEAST_SHARE = 0.7


class LineTokens(NamedTuple):
    """Tokens of lines in their texts, one entry a line.

    The lines from i to j of a text, i below j, have `last[j] - first[i]` tokens as a text of their
    own where `begins[i]` and `ends[j]`; so has one line that is not empty.

    Attributes:
        first: tokens before the line.
        last: tokens before its end, as if nothing stood behind it.
        begins: whether `first` may be taken.
        ends: whether `last` may be taken.
    """

    first: Counts
    last: Counts
    begins: Mask
    ends: Mask

    def of_pieces(self, line: Counts) -> LineTokens:
        """Give the same of pieces, each a line or a part of one: of parts nothing is known."""
        whole = (np.bincount(line, minlength=len(self.first)) == 1)[line]
        return LineTokens(
            self.first[line], self.last[line], self.begins[line] & whole, self.ends[line] & whole
        )

    def of_runs(self, begin: Counts, final: Counts) -> tuple[Mask, Counts]:
        """Tell of runs of lines whether their tokens are known, and how many they are."""
        return self.begins[begin] & self.ends[final], self.last[final] - self.first[begin]


class LineRules(NamedTuple):
    """What the split rules of a tokenizer make of lines.

    Attributes:
        takes_blanks: a word may hold a newline and blanks behind it.
        takes_slashes: a word may hold a newline and slashes behind it.
        runs: tokens of each run of up to three marks, the first of which may be a blank.
        runs_with_newline: tokens of each with a newline behind it.
    """

    takes_blanks: bool
    takes_slashes: bool
    runs: Small
    runs_with_newline: Small


def line_rules(tokenizer: Any, count: Callable[[list[str]], Counts]) -> LineRules | None:
    """Return the rules of a tokenizer of `tokenizers`; None where lines cannot be told by them.

    Args:
        tokenizer: the reference.
        count: counts texts with it.
    """
    model = tokenizer.model
    odd = ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix", "dropout")
    if type(model).__name__ != "BPE" or any(getattr(model, name) for name in odd):
        return None
    if tokenizer.normalizer is not None or tokenizer.pre_tokenizer is None:
        return None
    for token in tokenizer.get_added_tokens_decoder().values():
        if token.lstrip or token.rstrip or token.single_word or set(token.content) & set("\r\n"):
            return None
    try:
        rules = rules_of(json.loads(tokenizer.pre_tokenizer.__getstate__()))
    except NotCompiled:
        return None
    runs = ["".join(run) for run in itertools.product(_SYMBOLS, repeat=_LONGEST_RUN)]
    return LineRules(
        takes_blanks=bool(rules.flags & PLAIN),
        takes_slashes=bool(rules.flags & SLASHES),
        runs=count(runs).astype(np.int32),
        runs_with_newline=count([run + "\n" for run in runs]).astype(np.int32),
    )


def nothing_told(number: int) -> LineTokens:
    """Tell of so many lines that nothing is known."""
    nothing, never = np.zeros(number, np.int64), np.zeros(number, np.bool_)
    return LineTokens(nothing, nothing, never, never)


class Lines:
    """The lines of texts, by the bytes around their ends.

    Args:
        column: texts, large_string without nulls.
        rules: of the tokenizer.
    """

    def __init__(self, column: Any, rules: LineRules) -> None:
        """Find the lines."""
        offsets, data = offsets_of(column), bytes_of(column)
        low, high = int(offsets[0]), int(offsets[-1])
        newlines = find_byte(data[low:high], _NEWLINE) + low
        # A long text has many lines: their places take half the room where they are small.
        self._dtype: Any = np.int32 if high < 1 << 31 else np.int64
        starts: Any = np.concatenate((offsets[:-1], newlines + 1)).astype(self._dtype)
        ends: Any = np.concatenate((newlines, offsets[1:])).astype(self._dtype)
        starts.sort(kind="stable")
        ends.sort(kind="stable")
        self._data, self._offsets, self._starts, self._ends = data, offsets, starts, ends
        filled = ends > starts
        numbers = np.arange(len(column))
        self._firsts = np.searchsorted(newlines, offsets[:-1]) + numbers
        is_first, is_last = np.zeros((2, len(starts)), np.bool_)
        is_first[self._firsts] = True
        is_last[np.searchsorted(newlines, offsets[1:]) + numbers] = True
        # Of an empty line any byte will do, as long as there is one.
        head = _kinds_from(data, np.minimum(starts, high - 1))
        tail = _kinds_upto(data, np.maximum(ends - 1, 0))
        begins = is_first | (head >= _MARK)
        if rules.takes_slashes:
            begins &= (head != _SLASH) | is_first
        if not rules.takes_blanks:
            begins |= (head == _BLANK) & (tail >= _MARK)
        self._begins = filled & begins
        self._length, self._place = np.zeros((2, len(starts)), np.int32)
        runs = np.flatnonzero(filled & (tail == _MARK) & ~is_last)
        self._length[runs], self._place[runs] = self._runs_at(runs)
        self._ends_well = filled & (is_last | (tail == _WORD))
        self._ends_well[runs] = self._length[runs] > 0
        # A return is a newline to the rules, and ends no line here.
        returns = find_byte(data[low:high], _RETURN) + low
        holders = np.searchsorted(starts, returns, side="right") - 1
        self._begins[holders] = self._ends_well[holders] = False
        # Empty lines with one of the same text behind and before them.
        self._behind = np.flatnonzero(~filled[:-1] & ~is_last[:-1])
        self._before = np.flatnonzero(~filled[1:] & ~is_first[1:]) + 1
        self._rules = rules

    @property
    def are_mostly_told(self) -> bool:
        """Whether most of the text stands in lines that need not be counted by themselves."""
        sizes = self._ends - self._starts
        told = int(sizes[self._begins & self._ends_well].sum())
        return told >= _LEAST_SHARE * int(sizes.sum())

    def tokens(self, upto: Counts, texts: Counts, trusted: Mask) -> LineTokens:
        """Give the tokens of the lines.

        Args:
            upto: bytes before each token, over all texts, and of all of them.
            texts: number of the first token of each text, and of what would follow the last.
            trusted: the texts whose tokens are right.
        """
        offsets = self._offsets - self._offsets[0]
        if not np.array_equal(upto[texts], offsets) or not bool((upto[1:] > upto[:-1]).all()):
            return nothing_told(len(self._starts))
        places = (self._starts - self._offsets[0]).astype(upto.dtype)
        first: Any = np.searchsorted(upto, places).astype(self._dtype)
        begins = self._begins & (upto[first] == places)
        # A line ends with the newline before the next one, a few tokens back.
        places = (self._ends - self._length - self._offsets[0]).astype(upto.dtype)
        last = np.append(first[1:], first.dtype.type(len(upto) - 1))
        beyond = np.arange(len(last), dtype=self._dtype)
        for _ in range(_LONGEST_RUN + 2):
            beyond = beyond[upto[last[beyond]] > places[beyond]]
            last[beyond] -= 1
        ends = upto[last] == places
        # A run that is the whole line begins a word only if the line does.
        ends &= self._ends_well & (begins | (self._length < self._ends - self._starts))
        if not trusted.all():
            known = trusted[np.searchsorted(self._firsts, np.arange(len(first)), side="right") - 1]
            begins, ends = begins & known, ends & known
        runs, broken = self._rules.runs[self._place], self._rules.runs_with_newline[self._place]
        # Lines from an empty one on begin with its newline, lines up to an empty one end with that
        # of the line before it.
        at, beside = self._behind, self._behind + 1
        first[at], begins[at] = first[beside] - self._rules.runs_with_newline[0], begins[beside]
        at, beside = self._before, self._before - 1
        final: Any = last + runs
        final[at], ends[at] = last[beside] + broken[beside], ends[beside]
        return LineTokens(first, final, begins, ends)

    def _runs_at(self, lines: Counts) -> tuple[Counts, Counts]:
        """Measure the marks at the end of lines that end with one; 0 where they begin no word.

        Returns:
            How many they are, and the place of the run in the table.
        """
        starts, ends = self._starts[lines], self._ends[lines]
        length, place, symbols = np.zeros((3, len(lines)), np.int64)
        goes_on = np.ones(len(lines), np.bool_)
        at = ends - 1
        before = _kinds_upto(self._data, at)
        for size in range(1, _LONGEST_RUN + 1):
            kind = before
            symbols += _PLACES[self._data[at]] * len(_SYMBOLS) ** (size - 1)
            at = np.maximum(ends - size - 1, starts)
            before = _kinds_upto(self._data, at)
            is_blank, is_whole = kind == _BLANK, ends - starts == size
            fits = np.where(is_blank, before >= _MARK, (kind == _MARK) & (before == _WORD))
            chosen = goes_on & (fits | (is_whole & (kind != _OTHER) & (kind != _WORD)))
            length[chosen], place[chosen] = size, symbols[chosen]
            goes_on &= ~chosen & ~is_whole & (kind == _MARK)
        return length, place


def _kinds_from(data: Bytes, places: Counts) -> Bytes:
    """Give the kinds of the characters that begin at these places."""
    kinds = _HEADS[data[places]]
    wide = np.flatnonzero(data[places] >= _WIDE)
    kinds[wide] = np.where(_classes(data, places[wide]) & SPACE, _OTHER, _WORD)
    return kinds


def _kinds_upto(data: Bytes, places: Counts) -> Bytes:
    """Give the kinds of the characters whose last bytes stand at these places."""
    kinds = _KINDS[data[places]]
    wide = np.flatnonzero(data[places] >= _WIDE)
    leads = places[wide]
    for _ in range(3):
        leads = leads - ((data[leads] & 0xC0) == 0x80)
    kinds[wide] = np.where(_classes(data, leads) & (LETTER | NUMBER), _WORD, _OTHER)
    return kinds


def _classes(data: Bytes, leads: Counts) -> Bytes:
    """Give what characters beyond ASCII are to the reference (`text.gpu.classes`)."""
    if not len(leads):
        return np.zeros(0, np.uint8)
    table, codes = class_table(), codes_at(data, leads)
    found: Bytes = table.kinds[table.blocks[codes >> 7].astype(np.int64) << 7 | codes & 127]
    return found


def _table(blanks: bytes, kinds: tuple[int, int, int, int]) -> npt.NDArray[np.uint8]:
    """Give the kinds of bytes: of blanks, of marks, of the slash, of letters and digits."""
    table = np.full(256, _OTHER, np.uint8)
    words = [code for code in range(128) if chr(code).isalnum()]
    for group, kind in zip((blanks, _MARKS.encode(), b"/", words), kinds, strict=True):
        table[list(group)] = kind
    return table


_KINDS = _table(b" ", (_BLANK, _MARK, _MARK, _WORD))
_HEADS = _table(b" \t", (_BLANK, _MARK, _SLASH, _WORD))
_PLACES = np.zeros(256, np.int64)
_PLACES[[ord(symbol) for symbol in _SYMBOLS[1:]]] = np.arange(1, len(_SYMBOLS))
