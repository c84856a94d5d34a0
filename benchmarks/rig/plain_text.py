"""The text chains as one would write them down: one row after the other, `re` and `encode`.

What the whole-column chains are held against, for their rows and for their speed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from nemo_sdg.errors import ParseError
from nemo_sdg.llm.request import derive_seed
from nemo_sdg.tasks.steps import JoinItems, JoinSegments, PrependSource, SampleItems
from nemo_sdg.tasks.task import Task
from nemo_sdg.text import clean
from nemo_sdg.text.filters import TokenCount


class Counter:
    """Counts one text at a time; knows how much processor time that took."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.cpu_s = 0.0

    def __call__(self, text: str) -> int:
        begin = time.process_time()
        count = len(self._tokenizer.encode(text, add_special_tokens=False).ids)
        self.cpu_s += time.process_time() - begin
        return count


def split_pack(texts: Sequence[str], tokenizer: Any, budget: int) -> list[str]:
    """Split, count, cut, pack, and count again."""

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    separator = count("\n")
    segments: list[str] = []
    for text in texts:
        pieces: list[tuple[str, int]] = []
        for line in text.split("\n"):
            encoding = tokenizer.encode(line, add_special_tokens=False)
            if len(encoding.ids) <= budget:
                pieces.append((line, len(encoding.ids)))
                continue
            starts = [start for start, _ in encoding.offsets][::budget]
            for begin, end in zip(starts, [*starts[1:], len(line)], strict=True):
                pieces.append((line[begin:end], count(line[begin:end])))
        group: list[str] = []
        total = 0
        for piece, length in pieces:
            if group and total + separator + length > budget:
                segments.append("\n".join(group))
                group, total = [], 0
            total += length + (separator if group else 0)
            group.append(piece)
        segments.append("\n".join(group))
    return [segment for segment in segments if count(segment) >= 0]


# --- cleaning -------------------------------------------------------------------------------------


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _until_stable(text: str, rules: Sequence[tuple[str, str]], *, strip: bool = False) -> str:
    while True:
        before = text
        for pattern, replacement in rules:
            text = _compiled(pattern).sub(replacement, text)
        if strip:
            text = text.strip(clean._BLANKS)
        if text == before:
            return text


def _cleaner(step: Any) -> Callable[[str], str]:
    if step is clean.strip_markdown:
        return lambda text: _until_stable(text, clean._MARKDOWN)
    if step is clean.strip_quotes:
        return lambda text: _until_stable(text.strip(clean._BLANKS), clean._QUOTES, strip=True)
    if isinstance(step, clean.LabelLines):
        rules = step.rules()
        return lambda text: _until_stable(text, rules)
    raise TypeError(f"no plain way for {step!r}")


def clean_chain(
    task: Task,
    parse: Callable[[str], Any],
    answers: Sequence[str],
    sources: Sequence[str],
    documents: Sequence[str],
    names: Sequence[str],
    tokenizer: Any,
) -> tuple[list[str], float]:
    """Parse and clean answers; give the texts that are kept, and the seconds spent on counting.

    Args:
        task: whose `clean` steps are applied.
        parse: reads an answer.
        answers: one a segment.
        sources: the segments.
        documents: id of the document of each segment, in runs.
        names: of the segments, for the seed of a sample.
        tokenizer: of `tokenizers`.
    """
    count = Counter(tokenizer)
    rows: list[tuple[int, Any]] = []
    for number, answer in enumerate(answers):
        try:
            value = parse(answer)
            if task.check is not None:
                task.check(value, {"document": sources[number]})
        except ParseError:
            continue
        rows.append((number, value))
    for step in task.clean:
        if isinstance(step, TokenCount):
            rows = [(n, value) for n, value in rows if count(value) >= step.min_tokens]
        elif isinstance(step, JoinSegments):
            joined: dict[str, tuple[int, list[str]]] = {}
            for n, value in rows:
                joined.setdefault(documents[n], (n, []))[1].append(value)
            rows = [(n, step.separator.join(parts)) for n, parts in joined.values()]
        elif isinstance(step, SampleItems):
            rows = [(n, _drawn(step, value, count(sources[n]), names[n])) for n, value in rows]
        elif isinstance(step, JoinItems):
            rows = [(n, step.separator.join(value)) for n, value in rows]
        elif isinstance(step, PrependSource):
            rows = [(n, sources[n] + step.separator + value) for n, value in rows]
        else:
            one = _cleaner(step)
            rows = [
                (n, [one(item) for item in value] if isinstance(value, list) else one(value))
                for n, value in rows
            ]
    return [value for _, value in rows], count.cpu_s


_STEP, _MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1


def _mixed(number: int) -> int:
    z = (number + _STEP) & _MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


def _drawn(step: SampleItems, items: list[str], tokens: int, name: str) -> list[str]:
    """Draw items as the stage does, one row at a time."""
    seed = derive_seed(0, name, "sample")
    most = step.max_items
    if step.tokens_per_item is not None:
        most = max(1, most * tokens // step.tokens_per_item)
    keep = min(len(items), 1 + int((_mixed(seed) >> 11) / 2.0**53 * most))
    order = sorted(
        range(len(items)), key=lambda place: _mixed((seed + (place + 1) * _STEP) & _MASK)
    )
    return [items[place] for place in order[:keep]]
