"""Rates that the user gives are kept to in every minute, and cost next to nothing."""

from __future__ import annotations

import random
from collections import deque
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_sdg.errors import ConfigurationError
from nemo_sdg.llm.rates import MARGIN, Pace, RateLimit

LATE_S = 0.002


def start_all(
    limit: RateLimit, num: int, *, tokens: float = 0.0, late_s: float = LATE_S, seed: int = 0
) -> list[float]:
    """Start requests as soon as allowed, each up to `late_s` late; return when they started."""
    rng = random.Random(seed)
    now, starts = 0.0, []
    for _ in range(num):
        while (wait_s := limit.wait_s(now, tokens)) > 0:
            now += wait_s + rng.uniform(0, late_s)
        limit.started(now, tokens)
        starts.append(now)
    return starts


def most_within(starts: list[float], window_s: float) -> int:
    recent: deque[float] = deque()
    most = 0
    for start in starts:
        recent.append(start)
        while recent[0] <= start - window_s:
            recent.popleft()
        most = max(most, len(recent))
    return most


@pytest.mark.parametrize("seed", range(3))
def test_a_thousand_rows_at_100_a_second(seed: int) -> None:
    starts = start_all(RateLimit(requests_per_minute=6000), 1000, seed=seed)
    assert starts[-1] <= 1.03 * 1000 / 100
    assert most_within(starts, 1.0) <= 100  # a server that counts by the second refuses none


def test_no_limit_never_waits() -> None:
    assert start_all(RateLimit(), 1000, tokens=1e6)[-1] == 0.0


@given(
    per_minute=st.integers(1, 30_000),
    late_s=st.floats(0, 0.05),
    seed=st.integers(0, 99),
    idle=st.lists(st.tuples(st.integers(0, 200), st.floats(0, 90)), max_size=4),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_no_minute_has_more_than_allowed(
    per_minute: int, late_s: float, seed: int, idle: list[tuple[int, float]]
) -> None:
    limit = RateLimit(requests_per_minute=per_minute)
    rng = random.Random(seed)
    pauses = dict(idle)
    now, starts = 0.0, []
    for i in range(250):
        now += pauses.get(i, 0.0)
        while (wait_s := limit.wait_s(now)) > 0:
            now += wait_s + rng.uniform(0, late_s)
        limit.started(now)
        starts.append(now)
    assert most_within(starts, 60.0) <= per_minute
    assert most_within(starts, 1.0) <= max(1, per_minute / 60 + 1)


@given(
    per_minute=st.integers(1000, 1_000_000),
    sizes=st.lists(st.integers(1, 2000), min_size=50, max_size=200),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_tokens_are_reserved_and_corrected(per_minute: int, sizes: list[int], seed: int) -> None:
    limit = RateLimit(tokens_per_minute=per_minute)
    rng = random.Random(seed)
    now, sent = 0.0, []
    for size in sizes:
        while (wait_s := limit.wait_s(now, size)) > 0:
            now += wait_s + rng.uniform(0, LATE_S)
        reserved = limit.started(now, size)
        used = rng.uniform(0.2, 1.0) * size
        limit.ended(reserved, used)
        sent.append((now, used, size))
    for i, (end_s, _, size) in enumerate(sent):
        before = [(s, used) for s, used, _ in sent[:i] if s > end_s - 60]
        # What went before with its real count, this one with its estimate.
        assert not before or sum(used for _, used in before) + size <= per_minute * (1 + 1e-9)


def test_the_real_count_gives_the_time_back() -> None:
    def span_s(used: float) -> float:
        limit = RateLimit(tokens_per_minute=60_000)
        now = 0.0
        for _ in range(300):
            while (wait_s := limit.wait_s(now, 1000)) > 0:
                now += wait_s
            limit.ended(limit.started(now, 1000), used)
        return now

    assert span_s(1000) == pytest.approx(299 / MARGIN, rel=0.02)
    assert span_s(100) < 0.2 * span_s(1000)  # estimates ten times too high cost little
    assert span_s(0) < 1.0  # refused requests used nothing


def test_more_tokens_than_a_minute_allows_are_sent_alone() -> None:
    limit = RateLimit(tokens_per_minute=1000)
    starts = start_all(limit, 3, tokens=5000, late_s=0.0)
    assert all(b - a >= 60 for a, b in pairwise(starts))


def test_both_limits_hold() -> None:
    starts = start_all(RateLimit(requests_per_minute=60, tokens_per_minute=3000), 40, tokens=100)
    assert starts[-1] == pytest.approx(39 * 2 / MARGIN, rel=0.03)  # 30 a minute by tokens
    starts = start_all(RateLimit(requests_per_minute=60, tokens_per_minute=30_000), 40, tokens=100)
    assert starts[-1] == pytest.approx(39 / MARGIN, rel=0.03)


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_a_limit_is_above_0(limit: float) -> None:
    with pytest.raises(ConfigurationError, match="above 0"):
        RateLimit(requests_per_minute=limit)
    with pytest.raises(ConfigurationError, match="above 0"):
        RateLimit(tokens_per_minute=limit)


def ask_at_pace(pace: Pace, rate_of: dict[float, float], until_s: float) -> tuple[int, int]:
    """Ask a server that lets `rate_of` requests a second in, from each time on."""
    now = allowance = refused = sent = 0.0
    seen = 0.0
    while now < until_s:
        now += max(pace.wait_s(now), 1e-4)
        rate = [r for start, r in rate_of.items() if start <= now][-1]
        allowance = min(rate / 10, allowance + (now - seen) * rate)
        seen = now
        pace.started(now)
        sent += 1
        if allowance < 1:
            refused += 1
            pace.refused(now)
        else:
            allowance -= 1
    return int(sent), int(refused)


@pytest.mark.parametrize("first", [50.0, 100.0, 300.0])
def test_a_pace_finds_the_rate(first: float) -> None:
    pace = Pace()
    pace.begin(0.0, first)
    ask_at_pace(pace, {0.0: 100.0}, 20.0)
    assert pace.per_s == pytest.approx(100, rel=0.06)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_pace_follows_the_rate(factor: float) -> None:
    pace = Pace()
    pace.begin(0.0, 100.0)
    sent, refused = ask_at_pace(pace, {0.0: 100.0, 20.0: 100.0 * factor}, 60.0)
    assert refused < 0.02 * sent
    assert sent - refused > 0.9 * (20 * 100 + 40 * 100 * factor)


def test_a_pace_that_is_not_used_does_not_rise() -> None:
    pace = Pace()
    pace.begin(0.0, 100.0)
    for i in range(2000):
        pace.started(i * 0.05)  # 20 a second is all there is
    assert pace.per_s == 100.0
    pace.end()
    assert pace.wait_s(0.0) == 0.0
