"""Who may have how many requests in flight, and spend how much: shared between engines.

    book = LeaseBook()                                   # one for all engines of an endpoint
    lease = book.renew(report, terms, now)               # each engine, some times a second
    lease.slots, lease.allowed["requests"]

Pure: time is handed in. The book lies beside the Dask scheduler (`nemo_sdg.llm.lease_service`), or
in the process where there is no cluster.

Two rules make the limits hold while messages are on their way and workers vanish:

- **A shrink counts when it is acknowledged.** An engine that is told to hold less may not have
  heard it yet, and its requests in flight go on. So others get what it gives back only after it
  has reported that it heard the smaller lease and has no more than that in flight. What it gives up
  by itself (`Report.kept`) is free at once.
- **A lease has a time to live.** An engine that cannot renew it starts nothing new. What it may
  have started before stays counted until it reports again, its worker has left the cluster, or the
  longest request has ended.

What one needs no more another should have at once, not after two turns of the clock: `due` names
the engines whose lease would be another one if they asked now, for them to be told to ask.

A worker that is killed cannot tell what it spent since its last report, a fraction of a second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

LEASE_S = 10.0
"""How long a lease is good for; engines renew it several times a second."""

KEPT_S = 3600.0
"""A book that nobody wrote in for so long is thrown away."""

_ENOUGH = 1e-9

LEAST_CHANGE = 2
"""Slots more or less for which an engine is told to ask; one may go to and fro for ever."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What all engines of a book have agreed on.

    Attributes:
        slots: requests in flight of all engines together, by the name of the endpoint.
        caps: what all engines may spend together ("requests", "tokens", "cost").
        longest_s: after so long a request has ended, one way or another.
    """

    slots: Mapping[str, int]
    longest_s: float
    caps: Mapping[str, float] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """Return plain values, to be sent."""
        return {
            "slots": dict(self.slots),
            "longest_s": self.longest_s,
            "caps": dict(self.caps),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What an engine tells when it renews its lease.

    Attributes:
        holder: name of the engine, never used again.
        worker: address of its Dask worker, "" outside of any.
        heard: number of the lease it goes by, 0 before the first.
        in_flight: requests in flight, by endpoint.
        wanted: requests that could be in flight at once if there were room for all.
        spent: what it has spent since it started.
        kept: of the lease it goes by, slots by endpoint that it has not given up; none: all.
    """

    holder: str
    worker: str = ""
    heard: int
    in_flight: Mapping[str, int]
    wanted: int
    spent: Mapping[str, float] = field(default_factory=dict)
    kept: Mapping[str, int] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """Return plain values, to be sent."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """What an engine may do until `ttl_s` after it sent its report.

    Attributes:
        number: 1, 2, 3 ... of this engine.
        slots: requests in flight, by endpoint.
        allowed: what it may have spent in all since it started; only for what has a cap.
        is_spent: a cap is used up, and nothing of anybody is in flight any more.
        is_wanted: others could use what this engine does not: it should tell at once.
    """

    number: int
    slots: dict[str, int]
    allowed: dict[str, float]
    is_spent: str | None = None
    is_wanted: bool = False
    ttl_s: float = LEASE_S

    def kept(self, kept: Mapping[str, int]) -> Lease:
        """Return what is left of it when its engine has given slots up by itself."""
        slots = {name: min(num, kept.get(name, num)) for name, num in self.slots.items()}
        return replace(self, slots=slots)

    def to_plain(self) -> dict[str, Any]:
        """Return plain values, to be sent."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class _Holder:
    """An engine as the book knows it.

    Attributes:
        leases: the one that it goes by, and those after it: any of them may be in its hands.
        was_called: it was told to ask, and has not yet.
    """

    worker: str
    leases: list[Lease] = field(default_factory=list)
    in_flight: Mapping[str, int] = field(default_factory=dict)
    wanted: int = 0
    spent: Mapping[str, float] = field(default_factory=dict)
    number: int = 0
    until_s: float = 0.0
    was_called: bool = False

    @property
    def is_short(self) -> bool:
        """Whether it could use more slots than it was given last."""
        return not self.leases or self.wanted > sum(self.leases[-1].slots.values())

    def takes(self, report: Report) -> None:
        """Take what it reports."""
        self.in_flight, self.wanted, self.spent = report.in_flight, report.wanted, report.spent
        self.leases = [
            lease.kept(report.kept) if lease.number == report.heard else lease
            for lease in self.leases
            if lease.number >= report.heard
        ]
        self.was_called = False

    def holds(self, name: str) -> int:
        """Requests that it has, or may have started or yet start, at an endpoint."""
        return max([self.in_flight.get(name, 0), *(lease.slots[name] for lease in self.leases)])

    def unspent(self, what: str) -> float:
        """What it may spend without asking, or has spent since it reported."""
        spent = self.spent.get(what, 0.0)
        return max([0.0, *(lease.allowed[what] - spent for lease in self.leases)])


class LeaseBook:
    """Deals out the slots and the budget of one set of terms. See the module's text."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.written_s = 0.0
        self._holders: dict[str, _Holder] = {}
        self._spent_by_gone: dict[str, float] = dict.fromkeys(terms.caps, 0.0)
        self._gone: set[str] = set()

    def renew(self, report: Report, now: float) -> Lease:
        """Take a report and return the engine's new lease."""
        self.written_s = now
        if report.holder in self._gone:  # a report that was overtaken by the news of the end
            nothing = dict.fromkeys(self.terms.slots, 0)
            return Lease(number=0, slots=nothing, allowed=dict.fromkeys(self.terms.caps, 0.0))
        holder = self._holders.setdefault(report.holder, _Holder(report.worker))
        holder.takes(report)
        holder.number += 1
        holder.until_s = now + LEASE_S
        others = (one for one in self._holders.values() if one is not holder)
        lease = Lease(
            number=holder.number,
            slots={name: self._dealt(name, now)[report.holder] for name in self.terms.slots},
            allowed={what: self._allowance(what, holder) for what in self.terms.caps},
            is_spent=self._used_up(),
            is_wanted=any(one.is_short and now <= one.until_s for one in others),
        )
        holder.leases.append(lease)
        return lease

    def due(self, now: float) -> list[tuple[str, str]]:
        """Return engines that should ask now, and their workers; each once until it has asked."""
        changed: set[str] = set()
        for name in self.terms.slots:
            for holder, slots in self._dealt(name, now).items():
                last = self._holders[holder].leases[-1:]
                if last and abs(slots - last[0].slots[name]) >= LEAST_CHANGE:
                    changed.add(holder)
        found = []
        for holder in sorted(changed):
            one = self._holders[holder]
            if not one.was_called:
                one.was_called = True
                found.append((holder, one.worker))
        return found

    def leave(self, holder: str) -> None:
        """Take back all of an engine that has ended."""
        self._gone.add(holder)
        gone = self._holders.pop(holder, None)
        if gone is not None:
            for what in self._spent_by_gone:
                self._spent_by_gone[what] += gone.spent.get(what, 0.0)

    def workers(self) -> set[str]:
        """Return the workers whose engines hold leases."""
        return {one.worker for one in self._holders.values()}

    def worker_left(self, worker: str) -> None:
        """Take back all of the engines of a worker that has left the cluster."""
        for name in [name for name, one in self._holders.items() if one.worker == worker]:
            self.leave(name)

    def spent(self, what: str) -> float:
        """Return what all engines together have reported as spent."""
        of_holders = sum(one.spent.get(what, 0.0) for one in self._holders.values())
        return self._spent_by_gone.get(what, 0.0) + of_holders

    def _dealt(self, name: str, now: float) -> dict[str, int]:
        """Return what each engine would get: its fair share, or what others have given back of it.

        Those whose lease has run out get nothing before they report; what they may have in flight
        counts until the longest request has ended.
        """
        total, longest_s = self.terms.slots[name], self.terms.longest_s
        held = {
            holder: one.holds(name)
            for holder, one in self._holders.items()
            if now <= one.until_s + longest_s
        }
        taken = sum(held.values())
        sharing = {holder: one for holder, one in self._holders.items() if now <= one.until_s}
        shares = _fair_shares(total, [one.wanted for one in sharing.values()])
        return {
            holder: max(0, min(share, total - (taken - held[holder])))
            for holder, share in zip(sharing, shares, strict=True)
        }

    def _allowance(self, what: str, holder: _Holder) -> float:
        others = [one for one in self._holders.values() if one is not holder]
        left = self.terms.caps[what] - self.spent(what)
        left -= sum(one.unspent(what) for one in others)
        spent = holder.spent.get(what, 0.0)
        if not holder.wanted or left <= _ENOUGH:
            return spent
        # A part of what is left, so that all can go on and the last of it goes where it is used.
        part = left / (len(others) + 1)
        return spent + (min(left, math.ceil(part)) if what == "requests" else part)

    def _used_up(self) -> str | None:
        """Return the cap that is used up once nothing is in flight that may still be filed."""
        if any(sum(one.in_flight.values()) for one in self._holders.values()):
            return None
        for what, cap in self.terms.caps.items():
            if self.spent(what) >= cap - _ENOUGH:
                return what
        return None


def _fair_shares(total: int, wanted: list[int]) -> list[int]:
    """Give each as much as it wants, and who wants more an equal part of what is scarce.

    What nobody wants is dealt out equally, so that work which comes finds room without a message.
    """
    shares = [0] * len(wanted)
    left = total
    smallest_first = sorted(range(len(wanted)), key=wanted.__getitem__)
    for done, number in enumerate(smallest_first):
        shares[number] = min(wanted[number], -(-left // (len(wanted) - done)))
        left -= shares[number]
    for done, number in enumerate(smallest_first):
        spare = -(-left // (len(wanted) - done))
        shares[number] += spare
        left -= spare
    return shares


@dataclass(slots=True)
class LeaseOffice:
    """The books of all runs, by name; made when somebody first asks."""

    books: dict[str, LeaseBook] = field(default_factory=dict)

    def renew(
        self, name: str, report: Mapping[str, Any], terms: Mapping[str, Any], now: float
    ) -> dict[str, Any]:
        """Take the plain values of a report and return those of a lease."""
        book = self.books.get(name)
        if book is None:
            for old in [n for n, b in self.books.items() if now - b.written_s > KEPT_S]:
                del self.books[old]
            book = self.books[name] = LeaseBook(Terms(**terms))
        return book.renew(Report(**report), now).to_plain()

    def due(self, name: str, now: float) -> list[tuple[str, str]]:
        """Return the engines of a book that should ask now, and their workers."""
        return self.books[name].due(now) if name in self.books else []

    def leave(self, name: str, holder: str) -> None:
        """Take back all of an engine that has ended; its book stays for what was spent."""
        if name in self.books:
            self.books[name].leave(holder)

    def workers(self) -> set[str]:
        """Return the workers that have engines."""
        return {worker for book in self.books.values() for worker in book.workers()}

    def worker_left(self, worker: str) -> None:
        """Take back all that a worker had, of every book."""
        for book in self.books.values():
            book.worker_left(worker)
