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
_BOLD_PAIR = re.compile(
    r"\n*(?:\d{1,3}\.[ ]|-[ ])?\*\*Question:\*\*[ ](.+)\n[ ]{0,6}\*\*Answer:\*\*[ ](.+)(?:\n+|\Z)"
)
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
        """Tell whether a text may hold the tag, not at its beginning; False is never wrong."""
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
    """Read lines "- Question: ... Answer: ...", or "1. **Question:** ..." above "**Answer:** ...".

    At most one other line stands before them.

    Args:
        text: the bare answer.
        question_tag: before a question.
        answer_tag: before its answer.
        no_answer: a whole line that belongs to no answer. Of those that begin with a letter it
            matches none but with a p or a q.

    Returns:
        Questions with their answers, repetitions included.
    """
    if "```" in text:
        return None
    head, _, rest = text.partition("\n")
    if head.startswith(_QUESTION) or _BOLD_PAIR.match(text):
        rest = text
    elif _holds_tag(head, question_tag.pattern):
        return None
    is_bold = "**Question:**" in rest
    pairs = _bold_pairs(rest) if is_bold else _pairs_in_lines(rest)
    for question, answer in pairs or ():
        if (
            not question[:1].isalpha()
            or question[1:2] in (".", ")")  # as of an item "A." of a list
            or (question[-1] in ZERO_WIDTH if is_bold else question[-1] not in _SENTENCE_ENDS)
            or not answer
            or answer[0] in _WRAPS
            or answer[-1] in ZERO_WIDTH
            or ((answer[0] in "pPqQ" or not answer[0].isalpha()) and no_answer.fullmatch(answer))
        ):
            return None
    # No tag is without a colon, inside a line; two are those of each pair.
    if pairs and rest.count(":") + rest.count("：") > 2 * len(pairs):
        for question, answer in pairs:
            # Behind a bold tag another one may follow at once.
            said = [question, answer] if is_bold else [f"{question}{_ANSWER}{answer}"]
            if any(map(question_tag.stands_in, said)) or answer_tag.stands_in(question):
                return None
    return pairs or None


def _pairs_in_lines(text: str) -> list[tuple[str, str]] | None:
    pairs = []
    for line in text.split("\n"):
        if line.startswith(_QUESTION):
            question, _, answer = line[len(_QUESTION) :].partition(_ANSWER)
            pairs.append((question, answer.strip()))
        elif line:
            return None
    return pairs


def _bold_pairs(text: str) -> list[tuple[str, str]] | None:
    pairs, end = [], 0
    while found := _BOLD_PAIR.match(text, end):
        pairs.append((found[1].strip(), found[2].strip()))
        end = found.end()
    return pairs if end == len(text) else None


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
