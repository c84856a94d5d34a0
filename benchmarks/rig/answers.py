"""Answers of the five tasks, made out of segments as models write them, odd forms included."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from nemo_sdg.tasks import nemotron_cc
from nemo_sdg.tasks.marks import bare
from nemo_sdg.tasks.pairs import general_pair_texts, pair_texts
from nemo_sdg.tasks.parse import general_items, list_items
from nemo_sdg.tasks.task import Task

_NO_WORD = re.compile(r"^\W+")  # bullets of the source: a model writes sentences
_END = re.compile(r"(?<=[.!?])\s+")


def answers_of(task: str, sources: Sequence[str]) -> list[str]:
    """Return an answer for each segment; every fifth to tenth in another form than asked for."""
    make = {
        "wikipedia_rephrase": _rephrased,
        "diverse_qa": _pairs,
        "distill": _distilled,
        "extract_knowledge": _passages,
        "knowledge_list": _facts,
    }[task]
    return [make(number, text) for number, text in enumerate(sources)]


def general_parser(task: Task) -> Callable[[str], Any]:
    """Return the parser without its shortcuts for answers in the form asked for."""
    general = {
        list_items: general_items,
        pair_texts: lambda answer: general_pair_texts(bare(answer)),
    }
    return general.get(task.parse, task.parse)


def _rephrased(number: int, text: str) -> str:
    prefix = nemotron_cc.WIKIPEDIA_PREFIX
    if number % 5 == 0:
        return f"**{prefix}**\n\n{text}"
    return f'{prefix}\n"{text}"' if number % 7 == 0 else f"{prefix}\n{text}"


def _distilled(number: int, text: str) -> str:
    prefix = nemotron_cc.DISTILL_PREFIX
    short = text[: len(text) * 6 // 10]
    return f"{prefix}\n\n**Summary.** {short}" if number % 9 == 0 else f"{prefix}\n{short}"


def _passages(number: int, text: str) -> str:
    if number % 5:
        return text
    parts = text.split("\n\n")
    return "\n\n".join(f"**Passage {i + 1}:**\n{part}" for i, part in enumerate(parts))


def _sentences(text: str) -> list[str]:
    flat = (_NO_WORD.sub("", " ".join(sentence.split())) for sentence in _END.split(text))
    return [sentence for sentence in flat if len(sentence) > 20]


def _facts(number: int, text: str) -> str:
    facts = _sentences(text)
    if number % 10 == 0:
        return "Here are the facts:\n\n" + "\n".join(
            f"{i + 1}. **Fact:** {fact}" for i, fact in enumerate(facts)
        )
    return "\n".join(f"- {fact}" for fact in facts)


def _pairs(number: int, text: str) -> str:
    lines = [nemotron_cc.PAIRS_PREFIX]
    for i, fact in enumerate(_sentences(text)[:8]):
        topic = " ".join(re.findall(r"\w+", fact)[:6])
        if number % 10 == 0:
            lines += [
                f"{i + 1}. **Question:** What is said of {topic}?",
                f"   **Answer:** {fact}",
                "",
            ]
        else:
            lines.append(f"- Question: What is said of {topic}? Answer: {fact}")
    return "\n".join(lines)
