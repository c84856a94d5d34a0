"""Outages and failing rows are told apart; a wrong prompt is not paid for a million times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_sdg.errors import (
    BadRequest,
    ConnectionFailed,
    MalformedReply,
    RateLimited,
    RequestError,
    RequestTimeout,
    ServerFailure,
    TooManyFailures,
)
from nemo_sdg.llm.limits import FailureGuard, FailureRule, Health

OUTAGES = (ConnectionFailed, RequestTimeout, ServerFailure)


def failing(health: Health, count: int, now: float = 0.0) -> None:
    for _ in range(count):
        health.failed(ConnectionFailed("refused"), now)


def test_from_suspicion_to_the_end() -> None:
    health = Health(max_outage_s=600)
    failing(health, 4, now=10.0)
    assert not health.is_suspect
    failing(health, 1, now=11.0)
    assert health.is_suspect
    assert not health.is_down
    assert health.next_probe_s() == 0
    health.probed(alive=False)
    assert health.is_down
    assert not health.expired(610.0)
    assert health.expired(610.1)  # counted from the first failure, not from the probe
    assert isinstance(health.last_error, ConnectionFailed)


def test_probes_become_rarer() -> None:
    health = Health()
    failing(health, 5)
    waits = []
    for _ in range(7):
        waits.append(health.next_probe_s())
        health.probed(alive=False)
    assert waits == [0, 1, 2, 4, 8, 15, 15]


@pytest.mark.parametrize("sign", ["probe", "answer", "declined"])
def test_a_sign_of_life_clears_everything(sign: str) -> None:
    health = Health()
    failing(health, 9)
    health.probed(alive=False)
    if sign == "probe":
        health.probed(alive=True)
    elif sign == "answer":
        health.answered()
    else:
        health.failed(BadRequest("too long"), 1.0)
    assert not health.is_suspect
    assert not health.is_down
    assert not health.expired(1e9)
    failing(health, 4)
    assert not health.is_suspect


def test_an_endpoint_that_answers_probes_is_never_expired() -> None:
    health = Health()
    for second in range(0, 10_000, 10):
        failing(health, 320, now=float(second))
        assert health.is_suspect
        health.probed(alive=True)
        assert not health.expired(float(second))


def test_nothing_but_429_is_an_outage_in_the_end() -> None:
    health = Health(max_outage_s=600)
    for second in range(0, 601, 10):
        health.failed(RateLimited("wait"), float(second))
        assert not health.is_suspect
        assert not health.expired(float(second))
    assert health.expired(601.0)
    health.answered()
    assert not health.expired(601.0)


def test_a_429_before_a_time_of_rest_is_no_outage() -> None:
    health = Health(max_outage_s=600)
    health.failed(RateLimited("wait"), 0.0)
    assert health.expired(601.0)
    health.begins_again(601.0)
    assert not health.expired(601.0)
    health.failed(RateLimited("wait"), 602.0)
    assert not health.expired(1202.0)
    assert health.expired(1203.0)


def test_an_outage_is_counted_from_when_something_is_asked_again() -> None:
    health = Health(max_outage_s=600)
    failing(health, 5, now=0.0)
    health.probed(alive=False)
    health.begins_again(5000.0)
    assert health.is_down
    assert not health.expired(5600.0)
    assert health.expired(5600.1)


def test_a_probe_that_is_answered_is_a_trial_and_no_more() -> None:
    health = Health()
    assert health.room(256) == 256
    failing(health, 5)
    rooms, waits = [], []
    for _ in range(9):
        assert health.room(256) == 0
        waits.append(health.next_probe_s())
        health.probed(alive=True)
        rooms.append(health.room(256))
        failing(health, rooms[-1])
        while not health.is_suspect:  # more than fit in at a time: they come one after the other
            failing(health, 1)
    assert rooms == [5, 10, 20, 40, 80, 160, 256, 256, 256]
    assert waits == [0, 0.25, 0.5, 1, 2, 4, 4, 4, 4]
    health.probed(alive=True)
    assert health.room(3) == 3
    health.answered()
    assert health.room(256) == 256
    failing(health, 5)
    assert (health.is_suspect, health.next_probe_s()) == (True, 0)


def test_a_broken_body_is_neither_a_sign_of_life_nor_of_death() -> None:
    health = Health()
    failing(health, 4)
    for _ in range(9):
        health.failed(MalformedReply("half"), 0.0)
    assert not health.is_suspect
    failing(health, 1)
    assert health.is_suspect


events = st.lists(st.sampled_from(["answer", *OUTAGES, RateLimited, BadRequest, MalformedReply]))


@given(events, st.integers(1, 4))
def test_one_bad_row_among_good_ones_makes_no_outage(
    rows: list[str | type[RequestError]], run: int
) -> None:
    # The bad row fails up to four times in a row; between two such runs another row succeeds.
    health = Health()
    for row in rows:
        for _ in range(run):
            if isinstance(row, str):
                health.answered()
            else:
                health.failed(row("x"), 0.0)
        health.answered()
        assert not health.is_suspect
        assert not health.is_down
        assert not health.expired(1e9)


@given(events, st.floats(0, 1e6))
def test_only_a_failed_probe_makes_it_down(
    rows: list[str | type[RequestError]], now: float
) -> None:
    health = Health()
    for row in rows:
        if isinstance(row, str):
            health.answered()
        else:
            health.failed(row("x"), now)
        assert not health.is_down


# --- rows that fail for one reason ---------------------------------------


def guarded(outcomes: list[str | None], rule: FailureRule | None = None) -> int | None:
    """Return the number of the row that was one too many, None where none was."""
    guard = FailureGuard(rule or FailureRule())
    for number, outcome in enumerate(outcomes, 1):
        try:
            guard.record("task", outcome)
        except TooManyFailures:
            return number
    return None


def test_a_wrong_prompt_ends_the_run_at_the_fiftieth_row() -> None:
    assert guarded(["prefix_missing"] * 49) is None
    assert guarded(["prefix_missing"] * 1000) == 50


def test_the_share_is_more_than_and_not_at_least() -> None:
    fifth = [None, None, None, None, "length"]
    assert guarded(fifth * 200) is None
    assert guarded([*fifth * 200, "length"]) == 1001  # 201 of 1001 is above a fifth


def test_reasons_are_counted_apart() -> None:
    # A third fail, each reason for itself in less than a fifth of the rows.
    assert guarded(["length", "refused", None, None, None, None] * 200) is None


def test_tasks_are_counted_apart() -> None:
    guard = FailureGuard()
    for _ in range(400):
        guard.record("good", None)
    with pytest.raises(TooManyFailures, match="50 of 50 rows of bad failed with 'length'"):
        for _ in range(50):
            guard.record("bad", "length")


def test_another_computation_is_judged_by_its_own_rows() -> None:
    guard = FailureGuard()
    with pytest.raises(TooManyFailures):
        for _ in range(50):
            guard.record("task", "prefix_missing")
    assert guard.is_broken
    guard.forget()
    for _ in range(49):
        guard.record("task", "prefix_missing")
    assert not guard.is_broken
    assert (guard.num_rows, guard.num_failures) == (99, 99)


@given(st.lists(st.none() | st.sampled_from(["a", "b"]), max_size=120))
def test_the_rule_is_the_rule(outcomes: list[str | None]) -> None:
    rule = FailureRule(max_share=0.3, min_rows=20)
    expected = None
    for number in range(1, len(outcomes) + 1):
        reason = outcomes[number - 1]
        seen = outcomes[:number].count(reason)
        if reason is not None and number >= 20 and seen > 0.3 * number:
            expected = number
            break
    assert guarded(outcomes, rule) == expected
