"""The rules of a scripted endpoint: which answer belongs to which request."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

from nemo_sdg.errors import ConfigurationError
from nemo_sdg.llm.dialect import Call
from nemo_sdg.llm.wire import Answer

Condition = str | re.Pattern[str] | Callable[[dict[str, Any]], bool]
AnswerValue = Any  # a text, None, a mapping, a sequence of these, or a callable that returns one

_WORDS = """river stone light garden winter letter market bridge morning silver forest engine
harbour window valley paper summer station copper meadow signal village lantern island barrel
mirror ladder orchard pillar compass kettle feather""".split()  # noqa: SIM905


def as_condition(condition: Condition) -> Callable[[Call], Any]:
    """Return a function that says whether a rule holds, or gives the match of its pattern."""
    if callable(condition):
        test = condition
        return lambda call: test(call.body)
    pattern = re.compile(condition)
    return lambda call: pattern.search(call.text)


def to_answers(value: AnswerValue, call: Call, found: Any) -> list[Answer]:
    """Return a sample for each choice asked for; `found` is what the condition returned."""
    if callable(value):
        value = value(call.body)
    if isinstance(value, list | tuple):
        return [_one_answer(value[i % len(value)], found) for i in range(call.num_choices)]
    return [_one_answer(value, found) for _ in range(call.num_choices)]


def _one_answer(value: Any, found: Any) -> Answer:
    if value is None or isinstance(value, str):
        return Answer(text=value)
    if isinstance(value, Answer):
        return value
    fields = dict(value)
    if "expand" in fields:
        fields["text"] = found.expand(fields.pop("expand"))
    return Answer(**fields)


def words(call: Call, sample: int) -> str:
    """Return four short lines of words drawn from a hash of the request."""
    digest = hashlib.blake2b(f"{call.answer_hash}:{sample}".encode(), digest_size=32).digest()
    words = [_WORDS[byte % len(_WORDS)] for byte in digest]
    lines = (" ".join(words[i : i + 8]).capitalize() for i in range(0, len(words), 8))
    return ". ".join(lines) + "."


def plain_rule(condition: Condition, value: AnswerValue) -> list[Any]:
    """Return a rule as JSON can carry it; raise `ConfigurationError` where there is a callable."""
    if callable(condition) or callable(value):
        raise ConfigurationError("a scripted endpoint in a child process takes no callables")
    flags = condition.flags if isinstance(condition, re.Pattern) else 0
    pattern = condition.pattern if isinstance(condition, re.Pattern) else condition
    return [pattern, flags, value]
