"""When a request is sent again: on types, without words, without a clock."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_sdg.errors import (
    BadRequest,
    ConnectionFailed,
    ContextExceeded,
    MalformedReply,
    RateLimited,
    RequestError,
    RequestTimeout,
    ServerFailure,
    Unauthorized,
    UnknownModel,
)
from nemo_sdg.llm.protocol import error_for
from nemo_sdg.llm.retry import FATAL, TRANSIENT, RetryPolicy, Tries, verdict

FINAL = (BadRequest, ContextExceeded, Unauthorized, UnknownModel)
Decide = Callable[[RequestError, int], float | None]

draws = st.floats(0, 1)
waits = st.none() | st.floats(0, 1000)
policies = st.builds(
    RetryPolicy,
    max_tries=st.integers(1, 12),
    base_wait_s=st.floats(0.001, 10),
    max_wait_s=st.floats(0.001, 100),
)
transient = st.builds(
    lambda kind, wait: kind("x", retry_after_s=wait), st.sampled_from(TRANSIENT), waits
)
counted = transient.filter(lambda error: not isinstance(error, RateLimited))


def decide(error: RequestError, tries: int) -> float | None:
    return RetryPolicy().wait_s(error, tries, 1.0)


@given(policies, st.sampled_from(FINAL), st.integers(0, 20), draws)
def test_what_cannot_help_is_never_sent_again(
    policy: RetryPolicy, kind: type[RequestError], tries: int, draw: float
) -> None:
    assert policy.wait_s(kind("x", retry_after_s=1.0), tries, draw) is None


@given(policies, counted, draws)
def test_never_more_tries_than_allowed(
    policy: RetryPolicy, error: RequestError, draw: float
) -> None:
    tries = 1
    while policy.wait_s(error, tries, draw) is not None:
        tries += 1
        assert tries <= policy.max_tries
    assert tries == policy.max_tries


@given(policies, waits, st.integers(0, 100), draws)
def test_patience_is_not_counted_in_tries(
    policy: RetryPolicy, wait: float | None, tries: int, draw: float
) -> None:
    assert policy.wait_s(RateLimited("x", retry_after_s=wait), tries, draw) is not None


@given(policies, transient, st.integers(0, 11), draws, st.integers(0, 50))
def test_a_wait_is_bounded_on_both_sides(
    policy: RetryPolicy, error: RequestError, tries: int, draw: float, refusals: int
) -> None:
    wait_s = policy.wait_s(error, tries, draw, refusals=refusals)
    if wait_s is None:
        return
    asked = error.retry_after_s or 0.0
    if asked:
        assert asked <= wait_s <= asked + 0.1
    else:
        assert 0 <= wait_s <= policy.max_wait_s


def test_the_wait_grows_and_ends_at_the_ceiling() -> None:
    policy = RetryPolicy(max_tries=100)
    waits_s = [policy.wait_s(ServerFailure(), tries, 1.0) for tries in range(1, 12)]
    assert waits_s == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert policy.wait_s(ServerFailure(), 90, 1.0) == 60
    refused = [policy.wait_s(RateLimited(), 0, 1.0, refusals=n) for n in (1, 2, 3, 20)]
    assert refused == [0.5, 1, 2, 60]


@pytest.mark.row("F1")
@pytest.mark.fault(3)
def test_a_400_that_mentions_a_rate_is_sent_once() -> None:
    def check(decide: Decide) -> None:
        for text in (b"Cannot generate from these parameters", b"not accurate", b"separate"):
            assert decide(error_for(400, {}, text), 1) is None

    def by_words(error: RequestError, tries: int) -> float | None:
        return 1.0 if "rate" in str(error).lower() and tries < 4 else None

    check(decide)
    with pytest.raises(AssertionError):
        check(by_words)


@pytest.mark.fault(4)
def test_time_outs_and_server_errors_are_sent_again_in_one_place_only() -> None:
    def check(decide: Decide) -> None:
        failures = [
            error_for(500, {}, b""),
            error_for(503, {}, b"busy"),
            RequestTimeout("no answer"),
            ConnectionFailed("reset"),
        ]
        for error in failures:
            requests = 1
            while decide(error, requests) is not None:
                requests += 1
            assert requests == 6

    def by_words(error: RequestError, tries: int) -> float | None:
        return 1.0 if "429" in str(error) and tries < 4 else None

    check(decide)
    with pytest.raises(AssertionError):
        check(by_words)


@pytest.mark.fault(7)
def test_retry_after_is_obeyed() -> None:
    def check(decide: Decide) -> None:
        for seconds in (2, 90):
            wait_s = decide(error_for(429, {"Retry-After": str(seconds)}, b""), 1)
            assert wait_s is not None
            assert wait_s >= seconds
        for tries in range(40):
            assert (decide(error_for(429, {}, b""), tries) or 0) <= 60

    def deaf(error: RequestError, tries: int) -> float | None:
        return 1.0 * 2**tries

    check(decide)
    with pytest.raises(AssertionError):
        check(deaf)


def test_every_transport_error_is_either_or() -> None:
    assert not set(TRANSIENT) & set(FINAL)
    assert set(FATAL) <= set(FINAL)
    assert MalformedReply in TRANSIENT


def test_whose_an_error_is() -> None:
    def whose(error: RequestError, *, is_own_model: bool = True, has_answered: bool = False) -> str:
        return verdict(error, is_own_model=is_own_model, has_answered=has_answered)

    assert whose(error_for(401, {}, b""), has_answered=True) == "run"
    assert whose(error_for(429, {}, b'{"error":{"code":"insufficient_quota"}}')) == "run"
    assert whose(error_for(404, {}, b""), has_answered=True) == "run"
    assert whose(error_for(404, {}, b""), is_own_model=False) == "row"
    assert whose(error_for(403, {}, b"")) == "open"
    assert whose(error_for(403, {}, b""), has_answered=True) == "row"
    for kind in set(TRANSIENT) | set(FINAL) - set(FATAL):
        assert whose(kind("x", status=400)) == "row"


# --- one request outside of an engine ---------------------------------------


@given(st.lists(transient, max_size=60), draws)
def test_tries_end(errors: list[RequestError], draw: float) -> None:
    tries, now, counted_errors = Tries(RetryPolicy(), patience_s=600.0), 0.0, 0
    for error in errors:
        counted_errors += not isinstance(error, RateLimited)
        try:
            now += tries.wait_s(error, now, draw)
        except RequestError as raised:
            assert raised is error
            assert counted_errors == 6 or isinstance(error, RateLimited)
            return
        assert counted_errors < 6
    assert tries.failed == len(errors)


def test_patience_ends_by_the_clock() -> None:
    tries = Tries(RetryPolicy(), patience_s=600.0)
    for now in (0.0, 100.0, 599.0):
        tries.wait_s(RateLimited(), now, 0.5)
    with pytest.raises(RateLimited):
        tries.wait_s(RateLimited(), 601.0, 0.5)
    with pytest.raises(RateLimited):
        Tries(RetryPolicy(), patience_s=600.0).wait_s(RateLimited(retry_after_s=700.0), 0.0, 0.5)
