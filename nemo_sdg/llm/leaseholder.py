"""The engine's side of its lease: when it tells how things stand, which renews it.

It tells by the clock, and at once where another engine could use what this one does not need any
more, or where this one is held up by what it was granted.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Protocol

from nemo_sdg.llm.backlog import Backlog
from nemo_sdg.llm.drain import Drain
from nemo_sdg.llm.fleet import Fleet
from nemo_sdg.llm.later import Later
from nemo_sdg.llm.outbox import Outbox
from nemo_sdg.llm.replica import Replica

REPORT_SOON_S = 0.01
"""Until the next report where the lease holds something up, or is handed back."""


class Works(Protocol):
    """What is told of an engine; see `Engine`."""

    backlog: Backlog
    counts: Counter[str]
    drain: Drain
    fleet: Fleet
    later: Later
    outbox: Outbox

    @property
    def in_flight(self) -> int:
        """Requests that were sent and have not ended."""


class Leaseholder:
    """Belongs to the event loop of its engine.

    Attributes:
        lag_s: the longest that the loop was late.
    """

    def __init__(self, engine: Works) -> None:
        self._engine = engine
        self.lag_s = 0.0
        self._told_wanted = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def wanted(self) -> int:
        """Requests that could be in flight at once if there were room for all."""
        engine = self._engine
        waiting = 0 if engine.drain.is_on else len(engine.backlog) + len(engine.later)
        return engine.in_flight + waiting

    def more_came(self) -> None:
        """Requests came in: there may be more slots for them."""
        if self._told_wanted <= self._engine.fleet.slots < self.wanted:
            self.tell_soon()

    def slot_is_free(self, replica: Replica) -> None:
        """Where more slots were taken than leased, others wait for the one that is free."""
        if replica.in_flight >= replica.slots:
            self.tell_soon()

    def spare_slots(self) -> None:
        """Hand back what is not needed: others could use it."""
        if self.wanted < self._engine.fleet.slots:
            self.tell_soon()

    def tell_soon(self) -> None:
        """Tell in a moment."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(REPORT_SOON_S, self.tell)

    def tell(self) -> None:
        """Send how things stand."""
        self.stop()
        engine = self._engine
        state = {
            "in_flight": engine.in_flight,
            "queued": len(engine.backlog),
            "waiting": len(engine.later),
            "limit": engine.fleet.limit,
            "is_down": engine.fleet.is_down,
            "lag_s": round(self.lag_s, 4),
        }
        engine.outbox.flush()  # and with it the tries, after the answers they belong to
        engine.counts["cost"] = engine.fleet.spent["cost"]  # type: ignore[assignment]
        self._told_wanted = self.wanted
        report = engine.fleet.report(wanted=self._told_wanted)
        engine.outbox.send("state", state, dict(engine.counts), report, time.monotonic())

    def stop(self) -> None:
        """Forget what was to be told soon."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
