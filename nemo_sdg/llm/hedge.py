"""The last stragglers of a run: a second copy of what is under way too long, at a stated price.

    stragglers = Stragglers(share=0.02)              # pure: time is handed in
    stragglers.answered(latency_s)
    stragglers.after_s, stragglers.allowed(sent, hedged)

Off unless `Endpoint.hedge` gives a share. A copy is sent only when nothing else is left to send,
here or elsewhere: it never takes a slot from a request. Of the two the first complete answer is
filed, and the other one cancelled; what that may have cost counts, as an estimate.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from dataclasses import replace
from typing import Protocol

from nemo_sdg.llm.backlog import Backlog
from nemo_sdg.llm.drain import Drain
from nemo_sdg.llm.fleet import Fleet
from nemo_sdg.llm.flights import Flights, Sent

QUANTILE = 0.95
"""Longer than this share of the last answers took, and a request is a straggler."""
LEAST_ANSWERS = 20
MOST_ANSWERS = 1000


class Stragglers:
    """Knows how long is too long, and how many copies the stated share allows.

    Args:
        share: of the requests that were sent; so many copies at most.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._latencies: deque[float] = deque(maxlen=MOST_ANSWERS)

    def answered(self, latency_s: float) -> None:
        """An answer took so long."""
        self._latencies.append(latency_s)

    @property
    def after_s(self) -> float:
        """Seconds after which a request is a straggler; inf while too few were answered."""
        if len(self._latencies) < LEAST_ANSWERS:
            return math.inf
        return sorted(self._latencies)[math.ceil(QUANTILE * len(self._latencies)) - 1]

    def allowed(self, sent: int, hedged: int) -> int:
        """Return how many copies more may be sent, of so many requests and copies so far."""
        return max(0, math.floor(self._share * sent) - hedged)


class Works(Protocol):
    """What is asked of an engine; see `Engine`."""

    backlog: Backlog
    counts: Counter[str]
    drain: Drain
    fleet: Fleet
    flights: Flights


class Hedger:
    """Belongs to the event loop of its engine."""

    def __init__(self, engine: Works, share: float) -> None:
        self._engine = engine
        self._stragglers = Stragglers(share)

    def answered(self, sent: Sent) -> None:
        """Learn from an answer; where it has a copy under way, that one has lost."""
        self._stragglers.answered(time.perf_counter() - sent.started)
        loser, sent.twin = sent.twin, None
        if loser is not None:
            # The same prompt, and at most as long an answer, as far as anybody can tell.
            usage = replace(sent.usage, is_estimated=True)
            self._engine.fleet.used(loser.replica, usage)
            self._engine.flights.overtake(loser, usage)

    def look(self, now: float) -> None:
        """Send copies of stragglers, those first that are under way for the longest."""
        engine = self._engine
        if not self._is_time():
            return
        late = time.perf_counter() - self._stragglers.after_s
        for sent in sorted(engine.flights, key=lambda one: one.started):
            counts = engine.counts
            own = counts["sent"] - counts["hedged"]
            if sent.started > late or not self._stragglers.allowed(own, counts["hedged"]):
                return
            if sent.is_copy is not None or sent.item.is_for_fallback or not sent.item.waiters:
                continue
            sent.item.avoided = sent.replica
            replica, _ = engine.fleet.choose(sent.item, now)
            if replica is None or not engine.fleet.may_start(now):
                return
            counts["sent"] += 1
            counts["hedged"] += 1
            engine.fleet.spent["requests"] += 1
            engine.flights.hedge(sent, replica, now)

    def _is_time(self) -> bool:
        """Say whether nothing is left to be sent.

        Slots that another engine wants have been given up by then: none is free for a copy.
        """
        engine = self._engine
        return (
            engine.backlog.is_tail
            and engine.backlog.first is None
            and not engine.drain.is_on
            and not engine.fleet.is_down
        )
