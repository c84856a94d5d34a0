"""The number of requests in flight is found by itself, for servers of every kind."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulate import (
    Batching,
    Flaky,
    Queue,
    Rate,
    Run,
    Server,
    Slots,
    between,
    from_time,
    simulate,
)

from nemo_sdg.errors import (
    BadRequest,
    ConnectionFailed,
    RateLimited,
    RequestTimeout,
    ServerFailure,
)
from nemo_sdg.llm.control import Concurrency, Ticket
from nemo_sdg.llm.search import Phase

RAMP_S, END_S, CHANGE_S = 10.0, 70.0, 40.0
MEAN_S = 0.25 * math.exp(0.8**2 / 2)  # latency of the simulated servers

# A server, and the fixed limits among which the best is looked for.
SERVERS: dict[str, tuple[Callable[[], Server], tuple[int, ...]]] = {
    "48 slots": (lambda: Slots(48), (44, 48, 52)),
    "48 slots, no Retry-After": (lambda: Slots(48, retry_after_s=None), (48,)),
    "100 a second": (lambda: Rate(100), (34, 36, 40)),
    "batching": (lambda: Batching(32), (32, 64)),
    "queue without usage": (lambda: Queue(48), (48, 96)),
    "slots halve": (lambda: Slots(48, capacity=from_time(CHANGE_S, 0.5)), (24, 48)),
    "batching halves": (lambda: Batching(64, capacity=from_time(CHANGE_S, 0.5)), (64,)),
    "rate halves": (lambda: Rate(100, capacity=from_time(CHANGE_S, 0.5)), (34, 36)),
    "slots double": (lambda: Slots(48, capacity=from_time(CHANGE_S, 2)), (96,)),
    "batching doubles": (lambda: Batching(32, capacity=from_time(CHANGE_S, 2)), (64, 80)),
    "rate doubles": (lambda: Rate(100, capacity=from_time(CHANGE_S, 2)), (72, 80)),
    "slots slow down": (lambda: Slots(48, speed=from_time(CHANGE_S, 0.4)), (48,)),
    "batching slows down": (lambda: Batching(32, speed=from_time(CHANGE_S, 0.4)), (32, 64)),
    "rate slows down": (lambda: Rate(100, speed=from_time(CHANGE_S, 0.4)), (36, 90)),
}


@cache
def best_fixed(name: str) -> float:
    make, limits = SERVERS[name]
    runs = (simulate(make(), Concurrency.fixed(n), seed=0, until_s=END_S) for n in limits)
    return max(run.goodput(RAMP_S, END_S) for run in runs)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", SERVERS)
def test_capacity_is_found_and_followed(name: str, seed: int) -> None:
    run = simulate(SERVERS[name][0](), Concurrency(256), seed=seed, until_s=END_S)
    assert run.goodput(RAMP_S, END_S) >= 0.9 * best_fixed(name)
    assert run.refused_share(RAMP_S, END_S) < 0.03


@pytest.mark.parametrize("slots, median_s", [(6, 0.25), (20, 0.25), (150, 0.25), (48, 2.0)])
def test_servers_of_other_sizes_and_speeds(slots: int, median_s: float) -> None:
    server = Slots(slots, median_s=median_s)
    run = simulate(server, Concurrency(256), seed=0, until_s=END_S)
    mean_s = MEAN_S * median_s / 0.25
    assert run.goodput(2 * RAMP_S, END_S) > 0.7 * slots / mean_s
    assert run.refused_share(2 * RAMP_S, END_S) < 0.03


def test_a_batching_server_is_not_filled_up_for_nothing() -> None:
    run = simulate(Batching(32), Concurrency(1024), seed=0, until_s=END_S)
    assert run.limit_at(END_S) <= 64
    run = simulate(Queue(48), Concurrency(1024), seed=0, until_s=END_S)
    assert run.limit_at(END_S) <= 4 * 48


def test_rising_latency_alone_is_no_reason_to_shrink() -> None:
    run = simulate(Batching(32, is_smooth=True), Concurrency(256), seed=0, until_s=END_S)
    best = simulate(Batching(32, is_smooth=True), Concurrency.fixed(256), seed=0, until_s=END_S)
    assert run.limit_at(30) > 64
    assert run.goodput(RAMP_S, END_S) >= 0.9 * best.goodput(RAMP_S, END_S)


def test_an_endpoint_without_bound_gets_all_that_is_allowed() -> None:
    run = simulate(Server(), Concurrency(64), seed=0, until_s=20.0)
    assert run.limit_at(20.0) == 64
    assert run.goodput(5, 20) > 0.9 * 64 / MEAN_S


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_own_refusals_do_not_shrink_it_to_nothing(seed: int) -> None:
    run = simulate(Flaky(64, 0.05), Concurrency(256), seed=seed, until_s=END_S)
    assert run.goodput(RAMP_S, END_S) > 0.5 * 64 / MEAN_S


class Storm(Slots):
    """Refuses everything for a while."""

    def __init__(self, start_s: float, end_s: float, *, retry_after_s: float | None) -> None:
        open_ = between(start_s, end_s, 0.0)
        super().__init__(48, retry_after_s=retry_after_s, capacity=open_)


@pytest.mark.parametrize("retry_after_s", [None, 0.5, 3.0])
@pytest.mark.parametrize("length_s", [0.3, 5.0, 30.0])
def test_a_storm_of_429_is_soon_forgotten(length_s: float, retry_after_s: float | None) -> None:
    end_s = 20.0 + length_s
    server = Storm(20.0, end_s, retry_after_s=retry_after_s)
    run = simulate(server, Concurrency(256), seed=0, until_s=end_s + 20)
    # It is tried again at least every 8 s, or when the server said.
    gaps = [b - a for a, b in pairwise(run.starts_s)]
    assert max(gaps) < 8.5
    back_s = end_s + max(8.0, retry_after_s or 0.0) + 4.0
    assert run.goodput(back_s, end_s + 20) > 0.7 * run.goodput(10, 20)
    # And it is no storm of ours.
    in_storm = sum(20.0 <= t < end_s for t in run.refused_s)
    assert in_storm < 70 + 4 * length_s


@pytest.mark.parametrize("limit", [Concurrency(256), Concurrency.fixed(8)])
def test_retry_after_is_obeyed(limit: Concurrency) -> None:
    tickets = [limit.started(0.0) for _ in range(3)]
    for ticket in tickets:
        limit.ended(1.0, ticket, error=RateLimited(retry_after_s=20.0))
    assert limit.wait_s(1.0) == pytest.approx(20.0)
    assert limit.wait_s(11.0) == pytest.approx(10.0)
    assert limit.wait_s(21.0) == 0.0


def test_retry_after_of_one_does_not_stop_those_that_get_in() -> None:
    control = Concurrency(64)
    tickets = [control.started(0.0) for _ in range(8)]
    control.ended(0.1, tickets[0], error=RateLimited(retry_after_s=20.0))
    assert control.limit == 7
    assert control.wait_s(0.1) == math.inf  # seven are in flight: the endpoint is full
    control.ended(0.2, tickets[1], tokens=10)
    assert control.wait_s(0.2) == 0.0
    for _ in range(4):  # what is sent instead is refused as well: now it is meant for all
        control.ended(0.3, control.started(0.25), error=RateLimited(retry_after_s=20.0))
    control.ended(0.4, tickets[2], tokens=10)
    control.ended(0.4, tickets[3], tokens=10)
    assert control.wait_s(0.4) == pytest.approx(19.9)


def test_without_retry_after_pauses_grow_and_end() -> None:
    control = Concurrency(64)
    now, pauses = 0.0, []
    for _ in range(12):
        control.ended(now + 0.01, control.started(now), error=RateLimited())
        pauses.append(control.wait_s(now + 0.01))
        now += 0.01 + pauses[-1]
    assert all(b > 0.99 * a for a, b in pairwise(pauses))
    assert pauses[0] <= 0.1
    assert pauses[-1] == pytest.approx(8.0)
    control.ended(now + 0.1, control.started(now))
    assert control.wait_s(now + 0.1) == 0.0


@pytest.mark.parametrize(
    "error", [BadRequest(), ConnectionFailed(), ServerFailure(status=500)], ids=lambda e: e.code
)
def test_errors_of_rows_change_nothing(error: BadRequest) -> None:
    control = Concurrency(64)
    tickets = [control.started(0.0) for _ in range(8)]
    for ticket in tickets:
        control.ended(0.1, ticket, error=error)
    assert (control.limit, control.in_flight, control.wait_s(0.1)) == (8, 0, 0.0)


@pytest.mark.parametrize("bad", ["timeout", "503", "late", "429"])
def test_overload_shrinks(bad: str) -> None:
    control = Concurrency(64, start=32, first_token_bound_s=2.0)
    now = 0.0
    for _ in range(30):
        tickets = []
        while control.wait_s(now) == 0:
            tickets.append(control.started(now))
        now += 10.0
        for ticket in tickets:
            if bad == "timeout":
                control.ended(now, ticket, error=RequestTimeout())
            elif bad == "503":
                control.ended(now, ticket, error=ServerFailure(status=503))
            elif bad == "429":
                control.ended(now, ticket, error=RateLimited())
            else:
                control.ended(now, ticket, tokens=10, first_token_s=5.0)
    assert control.limit == 1


def test_first_tokens_in_time_do_no_harm() -> None:
    control = Concurrency(64, first_token_bound_s=2.0)
    tickets = [control.started(0.0) for _ in range(8)]
    for i, ticket in enumerate(tickets):
        control.ended(1.0 + i / 10, ticket, tokens=10, first_token_s=1.0)
    assert control.limit >= 8


def test_fixed_stays_where_it_is() -> None:
    run = simulate(Server(), Concurrency.fixed(48), seed=0, until_s=20.0)
    assert {limit for _, limit in run.limits} == {48}
    control = Concurrency.fixed(8)
    control.ended(600.0, control.started(0.0), error=RequestTimeout())
    assert control.limit == 8
    control.maximum = 4  # a lease that shrinks
    assert control.limit == 4
    control.maximum = 16
    assert control.limit == 16


def test_fixed_above_what_the_endpoint_holds_is_no_storm() -> None:
    run = simulate(Slots(48), Concurrency.fixed(60), seed=0, until_s=30.0)
    assert run.refused_share(0, 30) < 0.25
    assert run.goodput(0, 30) > 0.95 * 48 / MEAN_S


def test_a_lease_bounds_the_limit_at_once() -> None:
    control = Concurrency(256, start=64)
    control.maximum = 10
    assert control.limit == 10
    assert control.phase is Phase.REST
    tickets = [control.started(0.0) for _ in range(10)]
    assert control.wait_s(0.0) == math.inf
    control.maximum = 5
    for ticket in tickets[:5]:
        control.ended(1.0, ticket, tokens=5)
    assert control.wait_s(1.0) == math.inf  # five are still in flight
    control.abandoned(1.0)
    assert control.wait_s(1.0) == 0.0


def test_too_little_to_do_is_no_reason_to_grow() -> None:
    control = Concurrency(256)
    for second in range(500):
        control.ended(second + 0.5, control.started(float(second)), tokens=10)
    assert control.limit == 8


def test_usage_that_is_not_told_counts_as_the_mean() -> None:
    def limits(tokens: Callable[[int], int | None]) -> Run:
        server = Batching(32)
        told = server.num_tokens
        count = iter(range(10**9))
        run = Concurrency(256)
        ended = run.ended

        def hide(now: float, ticket: Ticket, **what: int | None) -> None:
            what["tokens"] = tokens(next(count)) and what["tokens"]
            ended(now, ticket, **what)  # type: ignore[arg-type]

        run.ended = hide  # type: ignore[method-assign, assignment]
        server.num_tokens = told  # type: ignore[method-assign]
        return simulate(server, run, seed=0, until_s=40.0)

    all_told = limits(lambda i: 1).goodput(RAMP_S, 40)
    assert limits(lambda i: i % 2 or None).goodput(RAMP_S, 40) > 0.9 * all_told
    assert limits(lambda i: None).goodput(RAMP_S, 40) > 0.85 * all_told


OUTCOMES = [None, None, None, RateLimited(), RateLimited(retry_after_s=2.0), RequestTimeout()]


@given(
    maximum=st.integers(1, 24),
    start=st.integers(1, 300),
    seed=st.integers(0, 10_000),
    badness=st.floats(0, 1),
    leases=st.lists(st.integers(1, 24), max_size=3),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_whatever_happens_it_stays_within_bounds_and_recovers(
    maximum: int, start: int, seed: int, badness: float, leases: list[int]
) -> None:
    rng = random.Random(seed)
    control = Concurrency(maximum, start=start)
    running: list[Ticket] = []
    now = 0.0
    for step in range(500):
        if leases and step % 150 == 149:
            control.maximum = leases[step // 150 % len(leases)]
        while len(running) < 400 and control.wait_s(now) == 0:
            running.append(control.started(now))
        wait_s = control.wait_s(now)
        assert running or 0 < wait_s <= 8.01  # never stuck with nothing to wait for
        now += wait_s if not running else rng.expovariate(20.0)
        if running:
            ticket = running.pop(rng.randrange(len(running)))
            error = rng.choice(OUTCOMES) if rng.random() < badness else None
            control.ended(now, ticket, tokens=rng.randrange(100), error=error)
        assert 1 <= control.limit <= control.maximum
        assert control.in_flight == len(running)
    for ticket in running:
        now += 0.01
        control.ended(now, ticket, tokens=10)
    # From here on the endpoint takes everything: it does not stay where the storm left it.
    wanted = min(control.maximum, 8)
    run = simulate(Server(), control, seed=seed, start_s=now, until_s=now + 100.0)
    assert run.goodput(now + 80, now + 100) > 0.5 * wanted / MEAN_S
