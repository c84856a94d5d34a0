"""The engine: one event loop a worker, in a process of its own, that outlives every partition.

Requests come in and answers go out as frames of bytes over a socket (`nemo_sdg.llm.frames`); no
data frame and no callable crosses it. It runs in a child process, so that no pure-Python
thread of the worker holds the interpreter lock while the loop waits: `benchmarks/engine_place.py`.

What happens to a request: it is looked up in the ledger, joined to an equal one on its way, or
queued (oldest session first, in it the costliest first); it takes a slot; its answer is filed, and
only then handed over. A transport failure gives the slot back and waits outside. When the endpoint
is down nothing is sent but probes, and no try counts.
"""

from __future__ import annotations

import asyncio
import heapq
import pickle
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from nemo_sdg.errors import EndpointDown, NemoSdgError, RateLimited, RequestError, RunStopped
from nemo_sdg.llm.engine_config import EngineConfig
from nemo_sdg.llm.frames import read_frame, write_frame
from nemo_sdg.llm.ledger import Ledger, entries_of
from nemo_sdg.llm.limits import Health
from nemo_sdg.llm.request import Usage
from nemo_sdg.llm.retry import verdict
from nemo_sdg.llm.transport import AsyncTransport

__all__ = ["Engine", "EngineConfig"]

REFRESH_S = 1.0
REFRESH_BYTES = 4 << 20
"""Read of other writers' files in one turn of the event loop; some ten milliseconds."""
REPORT_S = 0.25
LEAST_SYNC_S = 0.05
REFUSALS_TO_STOP = 5
"""403s before anything was answered that are taken for a wrong key."""


@dataclass(slots=True)
class _Item:
    """One request on its way; equal requests wait in `waiters` of the first."""

    keys: tuple[str, ...]
    kind: str
    model: str
    body: bytes
    waiters: list[tuple[int, int]] = field(default_factory=list)
    tries: int = 0
    refusals: int = 0
    sent: int = 0
    was_spared: bool = False
    order: tuple[int, int] = (0, 0)


class Engine:
    """See the module's text. Runs until its socket closes."""

    def __init__(self, config: EngineConfig, reader: asyncio.StreamReader, out: Any) -> None:
        self.config = config
        self.reader, self.out = reader, out
        self.transport = AsyncTransport(config.endpoint)
        self.ledger = Ledger(config.ledger, writer=True, load=False) if config.ledger else None
        self.health = Health(max_outage_s=config.max_outage_s)
        self.queue: list[tuple[tuple[int, int], int, _Item]] = []
        self.open: dict[tuple[str, ...], _Item] = {}
        self.in_flight = 0
        self.counts: Counter[str] = Counter()
        self.lag_s = 0.0
        self.fatal: NemoSdgError | None = None
        self._done: list[tuple[Any, ...]] = []
        self._has_answered = False
        self._refused: list[tuple[_Item, RequestError]] = []
        self._tasks: dict[asyncio.Task[None], _Item] = {}
        self._waiting: dict[asyncio.TimerHandle, _Item] = {}
        self._sequence = 0
        self._newest = 0
        self._flush_planned = False
        self._refreshed = 0.0
        self._prober: asyncio.Task[None] | None = None

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
                self.out.write(write_frame(["loading", told]))
        try:
            await reading
        except NemoSdgError:
            self.ledger.close()
            raise

    async def run(self) -> None:
        """Serve frames until the other side closes; then stop all requests and file what is due."""
        timers = [asyncio.create_task(self._report()), asyncio.create_task(self._sync())]
        try:
            while (frame := await read_frame(self.reader)) is not None:
                what, *rest = frame
                if what == "submit":
                    await self._catch_up(rest[0])
                    self._submit(*rest)
                elif what == "close":
                    self._close_session(rest[0])
        finally:
            self.queue.clear()
            for timer in self._waiting:
                timer.cancel()
            leftover = [*timers, *self._tasks, *([self._prober] if self._prober else [])]
            for task in leftover:
                task.cancel()
            await asyncio.gather(*leftover, return_exceptions=True)
            await self.transport.close()
            if self.ledger is not None:
                self.ledger.close()

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

    def _submit(self, session: int, order: int, items: list[list[Any]]) -> None:
        for token, keys, kind, model, body, cost in items:
            self._take(_Item(tuple(keys), kind, model, body), session, token, (order, -cost))
        self._pump()
        self._plan_flush()

    def _take(self, item: _Item, session: int, token: int, order: tuple[int, int]) -> None:
        if self.fatal is not None:
            return
        if self.ledger is not None:
            try:
                filed = [self.ledger.get(key) for key in item.keys]
            except NemoSdgError as error:
                self._stop(error)
                return
            if all(filed):
                self._has_answered = True
                self.counts["from_ledger"] += 1
                self._done.append((session, token, True, filed, True))
                return
        known = self.open.get(item.keys)
        if known is not None:
            known.waiters.append((session, token))
            self.counts["coalesced"] += 1
            return
        if not self.open:
            self.health.begins_again(time.monotonic())
        item.waiters.append((session, token))
        item.order = order
        self.open[item.keys] = item
        self._push(item)

    def _push(self, item: _Item) -> None:
        self._sequence += 1
        heapq.heappush(self.queue, (item.order, self._sequence, item))

    def _close_session(self, session: int) -> None:
        for item in list(self.open.values()):
            item.waiters = [w for w in item.waiters if w[0] != session]
        for task, item in self._tasks.items():
            if not item.waiters:
                task.cancel()
        for timer, item in list(self._waiting.items()):
            if not item.waiters:
                timer.cancel()
                del self._waiting[timer]
        for keys in [keys for keys, item in self.open.items() if not item.waiters]:
            del self.open[keys]
        self._pump()

    # --- requests out --------------------------------------------------------------------------

    def _pump(self) -> None:
        self._judge_refused()
        while (
            self.queue
            and self.in_flight < self.health.room(self.config.concurrency)
            and self.fatal is None
        ):
            item = heapq.heappop(self.queue)[2]
            if item.waiters:
                self.in_flight += 1
                task = asyncio.create_task(self._ask(item))
                self._tasks[task] = item
                task.add_done_callback(self._slot_is_free)
        if self.health.is_suspect and self._prober is None and self.fatal is None:
            self._prober = asyncio.create_task(self._probe())

    async def _ask(self, item: _Item) -> None:
        item.tries += 1
        item.sent += 1
        self.counts["sent"] += 1
        started = time.perf_counter()
        try:
            body = await self.transport.send(item.kind, item.body)
            lines = entries_of(
                item.keys,
                body,
                model=item.model,
                endpoint=self.config.endpoint.url,
                attempts=item.sent,
                latency_s=time.perf_counter() - started,
            )
        except RequestError as error:
            self._failed(item, error)
        else:
            self.health.answered()
            self._answered(item, body, lines)

    def _slot_is_free(self, task: asyncio.Task[None]) -> None:
        # Here and not in `_ask`: a task that is cancelled before it began never runs a line.
        del self._tasks[task]
        self.in_flight -= 1
        if not task.cancelled() and (error := task.exception()) is not None:
            words = self.config.endpoint.scrub(f"{type(error).__name__}: {error}")
            self._stop(NemoSdgError(f"the engine has a defect: {words}"))
        self._pump()
        self._plan_flush()

    def _answered(self, item: _Item, body: dict[str, Any], lines: list[bytes]) -> None:
        if self.ledger is not None:
            try:
                for line in lines:
                    self.ledger.put(line)
            except RunStopped as error:
                self._stop(error)
                return
        self._has_answered = True
        usage = Usage.from_body(body.get("usage"))
        self.counts["answers"] += 1
        self.counts["input_tokens"] += usage.input_tokens
        self.counts["output_tokens"] += usage.output_tokens
        self.counts["reasoning_tokens"] += usage.reasoning_tokens
        self.counts["cached_tokens"] += usage.cached_tokens
        self._finish(item, True, lines, False)

    def _failed(self, item: _Item, error: RequestError) -> None:
        self.counts["failed." + error.code] += 1
        whose = verdict(
            error,
            is_own_model=item.model == self.config.endpoint.model,
            has_answered=self._has_answered,
        )
        if whose == "run":
            self._stop(error)
            return
        self.health.failed(error, time.monotonic())
        if whose == "open":
            self._refused.append((item, error))
            return
        if isinstance(error, RateLimited):
            item.tries -= 1
            item.refusals += 1
        elif self.health.is_down:
            item.tries -= 1  # an outage is not the row's fault
        draw = random.random()
        wait_s = self.config.retry.wait_s(error, item.tries, draw, refusals=item.refusals)
        if wait_s is None and self.health.is_suspect and not item.was_spared:
            # The probe decides whether the row or the endpoint is to blame: once, or rows would
            # be asked for ever by an endpoint that answers probes and nothing else.
            item.was_spared = True
            item.tries -= 1
            wait_s = 0.0
        if wait_s is None:
            self._finish(item, False, error.code, error.detail, error.status)
        else:
            self.counts["retries." + error.code] += 1
            loop = asyncio.get_running_loop()
            timer: list[asyncio.TimerHandle] = []
            timer.append(loop.call_later(wait_s, lambda: self._again(timer[0], item)))
            self._waiting[timer[0]] = item
        if self.health.expired(time.monotonic()):
            self._stop(self._outage())

    def _again(self, timer: asyncio.TimerHandle, item: _Item) -> None:
        del self._waiting[timer]
        self._push(item)
        self._pump()

    def _judge_refused(self) -> None:
        """Decide what 403s mean that came before any answer: these inputs, or a wrong key."""
        if not self._refused or self.fatal is not None:
            return
        self._refused = [(item, error) for item, error in self._refused if item.waiters]
        if self._has_answered:
            for item, error in self._refused:
                self._finish(item, False, error.code, error.detail, error.status)
            self._refused.clear()
        elif 0 < min(REFUSALS_TO_STOP, len(self.open)) <= len(self._refused):
            self._stop(self._refused[0][1])

    def _finish(self, item: _Item, ok: bool, *payload: Any) -> None:
        self.open.pop(item.keys, None)
        self._done.extend((*waiter, ok, *payload) for waiter in item.waiters)

    async def _probe(self) -> None:
        """Ask the endpoint for a sign of life until it gives one or the outage is too long."""
        while self.fatal is None:
            await asyncio.sleep(self.health.next_probe_s())
            alive = await self.transport.probe()
            self.health.probed(alive=alive)
            if alive:
                break
            if self.health.expired(time.monotonic()) and self.open:
                self._stop(self._outage())
        self._prober = None
        self._pump()

    def _outage(self) -> EndpointDown:
        last = f": {self.health.last_error.detail}" if self.health.last_error else ""
        return EndpointDown(
            f"{self.config.endpoint.url} gave no answer for {self.config.max_outage_s:g} s{last}. "
            "All answers so far are filed: run the same command again when it is back."
        )

    def _stop(self, error: NemoSdgError) -> None:
        """End the whole engine: the error is everybody's."""
        if self.fatal is None:
            self.fatal = error
            self.queue.clear()
            self.out.write(write_frame(["fatal", pickle.dumps(error)]))

    # --- answers out ---------------------------------------------------------------------------

    def _plan_flush(self) -> None:
        if self._done and not self._flush_planned:
            self._flush_planned = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_planned = False
        done, self._done = self._done, []
        if done:
            self.out.write(write_frame(["done", done]))

    async def _report(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(REPORT_S)
            self.lag_s = max(self.lag_s, time.monotonic() - before - REPORT_S)
            state = {
                "in_flight": self.in_flight,
                "queued": len(self.queue),
                "waiting": len(self._waiting),
                "is_down": self.health.is_down,
                "lag_s": round(self.lag_s, 4),
            }
            self.out.write(write_frame(["state", state, dict(self.counts)]))
            if self.health.expired(time.monotonic()) and self.open:
                self._stop(self._outage())

    async def _sync(self) -> None:
        while self.ledger is not None:
            await asyncio.sleep(max(LEAST_SYNC_S, self.config.ledger_sync_s))
            # In a thread: on a shared file system a sync can take long, and the loop must not wait.
            try:
                await asyncio.to_thread(self.ledger.sync)
            except RunStopped as error:
                self._stop(error)
