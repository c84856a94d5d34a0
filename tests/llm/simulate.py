"""Servers on a virtual clock, and a client that always has more to ask: for tests of control.

    run = simulate(Slots(48), Concurrency(256), seed=1)
    assert run.goodput(10, 70) > 0.9 * best and run.refused_share(10, 70) < 0.03

A server's `schedule` maps a time to a factor, so that its capacity or speed changes in mid-run.
"""

from __future__ import annotations

import heapq
import math
import random
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field

from nemo_sdg.errors import RateLimited, RequestError
from nemo_sdg.llm.control import Concurrency, Ticket

Schedule = Callable[[float], float]
ROUND_TRIP_S = 0.003


def always(_: float) -> float:
    return 1.0


def from_time(start_s: float, factor: float) -> Schedule:
    return lambda now: factor if now >= start_s else 1.0


def between(start_s: float, end_s: float, factor: float) -> Schedule:
    return lambda now: factor if start_s <= now < end_s else 1.0


@dataclass
class Answer:
    """When a request is over, and how."""

    after_s: float
    tokens: int | None = None
    error: RequestError | None = None


class Server:
    """One that takes everything at once: `latency_s` is lognormal, without usage."""

    def __init__(
        self,
        *,
        median_s: float = 0.25,
        sigma: float = 0.8,
        capacity: Schedule = always,
        speed: Schedule = always,
    ) -> None:
        self.median_s, self.sigma = median_s, sigma
        self.capacity, self.speed = capacity, speed

    def latency_s(self, now: float, rng: random.Random) -> float:
        return self.median_s * math.exp(self.sigma * rng.gauss(0, 1)) / self.speed(now)

    def arrive(self, now: float, rng: random.Random) -> Answer:
        return Answer(self.latency_s(now, rng))

    def left(self, now: float) -> None:
        """A request that was taken is over."""


class Slots(Server):
    """`slots` at once, 429 above it."""

    def __init__(self, slots: int, *, retry_after_s: float | None = 1.0, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.slots, self.retry_after_s, self.running = slots, retry_after_s, 0

    def arrive(self, now: float, rng: random.Random) -> Answer:
        if self.running >= self.slots * self.capacity(now):
            error = RateLimited(status=429, retry_after_s=self.retry_after_s)
            return Answer(ROUND_TRIP_S, error=error)
        self.running += 1
        return Answer(self.latency_s(now, rng))

    def left(self, now: float) -> None:
        self.running -= 1


class Rate(Server):
    """`per_s` requests a second after a burst of one second's worth, 429 above it."""

    def __init__(self, per_s: float, *, whole_seconds: bool = False, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.per_s, self.whole_seconds = per_s, whole_seconds
        self.allowance, self.seen_s = per_s, 0.0

    def arrive(self, now: float, rng: random.Random) -> Answer:
        rate = self.per_s * self.capacity(now)
        self.allowance = min(rate, self.allowance + (now - self.seen_s) * rate)
        self.seen_s = now
        if self.allowance < 1:
            wait_s = (1 - self.allowance) / rate
            after = math.ceil(wait_s) if self.whole_seconds else wait_s
            return Answer(ROUND_TRIP_S, error=RateLimited(status=429, retry_after_s=after))
        self.allowance -= 1
        return Answer(self.latency_s(now, rng))


class Flaky(Slots):
    """Drops a share of everything with 429, whatever the load."""

    def __init__(self, slots: int, share: float, **options: object) -> None:
        super().__init__(slots, **options)  # type: ignore[arg-type]
        self.share = share

    def arrive(self, now: float, rng: random.Random) -> Answer:
        if rng.random() < self.share:
            error = RateLimited(status=429, retry_after_s=self.retry_after_s)
            return Answer(ROUND_TRIP_S, error=error)
        return super().arrive(now, rng)


class Queue(Server):
    """`slots` at once, the others wait in line without bound; never 429, no usage."""

    def __init__(self, slots: int, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.free_s = [0.0] * slots

    def arrive(self, now: float, rng: random.Random) -> Answer:
        start = max(now, heapq.heappop(self.free_s))
        end = start + self.latency_s(now, rng)
        heapq.heappush(self.free_s, end)
        return Answer(end - now)


class Batching(Server):
    """Continuous batching: n requests share `slots * tokens_per_s * min(1, n / slots)`; never 429.

    With `is_smooth` they share `slots * tokens_per_s * n / (n + slots)`: each more slows all.
    """

    def __init__(
        self,
        slots: int,
        *,
        tokens_per_s: float = 50.0,
        median_tokens: float = 25.0,
        first_token_s: float = 0.05,
        is_smooth: bool = False,
        **options: object,
    ) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.slots, self.tokens_per_s = slots, tokens_per_s
        self.median_tokens, self.first_token_s = median_tokens, first_token_s
        self.is_smooth = is_smooth

    def num_tokens(self, rng: random.Random) -> int:
        return max(1, round(self.median_tokens * math.exp(self.sigma * rng.gauss(0, 1))))

    def token_speed(self, running: int, now: float) -> float:
        """Tokens per second of each of `running` requests."""
        slots = self.slots * self.capacity(now)
        share = slots / (running + slots) if self.is_smooth else min(1.0, slots / max(1, running))
        return self.tokens_per_s * self.speed(now) * share


@dataclass
class Run:
    """What a simulated run did."""

    ended_s: list[float] = field(default_factory=list)
    worth: list[float] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    limits: list[tuple[float, int]] = field(default_factory=list)
    starts_s: list[float] = field(default_factory=list)

    def goodput(self, start_s: float, end_s: float) -> float:
        """Tokens (or requests) per second."""
        first, last = bisect_left(self.ended_s, start_s), bisect_left(self.ended_s, end_s)
        return sum(self.worth[first:last]) / (end_s - start_s)

    def refused_share(self, start_s: float, end_s: float) -> float:
        refused = sum(start_s <= t < end_s for t in self.refused_s)
        answered = sum(start_s <= t < end_s for t in self.ended_s)
        return refused / max(1, refused + answered)

    def limit_at(self, time_s: float) -> int:
        return self.limits[max(0, bisect_left(self.limits, (time_s, 0)) - 1)][1]


def simulate(
    server: Server,
    control: Concurrency,
    *,
    seed: int,
    start_s: float = 0.0,
    until_s: float = 70.0,
) -> Run:
    """Ask without end; a refused request comes back like any other, its wait holds no slot."""
    client = _Client(server, control, random.Random(seed))
    return client.run(start_s, until_s)


class _Client:
    def __init__(self, server: Server, control: Concurrency, rng: random.Random) -> None:
        self.server, self.control, self.rng = server, control, rng
        self.record = Run()
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.number = 0
        self.wake_s = math.inf
        # Batching: tokens that a request would have had it run from the start, and who waits.
        self.done, self.done_s = 0.0, 0.0
        self.batch: list[tuple[float, int, Ticket, int]] = []
        self.version = 0

    def at(self, time_s: float, what: Callable[[float], None]) -> None:
        self.number += 1
        heapq.heappush(self.events, (time_s, self.number, what))

    def run(self, start_s: float, until_s: float) -> Run:
        self.done_s = start_s
        self.pump(start_s)
        while self.events and self.events[0][0] <= until_s:
            now, _, what = heapq.heappop(self.events)
            what(now)
            self.pump(now)
        return self.record

    def pump(self, now: float) -> None:
        while (wait_s := self.control.wait_s(now)) <= 1e-9:
            self.send(now)
        if now + wait_s < self.wake_s:
            self.wake_s = now + wait_s
            self.at(self.wake_s, self.woken)
        limits = self.record.limits
        if not limits or limits[-1][1] != self.control.limit:
            limits.append((now, self.control.limit))

    def woken(self, now: float) -> None:
        self.wake_s = math.inf

    def send(self, now: float) -> None:
        ticket = self.control.started(now)
        self.record.starts_s.append(now)
        if isinstance(self.server, Batching):
            tokens = self.server.num_tokens(self.rng)
            self.at(now + self.server.first_token_s, lambda then: self.join(then, ticket, tokens))
            return
        answer = self.server.arrive(now, self.rng)
        self.at(now + answer.after_s, lambda then: self.end(then, ticket, answer))

    def end(self, now: float, ticket: Ticket, answer: Answer) -> None:
        record = self.record
        if answer.error is not None:
            record.refused_s.append(now)
        else:
            self.server.left(now)
            record.ended_s.append(now)
            record.worth.append(float(answer.tokens or 1))
            record.latencies_s.append(now - ticket.started_s)
        self.control.ended(now, ticket, tokens=answer.tokens, error=answer.error)
        assert 1 <= self.control.limit <= self.control.maximum

    # --- batching --------------------------------------------------------------------------------

    def speed(self, now: float) -> float:
        assert isinstance(self.server, Batching)
        return self.server.token_speed(len(self.batch), now)

    def flow(self, now: float) -> None:
        # A schedule takes effect at the next event: there are hundreds a second.
        self.done += (now - self.done_s) * self.speed(self.done_s) if self.batch else 0.0
        self.done_s = now

    def join(self, now: float, ticket: Ticket, tokens: int) -> None:
        self.flow(now)
        self.number += 1
        heapq.heappush(self.batch, (self.done + tokens, self.number, ticket, tokens))
        self.plan(now)

    def plan(self, now: float) -> None:
        self.version += 1
        if self.batch:
            version = self.version
            wait_s = max(0.0, self.batch[0][0] - self.done) / self.speed(now)
            self.at(now + wait_s, lambda then: self.finish(then, version))

    def finish(self, now: float, version: int) -> None:
        if version != self.version:
            return
        self.flow(now)
        while self.batch and self.batch[0][0] <= self.done + 1e-6:
            _, _, ticket, tokens = heapq.heappop(self.batch)
            self.end(now, ticket, Answer(0.0, tokens=tokens))
        self.plan(now)
