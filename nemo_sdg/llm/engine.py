"""The engine: one event loop a worker, in a process of its own, that outlives every partition.

Requests come in and answers go out as frames of bytes over a socket (`nemo_sdg.llm.frames`); no
data frame and no callable crosses it. It runs in a child process, so that no pure-Python
thread of the worker holds the interpreter lock while the loop waits: `benchmarks/engine_place.py`.

What happens to a request: it is looked up in the ledger, joined to an equal one on its way, or
queued (oldest session first; in it what follows from answers first, then the costliest); it takes a
slot of an endpoint; its answer is filed, and only then handed over. A transport failure gives the
slot back and waits outside. An endpoint that is down is sent nothing but probes, and no try counts.

How many slots there are, and how much may be spent, the engine is told by a lease that it renews
(`nemo_sdg.llm.leases`); without a fresh one it starts nothing.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from typing import Any

from nemo_sdg.errors import NemoSdgError, RequestError, RunStopped
from nemo_sdg.llm.backlog import Backlog, DividedBacklog, Item
from nemo_sdg.llm.drain import Drain
from nemo_sdg.llm.engine_config import EngineConfig
from nemo_sdg.llm.fleet import Fleet
from nemo_sdg.llm.flights import Flights, Sent
from nemo_sdg.llm.frames import read_frame
from nemo_sdg.llm.hedge import Hedger
from nemo_sdg.llm.later import Later
from nemo_sdg.llm.leaseholder import Leaseholder
from nemo_sdg.llm.ledger import Ledger
from nemo_sdg.llm.outbox import Outbox
from nemo_sdg.llm.prefixes import GroupedBacklog, prefix_of
from nemo_sdg.llm.replica import Replica
from nemo_sdg.llm.retry import verdict
from nemo_sdg.llm.second_try import wait_after
from nemo_sdg.llm.tries import TryLog

__all__ = ["Engine", "EngineConfig"]

REFRESH_S = 1.0
REFRESH_BYTES = 4 << 20
"""Read of other writers' files in one turn of the event loop; some ten milliseconds."""
REPORT_S = 0.25
LEAST_SYNC_S = 0.05
REFUSALS_TO_STOP = 5
"""403s before anything was answered that are taken for a wrong key."""


class Engine:
    """See the module's text. Runs until its socket closes."""

    def __init__(self, config: EngineConfig, reader: asyncio.StreamReader, out: Any) -> None:
        self.config = config
        self.reader = reader
        self.fleet = Fleet(config)
        self.ledger = Ledger(config.ledger, writer=True, load=False) if config.ledger else None
        self.tries = TryLog(config.tries)
        self.outbox = Outbox(out, self.ledger, self._stop, self.tries)
        self.drain = Drain(config, self.outbox, self.ledger, lambda: self.in_flight, self._stop)
        self._prefix_size = config.endpoint.group_prefixes
        self._grouped = GroupedBacklog(config.served_alike) if self._prefix_size else None
        self.backlog = Backlog() if self._grouped is None else self._grouped
        self._for_fallback = Backlog()
        if len(self.fleet.replicas) > 1:
            self.backlog = divided = DividedBacklog(self.backlog, self.fleet.primaries)
            self._for_fallback = divided.for_fallback
        self.open: dict[tuple[str, ...], Item] = {}
        self.counts: Counter[str] = Counter()
        self.fatal: NemoSdgError | None = None
        self._has_answered = False
        self._refused: list[tuple[Item, RequestError]] = []
        self.flights = Flights(self, self.tries)
        self.later = Later(self._again)
        self.lease = Leaseholder(self)
        self.hedger = Hedger(self, share) if (share := config.endpoint.hedge) else None
        self._newest = 0
        self._refreshed = 0.0
        self._pump_timer: asyncio.TimerHandle | None = None

    @property
    def in_flight(self) -> int:
        """Requests that were sent and have not ended."""
        return len(self.flights)

    async def load(self) -> None:
        """Read the ledger, beside the event loop; tell the worker as long as it goes on.

        Raises:
            RunFolderError: it cannot be read.
        """
        if self.ledger is None:
            return
        reading = asyncio.create_task(asyncio.to_thread(self.ledger.refresh))
        told = -1
        while not (await asyncio.wait([reading], timeout=REPORT_S))[0]:
            if self.ledger.bytes_read != told:
                told = self.ledger.bytes_read
                self.outbox.send("loading", told)
        try:
            await reading
        except NemoSdgError:
            self.ledger.close()
            raise
        self.ledger.tidy()

    async def run(self) -> None:
        """Serve frames until the other side closes; then stop all requests and file what is due."""
        self.lease.tell()
        timers = [asyncio.create_task(self._report()), asyncio.create_task(self._sync())]
        try:
            while (frame := await read_frame(self.reader)) is not None:
                what, *rest = frame
                if what == "submit":
                    await self._catch_up(rest[0])
                    self._submit(*rest)
                elif what == "close":
                    self._close_session(rest[0])
                elif what == "lease":
                    self._take_lease(*rest)
                elif what == "report":
                    self.lease.tell()
                elif what == "drain":
                    self.leave()
                elif what == "end":
                    break
            else:
                await self.drain.ended()  # the worker is gone, maybe of a SIGTERM to all
        finally:
            self.backlog.clear()
            self.later.clear()
            self.lease.stop()
            if self._pump_timer is not None:
                self._pump_timer.cancel()
            for sent in self.flights:
                self.flights.cancel(sent)
            probers = [replica.prober for replica in self.fleet.replicas if replica.prober]
            leftover = [*timers, *probers]
            for task in leftover:
                task.cancel()
            await asyncio.gather(*leftover, return_exceptions=True)
            await self.fleet.close()
            self.outbox.flush()
            self.tries.close()
            if self.ledger is not None:
                self.ledger.close()

    def leave(self) -> None:
        """Start nothing more, and end when what is under way is filed."""
        self.drain.begin()
        self._pump()

    # --- requests in ---------------------------------------------------------------------------

    async def _catch_up(self, session: int) -> None:
        """Read what others have filed, all of it, in bites that do not hold up the loop."""
        # A session that is new may take the rows of a worker that died a moment ago.
        is_due = session > self._newest or time.monotonic() - self._refreshed > REFRESH_S
        self._newest = max(self._newest, session)
        if self.ledger is None or not is_due:
            return
        try:
            while not self.ledger.refresh(max_bytes=REFRESH_BYTES):
                await asyncio.sleep(0)
        except NemoSdgError as error:
            self._stop(error)
        self._refreshed = time.monotonic()

    def _submit(self, session: int, stage: int, label: str, items: list[list[Any]]) -> None:
        self.outbox.flush()  # or what has just been answered would be asked again
        filed = iter(self._filed([key for item in items for key in item[1]]))
        for token, keys, kind, model, body, output_tokens, rule in items:
            item = Item(tuple(keys), kind, model, body, output_tokens, session, stage, label)
            if rule is not None:
                item.stop_when = tuple(rule)
            if self._prefix_size:
                item.prefix = prefix_of(body, self._prefix_size)
            self._take(item, token, [next(filed) for _ in keys])
        self._pump()
        self.lease.more_came()

    def _filed(self, keys: list[str]) -> list[bytes | None]:
        if self.ledger is not None and self.fatal is None:
            try:
                return self.ledger.get_many(keys)
            except NemoSdgError as error:
                self._stop(error)
        return [None] * len(keys)

    def _take(self, item: Item, token: int, filed: list[bytes | None]) -> None:
        if self.fatal is not None:
            return
        if all(filed):
            self._has_answered = True
            self.counts["from_ledger"] += 1
            self.outbox.hand_over([(item.session, token)], True, filed, True)
            return
        known = self.open.get(item.keys)
        if known is not None:
            known.waiters.append((item.session, token))
            self.counts["coalesced"] += 1
            return
        if not self.open:
            self.fleet.begins_again(time.monotonic())
        item.waiters.append((item.session, token))
        self.open[item.keys] = item
        self.backlog.push(item)

    def _close_session(self, session: int) -> None:
        for item in list(self.open.values()):
            item.waiters = [w for w in item.waiters if w[0] != session]
        for sent in self.flights:
            if not sent.item.waiters:
                self.flights.cancel(sent)
                self.lease.slot_is_free(sent.replica)
        self.later.drop_unwanted()
        for keys in [keys for keys, item in self.open.items() if not item.waiters]:
            del self.open[keys]
        self._pump()

    # --- requests out --------------------------------------------------------------------------

    def _pump(self) -> None:
        if self.drain.holds():
            return
        if self._refused:
            self._judge_refused()
        if self._pump_timer is not None:
            self._pump_timer.cancel()
        now = time.monotonic()
        wait_s = math.inf
        for queue in self.backlog.queues:
            while (
                self.fatal is None
                and not self.fleet.is_full  # as nearly always: one slot was free, is taken again
                and (item := queue.first) is not None
            ):
                if not self.fleet.may_start(now):
                    self.lease.tell_soon()
                    break
                replica, its_s = self.fleet.choose(item, now)
                if replica is None:
                    wait_s = min(wait_s, its_s)
                    break
                if self._grouped is not None and queue is self._grouped:
                    item = self._grouped.closer(item, replica, now)
                queue.pop()
                self.counts["sent"] += 1
                self.fleet.spent["requests"] += 1
                self.flights.send(item, replica, now)
        self._pump_timer = None
        if wait_s < math.inf:
            self._pump_timer = asyncio.get_running_loop().call_later(wait_s, self._pump)
        for replica in self.fleet.suspects if self.fatal is None else ():
            replica.prober = asyncio.create_task(self._probe(replica))

    def slot_is_free(self, sent: Sent) -> None:
        """Send the next request in the slot of one that has ended."""
        self.lease.slot_is_free(sent.replica)
        self._pump()
        if self.fleet.is_wanted:
            self.lease.spare_slots()

    def answered(self, sent: Sent, lines: list[bytes]) -> None:
        """File an answer and hand it over."""
        usage = sent.usage
        sent.replica.answered(time.monotonic(), sent.flight, len(sent.item.body), usage)
        self.fleet.used(sent.replica, usage)
        self._has_answered = True
        counts = self.counts
        counts["answers"] += 1
        counts["from_fallback"] += sent.replica.is_fallback
        counts["input_tokens"] += usage.input_tokens
        counts["output_tokens"] += usage.output_tokens
        counts["reasoning_tokens"] += usage.reasoning_tokens
        counts["cached_tokens"] += usage.cached_tokens
        if self.hedger is not None:
            self.hedger.answered(sent)
        self.open.pop(sent.item.keys, None)
        self.outbox.answer(sent.item.waiters, lines)

    def failed(self, sent: Sent, error: RequestError) -> None:
        """Decide whether a request is asked again, and when, or given up."""
        item, replica = sent.item, sent.replica
        self.counts["failed." + error.code] += 1
        is_own = replica.is_fallback or item.model == self.config.endpoint.model
        whose = verdict(error, is_own_model=is_own, has_answered=self._has_answered)
        if whose == "run":
            return self._stop(error)
        now = time.monotonic()
        replica.failed(now, sent.flight, error)
        item.avoided = replica
        if sent.twin is not None:  # of two copies one goes on, and decides
            sent.twin.twin = None
            return
        if whose == "open":
            self._refused.append((item, error))
            return
        may_fall_back = self.config.fallback is not None
        health, policy, draw = replica.health, self.config.retry, random.random()
        wait_s = wait_after(item, error, health, policy, draw=draw, has_fallback=may_fall_back)
        if wait_s is None:
            self._give_up(item, error)
        else:
            self.counts["retries." + error.code] += 1
            sent.is_repeated = True
            self.later.put(item, wait_s)
        self._end_if_out(now)

    def _again(self, item: Item) -> None:
        self.backlog.push(item)
        self._pump()

    def _judge_refused(self) -> None:
        """Decide what 403s mean that came before any answer: these inputs, or a wrong key."""
        if self.fatal is not None:
            return
        self._refused = [(item, error) for item, error in self._refused if item.waiters]
        if self._has_answered:
            for item, error in self._refused:
                self._give_up(item, error)
            self._refused.clear()
        elif 0 < min(REFUSALS_TO_STOP, len(self.open)) <= len(self._refused):
            self._stop(self._refused[0][1])

    def _give_up(self, item: Item, error: RequestError) -> None:
        self.open.pop(item.keys, None)
        self.outbox.hand_over(item.waiters, False, error.code, error.detail, error.status)

    async def _probe(self, replica: Replica) -> None:
        await replica.find_again(self._goes_on)
        self._pump()

    def _goes_on(self) -> bool:
        self._end_if_out(time.monotonic())
        self._pump()  # what one endpoint cannot take may go to another
        return self.fatal is None

    def _end_if_out(self, now: float) -> None:
        """Stop when no endpoint has been usable for too long."""
        if self.open and self.fleet.is_out(now):
            self._stop(self.fleet.outage())
        elif (error := self.fleet.lost_fallback(now)) is not None:
            waiting = self._for_fallback  # and nothing else may answer them
            while (item := waiting.first) is not None:
                waiting.pop()
                self._give_up(item, error)

    # --- the lease, and the end ------------------------------------------------------------------

    def _take_lease(self, sent_s: float, lease: dict[str, Any], is_tail: bool) -> None:
        self.backlog.is_tail = is_tail
        before = self.fleet.slots
        end = self.fleet.take_lease(sent_s, lease)
        if end is not None and self.backlog.first is not None and not self.flights:
            self._stop(end)
        self._pump()
        if self.fleet.slots < before and self.fleet.is_wanted:
            self.lease.tell()  # what is taken away goes to others when they know that we know

    def has_defect(self, error: BaseException) -> None:
        """End the engine for what nothing has handled: those who wait for answers must hear."""
        words = self.fleet.scrub(f"{type(error).__name__}: {error}")
        self._stop(NemoSdgError(f"the engine has a defect: {words}"))

    def _stop(self, error: NemoSdgError) -> None:
        """End the whole engine: the error is everybody's."""
        if self.fatal is None:
            self.fatal = error
            self.backlog.clear()
            self.outbox.end(error)

    # --- by the clock --------------------------------------------------------------------------

    async def _report(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(REPORT_S)
            self.lease.lag_s = max(self.lease.lag_s, time.monotonic() - before - REPORT_S)
            self.lease.tell()
            now = time.monotonic()
            self._end_if_out(now)
            if self.hedger is not None and self.fatal is None:
                self.hedger.look(now)

    async def _sync(self) -> None:
        while self.ledger is not None:
            await asyncio.sleep(max(LEAST_SYNC_S, self.config.ledger_sync_s))
            # In a thread: on a shared file system a sync can take long, and the loop must not wait.
            try:
                await asyncio.to_thread(self.ledger.sync)
            except RunStopped as error:
                self._stop(error)
