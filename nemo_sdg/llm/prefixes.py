"""Requests that begin alike are sent next to one another, and to the same of several replicas.

A server that keeps what it has computed of a prompt's beginning (prefix caching) then finds it.
Off unless `Endpoint.group_prefixes` says how long a beginning is. What counts more comes first: an
older partition, what follows from answers; and no slot waits for the replica that would be best.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from functools import lru_cache
from operator import itemgetter

from nemo_sdg.llm.backlog import Backlog, Item, Place, SeveralQueues
from nemo_sdg.llm.replica import Replica

# In no text stands a quotation mark that is not escaped, so none of these does.
_FIRST_TEXT = re.compile(rb'"(?:content|prompt)":(?:\[\{"type":"text","text":)?"|"input":\["')
_NEXT_TEXT = re.compile(rb'"\},\{"role":"\w*","content":(?:\[\{"type":"text","text":)?"')
_TEXT = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+')
_MORE = b'"},{'
_END_OF_MESSAGES = b'"}],"'


def prefix_of(body: bytes, size: int) -> bytes:
    """Return a hash of the first `size` bytes of a body's prompt, or of all where it is shorter.

    The texts of the messages count, one after another, as JSON writes them; what stands between
    them does not. Of a message that holds no plain text all counts.
    """
    text = _FIRST_TEXT.search(body)
    if text is None:
        return hashlib.blake2b(body[:size], digest_size=8).digest()
    start, left = text.end(), size
    while True:
        begin = text.end()
        end = found.end() if (found := _TEXT.match(body, begin, begin + left)) else begin
        left -= end - begin
        if left <= 0 or not body.startswith(_MORE, end):
            break
        if (text := _NEXT_TEXT.match(body, end)) is None:
            last = body.find(_END_OF_MESSAGES, end, end + left)
            end = end + left if last < 0 else last
            break
    return hashlib.blake2b(body[start:end], digest_size=8).digest()


def closeness(prefix: bytes, address: str, weight: float) -> float:
    """Return how much a replica is the one for a prefix; the highest is it.

    By weighted rendezvous hashing: every engine comes to the same order, each replica is first for
    its share of the prefixes, and one that comes or goes moves no prefix between the others.
    """
    digest = hashlib.blake2b(prefix + address.encode(), digest_size=8).digest()
    return -weight / math.log((int.from_bytes(digest) + 0.5) / 2.0**64)


@lru_cache(maxsize=1 << 14)
def closest(prefix: bytes, replicas: tuple[tuple[str, float], ...]) -> str:
    """Return the address of the replica that is the one for a prefix."""
    return max(replicas, key=lambda one: closeness(prefix, *one))[0]


class _Queue(Backlog):
    """What begins alike stays together; groups by the cost of what came first.

    In a group the costliest goes first. A group that was sent to its end is forgotten.
    """

    def __init__(self) -> None:
        super().__init__()
        self._groups: dict[bytes, list[int]] = {}
        self._num_groups = 0

    @property
    def head(self) -> Place | None:
        """Where the first request stands that anybody still waits for."""
        return None if self.first is None else self._heap[0]

    def push(self, item: Item) -> None:
        group = self._groups.get(item.prefix)
        if group is None:
            self._num_groups += 1
            group = self._groups[item.prefix] = [-item.cost, self._num_groups, 0]
        group[2] += 1
        super().push(item)

    def pop(self) -> None:
        prefix = self._heap[0][4].prefix
        super().pop()
        self._groups[prefix][2] -= 1
        if not self._groups[prefix][2]:
            del self._groups[prefix]

    def clear(self) -> None:
        super().clear()
        self._groups.clear()

    def _place(self, item: Item, number: int) -> Place:
        session, stage, cost, number, _ = super()._place(item, number)
        first_cost, group, _ = self._groups[item.prefix]
        return (session, stage, (first_cost, group, cost), number, item)


class GroupedBacklog(SeveralQueues):
    """Requests by the replica that is closest to their prefix, each of these in groups.

    A replica with room takes what is closest to it, as long as there is any of the oldest session;
    else it helps out another one.

    Args:
        replicas: address and weight of each, the fallback not among them.
    """

    def __init__(self, replicas: Sequence[tuple[str, float]]) -> None:
        self._replicas = tuple(replicas)
        self._queues = {address: _Queue() for address, _ in self._replicas}
        self._chosen = next(iter(self._queues.values()))
        super().__init__(self._queues.values())

    @property
    def first(self) -> Item | None:
        """The next request that anybody still waits for."""
        heads = [(head[:4], queue) for queue in self._queues.values() if (head := queue.head)]
        if not heads:
            return None
        _, self._chosen = min(heads, key=itemgetter(0))
        return self._chosen.first

    def closer(self, first: Item, replica: Replica, now: float) -> Item:
        """Return what a replica with room for the `first` takes; `pop` takes it out then."""
        queue = self._queues.get(replica.endpoint.url)
        head, others = queue.head if queue else None, self._chosen.head
        if queue is None or head is None or others is None or head[:2] != others[:2]:
            return first
        item = head[4]
        if replica.wait_s(now, len(item.body), item.output_tokens) > 0:
            return first
        self._chosen = queue
        return item

    def push(self, item: Item) -> None:
        """Put a request to those that begin like it."""
        self._queues[closest(item.prefix, self._replicas)].push(item)

    def pop(self) -> None:
        """Take out the request that was returned last."""
        self._chosen.pop()
