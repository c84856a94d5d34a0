"""Run a flow: the same generator blocking, asynchronously, or by the thousand.

A flow yields what it wants to ask and gets the answer back; it never waits by itself:

    def compare(text):
        summary = yield request(text)                    # a Request -> a Reply
        first, second = yield [check(summary), check(text)]   # at the same time, in order
        return first == second

A list may hold requests and other flows; its answers come back in the order of the list. When an
element of a list fails, the first error is raised in the flow once all elements have ended; wrap
an element in `settle` to get the error as a value instead. What a flow returns is its value; what
it raises as `RowError` is the row's failure.

Seeds do not depend on timing: every request of a flow is stamped with the path that leads to it
(its number in the flow, and its place in each list on the way).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_sdg.errors import RowError
from nemo_sdg.llm.request import Reply, Request, derive_seed

Flow = Generator[Any, Any, Any]
"""Yields `Request` or a list of requests and flows; receives `Reply`, or a list of answers."""


class FlowCrashed(RowError):
    """The code of a task raised what it should not; the row fails, its neighbours do not."""

    code = "task_crashed"


@dataclass(frozen=True, slots=True)
class Stamp:
    """What turns a task's request into the one that is sent: the model and the row's seed."""

    model: str
    row: tuple[int | str, ...]
    path: tuple[int, ...] = ()

    def request(self, request: Request, number: int) -> Request:
        """Return the request with model and seed; `number` counts the flow's own yields."""
        seed = derive_seed(*self.row, (*self.path, number))
        return request.stamped(model=self.model, seed=seed)

    def child(self, number: int, place: int) -> Stamp:
        """Return the stamp for an element of the list that is the flow's yield `number`."""
        return Stamp(self.model, self.row, (*self.path, number, place))


@dataclass(frozen=True, slots=True)
class Settled:
    """An element of a list whose `RowError` comes back as its value."""

    part: Any


def settle(part: Request | Flow) -> Settled:
    """Mark an element of a list: its failure is a value, and does not end the flow."""
    return Settled(part)


def run_flow(flow: Flow, ask: Callable[[Request], Reply], stamp: Stamp) -> Any:
    """Run a flow to its end, one request after the other; raise its `RowError` if it fails."""
    number = 0
    try:
        wanted = next(flow)
        while True:
            try:
                if isinstance(wanted, Request):
                    answer: Any = ask(stamp.request(wanted, number))
                else:
                    ends = [
                        run_flow(_caught(w), ask, stamp.child(number, i))
                        for i, w in enumerate(_parts(wanted))
                    ]
                    answer = _unless_failed(wanted, ends)
            except RowError as error:
                wanted = flow.throw(error)
            else:
                wanted = flow.send(answer)
            number += 1
    except StopIteration as end:
        return end.value


async def run_flow_async(
    flow: Flow, ask: Callable[[Request], Awaitable[Reply]], stamp: Stamp
) -> Any:
    """Run a flow to its end; the elements of a list are asked at the same time."""
    number = 0
    try:
        wanted = next(flow)
        while True:
            try:
                if isinstance(wanted, Request):
                    answer: Any = await ask(stamp.request(wanted, number))
                else:
                    ends = await asyncio.gather(
                        *(
                            run_flow_async(_caught(w), ask, stamp.child(number, i))
                            for i, w in enumerate(_parts(wanted))
                        )
                    )
                    answer = _unless_failed(wanted, ends)
            except RowError as error:
                wanted = flow.throw(error)
            else:
                wanted = flow.send(answer)
            number += 1
    except StopIteration as end:
        return end.value


class Crowd:
    """Runs many flows over any carrier of requests: events in, requests out, no I/O.

    `start` and `deliver` return the requests to be asked next, each with a token; whoever carries
    them hands every answer back by its token. Ended flows are collected with `ended`.

    Cost: a few microseconds a request. Memory: one generator a row that has not ended.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, _Node] = {}
        self._next_token = 0
        self._ended: list[tuple[int, Any, Reply | None]] = []
        self._out: list[tuple[int, Request]] = []

    def __len__(self) -> int:
        """Return the number of requests that wait for an answer."""
        return len(self._waiting)

    def start(self, row: int, flow: Flow, stamp: Stamp) -> list[tuple[int, Request]]:
        """Start the flow of a row; return what it asks first."""
        self._advance(_Node(flow, stamp, row=row), first=True)
        return self._taken()

    def deliver(self, token: int, answer: Reply | RowError) -> list[tuple[int, Request]]:
        """Hand an answer to the flow that waits for it; return what follows from it."""
        node = self._waiting.pop(token)
        if isinstance(answer, Reply):
            root, path = node.root(), (*node.stamp.path, node.number)
            if path >= root.last_path:
                root.last_path, root.last = path, answer
        self._advance(node, answer)
        return self._taken()

    def ended(self) -> Iterator[tuple[int, Any, Reply | None]]:
        """Yield (row, value or RowError, the last reply) of the flows that ended since.

        The last of a list is the one at its end, not the one that arrived last.
        """
        ended, self._ended = self._ended, []
        return iter(ended)

    def row_of(self, token: int) -> int:
        """Return the row whose flow waits for this token."""
        return self._waiting[token].root().row

    def close(self) -> None:
        """Give up every flow that has not ended."""
        for node in self._waiting.values():
            node.flow.close()
        self._waiting.clear()

    def _taken(self) -> list[tuple[int, Request]]:
        out, self._out = self._out, []
        return out

    def _advance(self, node: _Node, answer: Any = None, *, first: bool = False) -> None:
        while True:
            try:
                if first:
                    wanted = next(node.flow)
                else:
                    failed = isinstance(answer, RowError)
                    wanted = node.flow.throw(answer) if failed else node.flow.send(answer)
            except StopIteration as end:
                return self._end(node, end.value)
            except RowError as error:
                return self._end(node, error)
            except Exception as error:  # noqa: BLE001 - the edge: a user's code must not harm others
                return self._end(node, FlowCrashed(f"{type(error).__name__}: {error}"))
            answer, first = self._ask(node, wanted), False
            if answer is None:
                return None

    def _ask(self, node: _Node, wanted: Any) -> list[Any] | RowError | None:
        """Ask what a flow wants; return the answer where none has to be waited for."""
        number = node.number
        node.number += 1
        if isinstance(wanted, Request):
            self._next_token += 1
            self._waiting[self._next_token] = node
            self._out.append((self._next_token, node.stamp.request(wanted, number)))
            return None
        try:
            wanted = _parts(wanted)
        except RowError as error:
            return error
        if not wanted:
            return []
        node.wanted, node.answers, node.open = wanted, [None] * len(wanted), len(wanted)
        for place, part in enumerate(wanted):
            stamp = node.stamp.child(number, place)
            child = _Node(_caught(part), stamp, parent=node, place=place)
            self._advance(child, first=True)
        return None

    def _end(self, node: _Node, value: Any) -> None:
        parent = node.parent
        if parent is None:
            self._ended.append((node.row, value, node.last))
            return
        parent.answers[node.place] = value
        parent.open -= 1
        if parent.open == 0:
            try:
                answer: Any = _unless_failed(parent.wanted, parent.answers)
            except RowError as error:
                answer = error
            parent.wanted, parent.answers = (), []
            self._advance(parent, answer)


class _Node:
    """A flow that runs: of a row, or of an element in another flow's list."""

    __slots__ = (
        "answers",
        "flow",
        "last",
        "last_path",
        "number",
        "open",
        "parent",
        "place",
        "row",
        "stamp",
        "wanted",
    )

    def __init__(
        self,
        flow: Flow,
        stamp: Stamp,
        *,
        row: int = -1,
        parent: _Node | None = None,
        place: int = 0,
    ) -> None:
        self.flow, self.stamp, self.row, self.parent, self.place = flow, stamp, row, parent, place
        self.number = 0
        self.open = 0
        self.wanted: Sequence[Any] = ()
        self.answers: list[Any] = []
        self.last: Reply | None = None
        self.last_path: tuple[int, ...] = ()

    def root(self) -> _Node:
        node = self
        while node.parent is not None:
            node = node.parent
        return node


def _parts(wanted: Any) -> list[Any]:
    """Return the elements of a list that a flow yielded; anything else is the task's defect."""
    if isinstance(wanted, list | tuple):
        parts = [w.part if isinstance(w, Settled) else w for w in wanted]
        if all(isinstance(part, Request | Generator) for part in parts):
            return list(wanted)
    raise FlowCrashed(
        f"a flow yields a Request, or a list of requests and flows, not {type(wanted).__name__}"
    )


def _caught(part: Any) -> Flow:
    """Run an element of a list; return its value, or its `RowError`."""
    part = part.part if isinstance(part, Settled) else part
    try:
        if isinstance(part, Request):
            return (yield part)
        return (yield from part)
    except RowError as error:
        return error


def _unless_failed(wanted: Sequence[Any], ends: Sequence[Any]) -> list[Any]:
    """Return the answers of a list; raise the first error that its flow did not ask to see."""
    for part, end in zip(wanted, ends, strict=True):
        if isinstance(end, RowError) and not isinstance(part, Settled):
            raise end
    return list(ends)
