"""Filters: measure a column, keep the rows whose score is good.

    keep = min_tokens(50)
    scores = keep.measure(frame["rephrased"], tokenizer)      # Int64, null where the text is
    frame = frame[keep.keep(scores)]

A filter is a frozen value with a name (the reason in `dropped/`), a measure and a keep rule; the
two are apart so that scores can be stored and thresholds tried without measuring again. Anything
with these four attributes is one (`ColumnFilter`):

    @dataclass(frozen=True, kw_only=True)
    class Questions:
        min_marks: int = 1
        name: str = "questions"
        needs_tokenizer: ClassVar[bool] = False

        def measure(self, texts, tokenizer=None):
            return texts.str.count("[?]").astype("Int64")

        def keep(self, scores):
            return in_range(scores, minimum=self.min_marks)

Columns are pandas or cuDF. A null text has a null score, and a null score is never kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from nemo_sdg.data.backend import array_module, from_values, replace_regex, split_text, to_values
from nemo_sdg.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from nemo_sdg.text.tokens import Tokenizer

_BLANKS = (
    "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006"
    "\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)


@runtime_checkable
class ColumnFilter(Protocol):
    """What a stage needs of a filter."""

    @property
    def name(self) -> str:
        """The reason that a dropped row carries."""
        ...

    @property
    def needs_tokenizer(self) -> bool:
        """Whether `measure` counts tokens."""
        ...

    def measure(self, texts: Any, tokenizer: Tokenizer | None = None) -> Any:
        """Return one score per row: a numeric column with the index of `texts`."""
        ...

    def keep(self, scores: Any) -> Any:
        """Return a bool column without nulls: True where the row stays."""
        ...


def in_range(scores: Any, *, minimum: float | None = None, maximum: float | None = None) -> Any:
    """Tell which scores lie between the limits, both included; null is not (bool column)."""
    good = scores.notna()
    if minimum is not None:
        good = good & (scores >= minimum).fillna(False).astype("bool")
    if maximum is not None:
        good = good & (scores <= maximum).fillna(False).astype("bool")
    return good


def _check_limits(name: str, minimum: float | None, maximum: float | None) -> None:
    if minimum is not None and maximum is not None and minimum > maximum:
        raise ConfigurationError(f"filter {name}: the minimum {minimum} is above {maximum}")


@dataclass(frozen=True, kw_only=True)
class TokenCount:
    """Keep texts with a number of tokens in a range, both ends included; no special tokens count.

    The Nemotron-CC chains keep at least 50 (Wikipedia, distill, extract, list) or 100 (Q&A), and at
    most the output limit less 2 (fact sheet 1).
    """

    min_tokens: int = 0
    max_tokens: int | None = None
    name: str = "token_count"
    needs_tokenizer: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_limits(self.name, self.min_tokens, self.max_tokens)

    def measure(self, texts: Any, tokenizer: Tokenizer | None = None) -> Any:
        """Count tokens (Int64).

        Raises:
            ConfigurationError: there is no tokenizer.
        """
        if tokenizer is None:
            raise ConfigurationError(f"filter {self.name} counts tokens: give it a tokenizer")
        return tokenizer.count_column(texts).astype("Int64").where(texts.notna())

    def keep(self, scores: Any) -> Any:
        """Keep counts between the limits."""
        return in_range(scores, minimum=self.min_tokens, maximum=self.max_tokens)


@dataclass(frozen=True, kw_only=True)
class Length:
    """Keep texts with a number of characters (code points) in a range, both ends included."""

    min_characters: int = 0
    max_characters: int | None = None
    name: str = "length"
    needs_tokenizer: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_limits(self.name, self.min_characters, self.max_characters)

    def measure(self, texts: Any, tokenizer: Tokenizer | None = None) -> Any:
        """Count characters (Int64)."""
        return texts.str.len().astype("Int64")

    def keep(self, scores: Any) -> Any:
        """Keep lengths between the limits."""
        return in_range(scores, minimum=self.min_characters, maximum=self.max_characters)


@dataclass(frozen=True, kw_only=True)
class Substring:
    """Keep texts that begin with, end with, or hold a literal string.

    Nothing is trimmed; an empty string is in every text. `ignore_case` compares lower case.

    Raises:
        ConfigurationError: the position is not prefix, suffix or any.
    """

    substring: str
    position: Literal["prefix", "suffix", "any"] = "any"
    ignore_case: bool = False
    name: str = "substring"
    needs_tokenizer: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.position not in {"prefix", "suffix", "any"}:
            raise ConfigurationError(
                f"filter {self.name}: position is prefix, suffix or any, not {self.position!r}"
            )

    def measure(self, texts: Any, tokenizer: Tokenizer | None = None) -> Any:
        """Score 1 where the string is found, else 0 (Int64)."""
        wanted, given = self.substring, texts
        if self.ignore_case:
            # As the column does it: Python has lower cases of its own for İ and a last Σ.
            alone = from_values([wanted], like=texts, dtype="string")
            alone = alone.astype(object) if texts.dtype == object else alone
            [wanted], given = to_values(alone.str.lower()), texts.str.lower()
        if not wanted:
            found = texts.notna()
        elif self.position == "prefix":
            found = given.str.startswith(wanted)
        elif self.position == "suffix":
            found = given.str.endswith(wanted)
        else:
            found = given.str.contains(wanted, regex=False)
        return found.fillna(False).astype("bool").astype("Int64").where(texts.notna())

    def keep(self, scores: Any) -> Any:
        """Keep the texts where the string was found."""
        return in_range(scores, minimum=1)


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """Keep texts of which at most a share repeats what they said before.

    The score is the larger of two shares of the text's characters (0 to 1; blanks do not count):
    lines, and sentences that end in a CJK full stop, that stood before; words inside a run of five
    words that stood before. The first time is never counted. After Gopher's filters
    (arXiv:2112.11446, table A1: 0.20 of the characters in duplicate lines). Linear in the
    text.
    """

    max_share: float = 0.2
    name: str = "repetition"
    needs_tokenizer: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.max_share <= 1:
            raise ConfigurationError(
                f"filter {self.name}: max_share is between 0 and 1, not {self.max_share}"
            )

    def measure(self, texts: Any, tokenizer: Tokenizer | None = None) -> Any:
        """Measure repetition (float64; null where the text is, 0 for an empty text)."""
        if len(texts) == 0:
            return from_values([], like=texts, dtype="float64")
        given = texts.fillna("")
        lines = replace_regex(given, "([。！？])", r"\1" + "\n")
        words = replace_regex(given, r"\s+", " ")
        scores = _share(lines, "\n", run=1)
        in_runs = _share(words, " ", run=5)
        scores = scores.where(scores >= in_runs, in_runs)
        return scores.where(texts.notna())

    def keep(self, scores: Any) -> Any:
        """Keep shares up to the limit."""
        return in_range(scores, maximum=self.max_share)


def _share(texts: Any, separator: str, *, run: int) -> Any:
    """Give, per text, the share of characters in runs of pieces that came before (float64)."""
    xp = array_module(texts)
    pieces, counts = split_text(texts, separator)
    pieces = pieces.str.strip(_BLANKS)  # without a set cuDF strips control characters, too
    parent = xp.repeat(xp.arange(len(counts)), counts.tolist())
    lengths = pieces.str.len().values.astype("int64")
    filled = lengths > 0
    pieces, parent, lengths = pieces[filled], parent[filled], lengths[filled]
    # A polynomial hash of the run that begins at each piece, modulo 2**64.
    codes = xp.asarray(pieces.factorize()[0]).astype("uint64")
    size = len(codes)
    covered = xp.zeros(size + 1, dtype="int64")
    if size >= run:
        last = size - run + 1
        hashes = xp.zeros(last, dtype="uint64")
        for offset in range(run):
            hashes = hashes * xp.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + last]
        inside = parent[:last] == parent[run - 1 :]
        frame = pieces.iloc[:last].to_frame("piece")
        frame = frame.assign(piece=hashes.astype("int64"), parent=parent[:last])
        again = frame.duplicated().values & inside
        covered[xp.flatnonzero(again)] += 1
        covered[xp.flatnonzero(again) + run] -= 1
    repeated = xp.where(xp.cumsum(covered)[:size] > 0, lengths, 0)
    total = xp.bincount(parent, weights=lengths, minlength=len(counts))
    part = xp.bincount(parent, weights=repeated, minlength=len(counts))
    share = part / xp.maximum(total, 1)
    return from_values(share.tolist(), like=texts, dtype="float64")


@dataclass(frozen=True, kw_only=True)
class ScoreRange:
    """Keep rows whose number in a column lies in a range, such as a quality bucket.

    `minimum` and `maximum` are included; with `above` the number must be larger.
    """

    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    name: str = "score_range"
    needs_tokenizer: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_limits(self.name, self.minimum, self.maximum)
        _check_limits(self.name, self.above, self.maximum)

    def measure(self, texts: Any, tokenizer: Tokenizer | None = None) -> Any:
        """Return the column of numbers as it is.

        Raises:
            DataError: it does not hold numbers.
        """
        if texts.dtype.kind not in "iufb" and len(texts) > 0 and bool(texts.notna().any()):
            raise DataError(
                f"filter {self.name}: column {texts.name!r} holds {texts.dtype}, not numbers; "
                'name a column of numbers, or write numbers into this one (3, not "3")'
            )
        return texts

    def keep(self, scores: Any) -> Any:
        """Keep the numbers in the range."""
        good = in_range(scores, minimum=self.minimum, maximum=self.maximum)
        if self.above is not None:
            good = good & (scores > self.above).fillna(False).astype("bool")
        return good


def min_tokens(count: int) -> TokenCount:
    """Keep texts of `count` tokens or more."""
    return TokenCount(min_tokens=count, name="min_tokens")


def max_tokens(count: int) -> TokenCount:
    """Keep texts of at most `count` tokens."""
    return TokenCount(max_tokens=count, name="max_tokens")


def at_most(value: float, *, name: str = "at_most") -> ScoreRange:
    """Keep rows whose number is `value` or less."""
    return ScoreRange(maximum=value, name=name)


def at_least(value: float, *, name: str = "at_least") -> ScoreRange:
    """Keep rows whose number is `value` or more."""
    return ScoreRange(minimum=value, name=name)


def above(value: float, *, name: str = "above") -> ScoreRange:
    """Keep rows whose number is larger than `value`."""
    return ScoreRange(above=value, name=name)
