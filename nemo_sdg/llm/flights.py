"""Requests in flight: sent, ended, cancelled. What an end means is the engine's affair.

No task is made for a request: what came is told by a call of the event loop, in which the engine
may send the next one at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from nemo_sdg.errors import RequestError
from nemo_sdg.llm.backlog import Item
from nemo_sdg.llm.ledger_entry import check_reply, lines_of
from nemo_sdg.llm.replica import Flight, Replica
from nemo_sdg.llm.transport import Arrived, Cancellable
from nemo_sdg.llm.tries import CANCELLED, OVERTAKEN, TryLog, usage_told
from nemo_sdg.llm.usage import NO_USAGE, Usage


@dataclass(slots=True, eq=False)
class Sent:
    """A request in flight; `asking` cancels it, `code` says how it ended.

    Attributes:
        twin: the other one of a request and its copy, while both are in flight; see `hedge`.
        is_copy: False: it has, or had, a copy; True: it is one; None: neither.
    """

    item: Item
    replica: Replica
    flight: Flight
    asking: Cancellable | None = None
    code: str = CANCELLED
    is_repeated: bool = False
    usage: Usage = NO_USAGE
    first_token_s: float | None = None
    twin: Sent | None = None
    is_copy: bool | None = None
    started: float = field(default_factory=time.perf_counter)


class Ends(Protocol):
    """Who is told how requests end; see `Engine`."""

    def answered(self, sent: Sent, lines: list[bytes]) -> None:
        """An answer came; these are its entries."""

    def failed(self, sent: Sent, error: RequestError) -> None:
        """There is no answer."""

    def slot_is_free(self, sent: Sent) -> None:
        """It is in flight no more, after either."""

    def has_defect(self, error: BaseException) -> None:
        """Something else went wrong."""


class Flights:
    """The requests that were sent and have not ended.

    Args:
        ends: who is told.
        tries: where each is noted once it has ended.
    """

    def __init__(self, ends: Ends, tries: TryLog) -> None:
        self._ends, self._tries = ends, tries
        self._sent: set[Sent] = set()

    def __len__(self) -> int:
        return len(self._sent)

    def __iter__(self) -> Iterator[Sent]:
        return iter(list(self._sent))

    def send(self, item: Item, replica: Replica, now: float) -> Sent:
        """Send a request."""
        item.tries += 1
        item.sent += 1
        flight = replica.started(now, len(item.body), item.output_tokens)
        sent = Sent(item, replica, flight)
        self._sent.add(sent)
        try:
            if item.stop_when is None:
                early, asked = None, replica.body(item.body)
            else:
                early = replica.early(item.stop_when, len(item.keys), len(item.body))
                asked = replica.body(item.body, is_streamed=True)
            done = partial(self._ended, sent)
            sent.asking = replica.transport.ask(item.kind, asked, done, early)
        except Exception as error:  # noqa: BLE001 - no row must wait for what was never sent
            self._ends.has_defect(error)
        return sent

    def hedge(self, sent: Sent, replica: Replica, now: float) -> None:
        """Send a copy of a request that is in flight. Together they are one try."""
        copy = self.send(sent.item, replica, now)
        copy.item.tries -= 1
        sent.twin, copy.twin = copy, sent
        sent.is_copy, copy.is_copy = False, True

    def overtake(self, sent: Sent, usage: Usage) -> None:
        """Give up the one of two whose twin was answered; `usage`: what it may have cost."""
        sent.code, sent.usage = OVERTAKEN, usage
        self.cancel(sent)

    def cancel(self, sent: Sent) -> None:
        """Give a request up; nobody is told."""
        if sent.asking is not None:
            sent.asking.cancel()
        sent.replica.abandoned(time.monotonic(), sent.flight)
        self._note(sent)

    def _ended(self, sent: Sent, outcome: Arrived | Exception) -> None:
        # An exception that left this would be taken for the connection's.
        try:
            if isinstance(outcome, Arrived):
                self._arrived(sent, outcome)
            elif isinstance(outcome, RequestError):
                self._failed(sent, outcome)
            else:
                raise outcome
            self._note(sent)
            self._ends.slot_is_free(sent)
        except Exception as error:  # noqa: BLE001
            self._ends.has_defect(error)

    def _arrived(self, sent: Sent, reply: Arrived) -> None:
        item, replica = sent.item, sent.replica
        if reply.heard is not None:
            sent.first_token_s = reply.heard.first_s(sent.started)
        try:
            usage = check_reply(reply.body)
            lines = lines_of(
                item.keys,
                reply.body,
                model=item.model,
                endpoint=replica.endpoint.url,
                attempts=item.sent,
                latency_s=time.perf_counter() - sent.started,
                data=reply.data,
                first_token_s=sent.first_token_s,
            )
        except RequestError as error:
            sent.usage = usage_told(reply.body)
            self._failed(sent, error)
        else:
            sent.code, sent.usage = "", usage
            self._ends.answered(sent, lines)

    def _failed(self, sent: Sent, error: RequestError) -> None:
        sent.code = error.code
        self._ends.failed(sent, error)

    def _note(self, sent: Sent) -> None:
        self._sent.discard(sent)
        self._tries.put(
            sent.item.label,
            sent.started,
            sent.usage,
            code=sent.code,
            is_repeated=sent.is_repeated,
            cost=sent.replica.endpoint.cost(sent.usage),
            first_token_s=sent.first_token_s,
            is_copy=sent.is_copy is True,
        )
