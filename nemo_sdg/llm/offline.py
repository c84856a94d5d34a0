"""The built-in endpoint without a model: an OpenAI-compatible server that answers by rules.

    with serve_offline(rules) as server:
        ...                                  # any client, base URL server.url

A rule belongs to a task and is handed over when the server starts: a pattern that the user
message fits, and a function that makes the answer out of what the pattern's groups caught. What
fits no rule gets sentences of the prompt's own text. The answers have the form that a task asks
for; they are no model's, and the server says so.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from nemo_sdg.llm.dialect import UNITS, Call
from nemo_sdg.llm.extractive import condense
from nemo_sdg.llm.request import derive_seed
from nemo_sdg.llm.server import ApiServer
from nemo_sdg.llm.wire import Answer
from nemo_sdg.text.tokens import load_tokenizer

OFFLINE_MODEL = "offline-extractive"
CONTEXT_LENGTH = 131_072

ABOUT = """\
This is the built-in endpoint of nemo_sdg. It is not a language model.

It answers in the form that a task asks for, by rules, out of the sentences of the prompt itself,
so that a pipeline can be tried without a GPU, a key or a network. Do not train on its answers.

OpenAI-compatible API: {url}   model: {model}
"""

_NOTHING = "There is nothing in this prompt that an answer could be made of."
_SPECIAL = frozenset(".^$*+?{}[]|()")
_QUANTIFIERS = frozenset("*+?{")
_LABEL = re.compile(r"^[^\n:]{0,80}:[ \t]*(?:\n|(?<=[ \t]))", re.MULTILINE)
_LABELS_WITHIN = 5000
_LONG_TEXT = 50_000
_CHARACTERS_PER_TOKEN = 2.5
_SHARES = (0.3, 0.15, 0.07, 0.03)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How one task is answered.

    Attributes:
        name: of the task.
        pattern: must match the whole user message (or all messages, a blank line between two).
        answer: (named groups, seed) -> text; pure, the same for the same arguments.
    """

    name: str
    pattern: re.Pattern[str]
    answer: Callable[[Mapping[str, str], int], str]

    def match(self, text: str) -> Mapping[str, str] | None:
        """Return the named groups, None where the text does not fit.

        What the pattern begins and ends with, as far as it is literal, is compared first: a long
        text that fits another rule costs nothing here.
        """
        first, last = self._literals
        if not (text.startswith(first) and text.endswith(last)):
            return None
        found = self.pattern.fullmatch(text)
        return None if found is None else found.groupdict(default="")

    @cached_property
    def _literals(self) -> tuple[str, str]:
        if self.pattern.flags & (re.IGNORECASE | re.VERBOSE) or "|" in self.pattern.pattern:
            return "", ""
        return literal_ends(self.pattern.pattern)


def literal_ends(pattern: str) -> tuple[str, str]:
    """Return the literal texts that a pattern without alternatives begins and ends with.

    As much as is certain: each may be shorter than it could be, never longer.
    """
    pieces: list[str | None] = []  # a literal character, None for anything else
    i = 0
    while i < len(pattern):
        sign = pattern[i]
        if sign == "\\" and i + 1 < len(pattern):
            escaped = pattern[i + 1]
            pieces.append(None if escaped.isalnum() else escaped)
            i += 2
            continue
        pieces.append(None if sign in _SPECIAL else sign)
        if sign in _QUANTIFIERS and len(pieces) > 1:
            pieces[-2] = None
        i += 1
    head = next((k for k, piece in enumerate(pieces) if piece is None), len(pieces))
    tail = next((k for k in range(len(pieces), 0, -1) if pieces[k - 1] is None), 0)
    return _text(pieces[:head]), _text(pieces[tail:])


def _text(pieces: Sequence[str | None]) -> str:
    return "".join(piece for piece in pieces if piece is not None)


class OfflineServer(ApiServer):
    """Answer by the first rule that fits; see the module for what that means.

    Args:
        rules: in order of precedence.
        host: address to listen on.
        port: 0 for any free one.
        latency_s: seconds that every answer takes, to see what a slow model does to a run.
    """

    def __init__(
        self,
        rules: Sequence[Rule] = (),
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        latency_s: float = 0.0,
    ) -> None:
        # Without /tokenize: a run against this server counts with the tokenizer of the package.
        super().__init__(
            models={OFFLINE_MODEL: CONTEXT_LENGTH}, has_tokenize=False, host=host, port=port
        )
        self._rules = tuple(rules)
        self._latency_s = latency_s
        self._tokenizer = load_tokenizer("bundled")

    def count(self, text: str) -> int:
        """Count as a run against this server does: with the tokenizer of the package."""
        return int(self._tokenizer.count([text])[0])

    def count_prompt(self, call: Call) -> int:
        """Count a chat as servers of models do: rendered by the tokenizer's template."""
        if call.kind != "chat":
            return self.count(call.text)
        messages = [{"role": role, "content": text} for role, text in call.parts]
        return self._tokenizer.chat_tokens(messages)

    def about(self) -> str:
        """Say that this is no language model."""
        return ABOUT.format(url=self.url, model=OFFLINE_MODEL)

    async def answers(self, call: Call) -> list[Answer]:
        """Return one answer for each choice; the seed of choice i derives from the call's."""
        if self._latency_s > 0:
            await asyncio.sleep(self._latency_s)
        if len(call.text) > _LONG_TEXT:
            return await asyncio.to_thread(self._answers, call)
        return self._answers(call)

    def _answers(self, call: Call) -> list[Answer]:
        given = call.body.get("seed")
        seed = derive_seed(call.messages_hash) if given is None else int(given)
        seeds = [seed, *(derive_seed(seed, i) for i in range(1, call.num_choices))]
        make = self._rule_for(call)
        return [cut_answer(make(s), call.max_tokens, call.stop) for s in seeds]

    def _rule_for(self, call: Call) -> Callable[[int], str]:
        for rule in self._rules:
            for text in dict.fromkeys((call.user_text, call.text)):
                values = rule.match(text)
                if values is not None:
                    return lambda seed, rule=rule, values=values: rule.answer(values, seed)  # type: ignore[misc]
        text = generic_answer(call.user_text or call.text, call.max_tokens)
        return lambda seed: text


def generic_answer(prompt: str, max_tokens: int | None = None) -> str:
    """Return the telling sentences of the text in a prompt whose task is not known.

    The text is what follows the last label ("Text:") that leaves most of the prompt behind it. Of
    its sentences as many are taken as the output limit holds, like a model that was told to be
    brief; what one long sentence has beyond it is cut as everywhere.
    """
    start = 0
    for label in _LABEL.finditer(prompt[:_LABELS_WITHIN]):
        if len(prompt) - label.end() >= 0.6 * len(prompt):
            start = label.end()
    source = prompt[start:]
    text = condense(source, 0.5) or _NOTHING
    room = None if max_tokens is None else int(max_tokens * _CHARACTERS_PER_TOKEN)
    for share in _SHARES:
        if room is None or len(text) <= room:
            break
        text = condense(source, share) or text
    return text


def cut_answer(text: str, max_tokens: int | None, stop: Sequence[str] = ()) -> Answer:
    """Return the answer as a server with these limits would send it.

    A token is a word, a CJK character or a punctuation mark: fewer than any tokenizer counts, so
    that no answer is called cut that would have fitted.
    """
    ends = [at for mark in stop if mark and (at := text.find(mark)) >= 0]
    text = text[: min(ends)] if ends else text
    if max_tokens is not None and len(text) > max_tokens:
        for number, unit in enumerate(UNITS.finditer(text)):
            if number == max_tokens:
                return Answer(text=text[: unit.start()].rstrip(), finish_reason="length")
    return Answer(text=text)


@contextmanager
def serve_offline(
    rules: Sequence[Rule] = (),
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    latency_s: float = 0.0,
) -> Iterator[OfflineServer]:
    """Run the built-in endpoint in a thread while the context lasts; `.url` is its base URL.

    Raises:
        OSError: the port is taken.
    """
    with OfflineServer(rules, host=host, port=port, latency_s=latency_s) as server:
        yield server
