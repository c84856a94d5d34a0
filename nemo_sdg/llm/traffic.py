"""What a scripted endpoint saw: every request with its times, and figures drawn from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

_SECRET_HEADERS = frozenset({"authorization", "api-key", "x-api-key", "cookie"})
MASK = "***"


@dataclass(kw_only=True, slots=True)
class Entry:
    """One request. Times are of the machine's monotonic clock, comparable between processes.

    Attributes:
        number: 0, 1, 2 ... in order of arrival.
        path: as sent.
        body: decoded; None where it is no JSON object or the endpoint keeps no bodies.
        body_hash: 16 hex digits of the bytes; equal for equal requests.
        messages_hash: 16 hex digits of the messages alone; equal for all tries of one question.
        headers: names in lower case, secrets masked.
        authorized: the key was right, or, where none is needed, one was sent.
        arrival_s: when the headers had been read.
        first_byte_s: when the answer began; None where none did.
        end_s: when the answer was complete or given up; None while it is under way.
        status: of the answer; None where no status line was sent.
        fault: kind of the fault that was played.
        usage: what the reply says it cost, be it that it never went out whole.
        connection: 0, 1, 2 ... in the order in which connections first sent a request.
        in_flight: requests under way at arrival, with this one.
        num_events: events of a stream that were sent.
        client_left: the client closed the connection before the end.
    """

    number: int
    path: str
    connection: int
    in_flight: int
    arrival_s: float
    headers: dict[str, str] = field(default_factory=dict)
    authorized: bool = False
    body: dict[str, Any] | None = None
    body_hash: str = ""
    messages_hash: str = ""
    first_byte_s: float | None = None
    end_s: float | None = None
    status: int | None = None
    fault: str | None = None
    usage: dict[str, Any] | None = None
    num_events: int = 0
    client_left: bool = False

    @property
    def text(self) -> str:
        """The text of the messages or the prompt, "" without a body."""
        if self.body is None:
            return ""
        messages = self.body.get("messages")
        if not isinstance(messages, list):
            return str(self.body.get("prompt") or "")
        return "\n\n".join(str(m.get("content") or "") for m in messages)


class Log:
    """All requests since the start or the last `clear()`, oldest first."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.entries = list(entries)

    def __len__(self) -> int:
        return len(self.entries)

    def clear(self) -> None:
        """Forget what was seen. Requests that are under way are not logged to their end."""
        self.entries.clear()

    @property
    def max_in_flight(self) -> int:
        """The most requests that were under way at once."""
        return max((e.in_flight for e in self.entries), default=0)

    @property
    def new_connections(self) -> int:
        """The number of connections that sent requests."""
        return len({e.connection for e in self.entries})

    @property
    def statuses(self) -> Counter[int | None]:
        """How often each status was answered; None: the connection was broken instead."""
        return Counter(e.status for e in self.entries)

    @property
    def faults(self) -> Counter[str]:
        """How often each kind of fault was played."""
        return Counter(e.fault for e in self.entries if e.fault)

    @property
    def bodies(self) -> Counter[str]:
        """How often the same bytes were sent, by `body_hash`."""
        return Counter(e.body_hash for e in self.entries)

    @property
    def questions(self) -> Counter[str]:
        """How often the same messages were sent, by `messages_hash`."""
        return Counter(e.messages_hash for e in self.entries)

    def busy_share(self, slots: int, *, with_tail: bool = False) -> float:
        """Return which share of `slots` was in use, 0 to 1, time-weighted.

        From the first arrival to the last one (after that there is nothing left to send), or,
        `with_tail`, to the last end. 1.0 where all requests arrived at one moment.
        """
        if not self.entries:
            return 0.0
        arrivals = [e.arrival_s for e in self.entries]
        ends = [e.end_s for e in self.entries if e.end_s is not None]
        begin, stop = min(arrivals), max(arrivals)
        if with_tail:
            stop = max([stop, *ends])
        if stop <= begin:
            return 1.0
        changes = sorted([(t, 1) for t in arrivals] + [(t, -1) for t in ends])
        busy, running, seen = 0.0, 0, begin
        for moment, change in changes:
            moment = min(moment, stop)
            busy += (moment - seen) * min(running, slots)
            seen = moment
            running += change
        busy += (stop - seen) * min(running, slots)
        return busy / (slots * (stop - begin))

    def to_lines(self) -> bytes:
        """Return JSON Lines, one request each."""
        option = orjson.OPT_APPEND_NEWLINE
        return b"".join(orjson.dumps(asdict(e), option=option) for e in list(self.entries))

    @classmethod
    def from_lines(cls, lines: bytes) -> Log:
        """Read what `to_lines` wrote."""
        return cls(Entry(**orjson.loads(line)) for line in lines.splitlines())


def masked(headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers by lower-case name, with the values of secrets replaced."""
    lower = ((name.lower(), value) for name, value in headers.items())
    return {name: MASK if name in _SECRET_HEADERS else value for name, value in lower}
