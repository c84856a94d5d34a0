"""What waits for a slot, and who is next."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nemo_sdg.llm.replica import Replica
from nemo_sdg.llm.stop_when import Plain


@dataclass(slots=True)
class Item:
    """One request on its way through the engine; equal requests wait in `waiters` of the first.

    Attributes:
        keys: of the ledger, one a sample.
        waiters: sessions, each with its token, that want the answer; none: nobody does any more.
        tries: sent in vain, as far as it counts against the request.
        refusals: 429s; they count for no try.
        label: the task that asks.
        stop_when: the rule that ends the answer while it comes (`StopWhen.plain`).
        sent: how often it was sent at all.
        was_spared: it was let try once more since the endpoint was suspect.
        is_for_fallback: all its tries elsewhere are used up.
        avoided: the endpoint that failed it last.
        prefix: equal for requests that begin alike, where that counts (`prefixes`); else empty.
    """

    keys: tuple[str, ...]
    kind: str
    model: str
    body: bytes
    output_tokens: int | None
    session: int
    stage: int
    label: str = ""
    stop_when: Plain | None = None
    waiters: list[tuple[int, int]] = field(default_factory=list)
    tries: int = 0
    refusals: int = 0
    sent: int = 0
    was_spared: bool = False
    is_for_fallback: bool = False
    avoided: Replica | None = None
    prefix: bytes = b""

    @property
    def cost(self) -> int:
        """How long it will take, on no particular scale: bytes of the prompt, answer at most."""
        return len(self.body) + 4 * (self.output_tokens or 0)


Place = tuple[int, int, Any, int, Item]
"""What decides, the number of the request last; the item is never compared."""


class Backlog:
    """Requests in order: oldest session first; in it what follows from answers, then the costliest.

    Sessions in their order, so that partitions end one after another and memory is freed. Once
    nothing is left to let in (`is_tail`) the costliest of all goes first, or the last long request
    would begin when all others have ended.

    Attributes:
        queues: what is sent from, each for itself: where the first of one has to wait, the others
            go on.
    """

    def __init__(self) -> None:
        self.queues: tuple[Backlog, ...] = (self,)
        self._heap: list[Place] = []
        self._sequence = 0
        self._is_tail = False

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def first(self) -> Item | None:
        """The next request that anybody still waits for."""
        while self._heap:
            item = self._heap[0][4]
            if item.waiters:
                return item
            self.pop()
        return None

    @property
    def is_tail(self) -> bool:
        """Whether nothing is left to let in; set it when that changes."""
        return self._is_tail

    @is_tail.setter
    def is_tail(self, is_tail: bool) -> None:
        if is_tail != self._is_tail:
            self._is_tail = is_tail
            self._heap = [self._place(item, number) for _, _, _, number, item in self._heap]
            heapq.heapify(self._heap)

    def push(self, item: Item) -> None:
        """Put a request where it belongs."""
        self._sequence += 1
        heapq.heappush(self._heap, self._place(item, self._sequence))

    def pop(self) -> None:
        """Take the first request out."""
        heapq.heappop(self._heap)

    def clear(self) -> None:
        """Give up all that waits."""
        self._heap.clear()

    def _place(self, item: Item, number: int) -> Place:
        session = 0 if self._is_tail else item.session
        return (session, -item.stage, -item.cost, number, item)


class SeveralQueues(Backlog):
    """Requests in several queues: what holds for all of them at once."""

    def __init__(self, parts: Iterable[Backlog]) -> None:
        super().__init__()
        self._parts = tuple(parts)

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    @property
    def is_tail(self) -> bool:
        """Whether nothing is left to let in; set it when that changes."""
        return self._is_tail

    @is_tail.setter
    def is_tail(self, is_tail: bool) -> None:
        self._is_tail = is_tail
        for part in self._parts:
            part.is_tail = is_tail

    def clear(self) -> None:
        """Give up all that waits."""
        for part in self._parts:
            part.clear()


class DividedBacklog(SeveralQueues):
    """What cannot go everywhere waits for itself, and holds up nothing that can.

    What may only go to the fallback has a queue, and for each endpoint what it has just failed has
    one. They come first: what is in them was sent before.

    Args:
        ordinary: takes everything else.
        replicas: endpoints that a request may avoid.
    """

    def __init__(self, ordinary: Backlog, replicas: Sequence[Replica]) -> None:
        self.for_fallback, self._ordinary = Backlog(), ordinary
        self._avoiding: dict[Replica | None, Backlog] = {one: Backlog() for one in replicas}
        super().__init__((self.for_fallback, *self._avoiding.values(), ordinary))
        self.queues = self._parts

    @property
    def first(self) -> Item | None:
        """A request that anybody still waits for, the next one of its queue."""
        return next((item for queue in self.queues if (item := queue.first) is not None), None)

    def push(self, item: Item) -> None:
        """Put a request into the queue of where it may go."""
        if item.is_for_fallback:
            self.for_fallback.push(item)
        else:
            self._avoiding.get(item.avoided, self._ordinary).push(item)

    def pop(self) -> None:
        """Take that request out."""
        next(queue for queue in self.queues if queue.first is not None).pop()
