"""Read answers that have exactly the form that was asked for, without the parsers for every form.

Each function gives what the general parser of `pairs` or `parse` gives, or None where it cannot be
sure of that; most answers of a good model take this way, at ten to fifty times the speed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from nemo_sdg.tasks.marks import ZERO_WIDTH

_QUESTION, _ANSWER = "- Question: ", " Answer: "
_WRAPS = frozenset("*_" + ZERO_WIDTH)
# What begins a check box, emphasis or a ruler.
_ODD_BEGINNINGS = frozenset("*_-=`~[" + ZERO_WIDTH)
_WORD = re.compile(r"\w")
_LONGEST = 40
# After these the general parser takes " Answer:" for a tag, wherever it stands in a line.
_SENTENCE_ENDS = frozenset('.?!。？！)）…;"”»')


class Tag:
    """A tag as the general parser finds it, which costs it a look at every character.

    Args:
        pattern: inside a line it matches one of the words, perhaps a number, perhaps stars and
            bars, and a colon.
        words: in lower case, far shorter than `_LONGEST`.
    """

    def __init__(self, pattern: re.Pattern[str], words: Iterable[str]) -> None:
        self.pattern = pattern
        # Where case is ignored, a dotless i is an i.
        plain = (word.replace("\u0131", "i") for word in words)
        self._words = tuple(word for word in plain if word.isascii())
        numbers = ("", "n", "no", " n", " no")
        self._numbered = tuple(word + number for word in self._words for number in numbers)

    def stands_in(self, line: str, start: int = 0) -> bool:
        """Tell whether the tag stands in a line, not at its beginning."""
        return self._may_stand_in(line[start:]) and self.pattern.search(line, start) is not None

    def _may_stand_in(self, text: str) -> bool:
        *before_colons, _ = text.replace("：", ":").split(":")
        for part in before_colons:
            end, words = part.rstrip("*_"), self._words
            if end[-1:].isdigit():
                end = " ".join(end.rstrip("0123456789").rstrip(" \t#.°").split())
                words = self._numbered
            end = end[-_LONGEST:].lower()
            if end.endswith(words) or not end.isascii():
                return True
        return False


def plain_pairs(
    text: str, question_tag: Tag, answer_tag: Tag, no_answer: re.Pattern[str]
) -> list[tuple[str, str]] | None:
    """Read lines "- Question: ... Answer: ...", after at most one other line.

    Args:
        text: the bare answer.
        question_tag: before a question.
        answer_tag: before its answer.
        no_answer: a whole line that belongs to no answer.

    Returns:
        Questions with their answers, repetitions included.
    """
    if "```" in text:
        return None
    head, _, rest = text.partition("\n")
    if head.startswith(_QUESTION):
        rest = text
    elif _holds_tag(head, question_tag.pattern):
        return None
    pairs: list[tuple[str, str]] = []
    for line in rest.split("\n"):
        if not line.startswith(_QUESTION):
            if line:
                return None
            continue
        question, _, answer = line[len(_QUESTION) :].partition(_ANSWER)
        answer = answer.strip()
        if (
            not question[:1].isalpha()
            or question[1:2] in (".", ")")  # as of an item "A." of a list
            or question[-1] not in _SENTENCE_ENDS
            or not answer
            or answer[0] in _WRAPS
            or answer[-1] in ZERO_WIDTH
            or no_answer.fullmatch(answer)
            # No tag is without a colon, inside a line; two are those of this pair.
            or (
                line.count(":") + line.count("：") > 2
                and (question_tag.stands_in(line, len(_QUESTION)) or answer_tag.stands_in(question))
            )
        ):
            return None
        pairs.append((question, answer))
    return pairs or None


@functools.lru_cache(256)
def _holds_tag(line: str, tag: re.Pattern[str]) -> bool:
    return line.lstrip(" \t").startswith(("[", "{")) or tag.search(line) is not None


def plain_items(text: str) -> list[str] | None:
    """Read lines that all begin with "- ", or with 1. 2. 3. and so on.

    Args:
        text: the bare answer, of which nothing but blanks was taken.

    Returns:
        The items, repetitions included.
    """
    if "```" in text:
        return None
    items: list[str] = []
    numbered = not text.startswith("- ")
    for line in text.split("\n"):
        if not line:
            continue
        mark = f"{len(items) + 1}. " if numbered else "- "
        item = line[len(mark) :].strip()
        if (
            not line.startswith(mark)
            or not item
            or item[0] in _ODD_BEGINNINGS
            or item[-1] in ZERO_WIDTH
            or not (item[0].isalnum() or _WORD.search(item))
            or len(mark) > 5
        ):
            return None
        items.append(item)
    return items
