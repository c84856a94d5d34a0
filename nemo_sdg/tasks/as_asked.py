"""Read answers that have exactly the form that was asked for, without the parsers for every form.

Each function gives what the general parser of `pairs` or `parse` gives, or None where it cannot be
sure of that; most answers of a good model take this way, at ten to fifty times the speed.
"""

from __future__ import annotations

import functools
import re

from nemo_sdg.tasks.marks import ZERO_WIDTH

_QUESTION, _ANSWER = "- Question: ", " Answer: "
_WRAPS = frozenset("*_" + ZERO_WIDTH)
# What begins a check box, emphasis or a ruler.
_ODD_BEGINNINGS = frozenset("*_-=`~[" + ZERO_WIDTH)
_WORD = re.compile(r"\w")
# After these the general parser takes " Answer:" for a tag, wherever it stands in a line.
_SENTENCE_ENDS = frozenset('.?!。？！)）…;"”»')


def plain_pairs(
    text: str,
    question_tag: re.Pattern[str],
    answer_tag: re.Pattern[str],
    no_answer: re.Pattern[str],
) -> list[tuple[str, str]] | None:
    """Read lines "- Question: ... Answer: ...", after at most one other line.

    Args:
        text: the bare answer.
        question_tag: finds a question in the general parser.
        answer_tag: finds its answer.
        no_answer: a whole line that belongs to no answer.

    Returns:
        Questions with their answers, repetitions included.
    """
    if "```" in text:
        return None
    head, _, rest = text.partition("\n")
    if head.startswith(_QUESTION):
        rest = text
    elif _holds_tag(head, question_tag):
        return None
    pairs: list[tuple[str, str]] = []
    for line in rest.split("\n"):
        if not line:
            continue
        question, _, answer = line[len(_QUESTION) :].partition(_ANSWER)
        answer = answer.strip()
        if (
            not line.startswith(_QUESTION)
            or not question[:1].isalpha()
            or question[-1] not in _SENTENCE_ENDS
            or not answer
            or answer[0] in _WRAPS
            or answer[-1] in ZERO_WIDTH
            or no_answer.fullmatch(answer)
            # No tag is without a colon, inside a line; two are those of this pair.
            or (
                line.count(":") + line.count("：") > 2
                and (
                    question_tag.search(line, len(_QUESTION)) is not None
                    or answer_tag.search(" " + question) is not None
                )
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
