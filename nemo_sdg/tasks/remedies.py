"""What a task may do about an answer of no use, beyond asking with another seed. Off by default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nemo_sdg.errors import AnswerError, ConfigurationError
from nemo_sdg.llm.request import Request
from nemo_sdg.tasks.prompt import Template
from nemo_sdg.text.cut import cut_once

REPAIR = (
    "This answer cannot be read: {problem}. Give the whole answer again, exactly in the form that "
    "was asked for, and nothing besides."
)
"""What `repair: true` says to a model whose answer broke its form."""

_JOINED = {"string": str, "list[string]": list}


def check_repair(repair: str, *, where: str) -> None:
    """Raise `PromptError` where a repair prompt asks for what it cannot be given."""
    Template(repair).check(("problem",), where=where)


def repaired(request: Request, answer: str, failure: AnswerError, repair: str) -> Request:
    """Return the request that shows the model its answer and what is wrong with it."""
    problem = failure.code.replace("_", " ")
    if failure.detail:
        problem += f" ({failure.detail})"
    turns = (
        {"role": "assistant", "content": answer},
        {"role": "user", "content": Template(repair).render({"problem": problem})},
    )
    return replace(request, messages=(*request.messages, *turns))


def check_halvings(columns: Mapping[str, str], variables: Sequence[str], n: int) -> str | None:
    """Return why a task's text cannot be halved, None where it can."""
    if "document" not in variables:
        return "its prompt has no {document}"
    if len(columns) != 1 or next(iter(columns.values())) not in _JOINED:
        return "answers of two halves can be joined only where they are one text or one list"
    return "answers of two halves cannot be joined sample by sample (n > 1)" if n > 1 else None


def halves(text: str) -> list[str]:
    """Cut a text near its middle: after a line, else a sentence, else a word, else anywhere.

    Nothing is lost or changed. A text of less than two characters cannot be cut: no pieces.
    """
    if len(text) < 2:
        return []
    middle, room = len(text) // 2, len(text) // 4
    after = [
        text.rfind("\n", middle - room, middle) + 1,
        text.find("\n", middle, middle + room) + 1,
    ]
    found = [place for place in after if 0 < place < len(text)]
    if found:
        place = min(found, key=lambda one: abs(one - middle))
        return [text[:place], text[place:]]
    return cut_once(text, np.arange(len(text)), max(1, int(0.6 * len(text))))


def joined(values: Sequence[Any]) -> Any:
    """Put the values of the pieces together: texts a paragraph each, lists one after the other."""
    if all(isinstance(value, str) for value in values):
        return "\n\n".join(values)
    if all(isinstance(value, list | tuple) for value in values):
        return [item for value in values for item in value]
    raise ConfigurationError("the parser of a task that halves its text gives texts or lists")
