"""Leases: pure, with time handed in and messages that arrive late or never."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_sdg.llm.leases import KEPT_S, LEASE_S, LeaseBook, LeaseOffice, Report, Terms


@dataclass
class Worker:
    """An engine that obeys its lease; what it hears may be late."""

    name: str
    queued: int = 0
    heard: int = 0
    slots: int = 0
    in_flight: int = 0
    until_s: float = -1.0
    allowed: float = 0.0
    requests: float = 0.0
    unheard: list[tuple[float, Any]] = field(default_factory=list)

    def report(self) -> Report:
        return Report(
            holder=self.name,
            worker=self.name,
            heard=self.heard,
            in_flight={"0": self.in_flight},
            wanted=self.queued + self.in_flight,
            spent={"requests": self.requests},
            kept={"0": self.slots},
        )

    def give_up(self) -> None:
        self.slots = min(self.slots, self.queued + self.in_flight)

    def hear(self) -> None:
        if self.unheard:
            sent_s, lease = self.unheard.pop(0)
            self.heard, self.slots = lease.number, lease.slots["0"]
            self.allowed = lease.allowed.get("requests", self.allowed)
            self.until_s = max(self.until_s, sent_s + lease.ttl_s)

    def start(self, now: float, *, has_cap: bool) -> None:
        while (
            self.queued
            and now <= self.until_s
            and self.in_flight < self.slots
            and (not has_cap or self.requests < self.allowed)
        ):
            self.queued -= 1
            self.in_flight += 1
            self.requests += 1


LONGEST_S = 60.0


def terms(slots: Mapping[str, int], caps: Mapping[str, float] = {}) -> Terms:
    return Terms(slots=slots, caps=caps, longest_s=LONGEST_S)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    total=st.integers(1, 40),
    count=st.integers(1, 5),
    cap=st.none() | st.integers(1, 60),
)
def test_never_more_in_flight_and_never_more_spent_than_allowed(
    seed: int, total: int, count: int, cap: int | None
) -> None:
    rng = random.Random(seed)
    caps: Mapping[str, float] = {} if cap is None else {"requests": cap}
    # Its requests never end by themselves, so what is silent is never given away.
    book = LeaseBook(Terms(slots={"0": total}, caps=caps, longest_s=math.inf))
    workers = [Worker(f"w{i}") for i in range(count)]
    now = 0.0
    for step in range(300):
        now += rng.choice((0.0, 0.05, 0.3, 0.3, 2.0, LEASE_S + 1))
        worker = rng.choice(workers)
        match rng.randrange(8):
            case 0:
                worker.queued += rng.randrange(20)
            case 1 | 2:
                worker.unheard.append((now, book.renew(worker.report(), now)))
            case 3 | 4:
                worker.hear()
            case 5:
                worker.in_flight -= rng.randrange(worker.in_flight + 1)
            case 7:
                worker.give_up()
            case 6 if cap is None and rng.random() < 0.05:  # killed
                book.worker_left(worker.name)
                workers[workers.index(worker)] = Worker(f"w{step}-again")
        for one in workers:
            one.start(now, has_cap=cap is not None)
        assert sum(one.in_flight for one in workers) <= total
        if cap is not None:
            assert sum(one.requests for one in workers) <= cap


@pytest.mark.parametrize("total", [1, 7, 64, 256])
def test_alone_one_has_all_and_two_have_a_half(total: int) -> None:
    book = LeaseBook(terms({"0": total}))
    one, two = Worker("a", queued=999), Worker("b", queued=999)
    settle(book, [one])
    assert one.slots == total
    settle(book, [one, two])
    assert {one.slots, two.slots} == {total - total // 2, total // 2} or total == 1


def test_what_one_does_not_want_the_other_has_and_what_nobody_wants_is_halved() -> None:
    book = LeaseBook(terms({"0": 64}))
    busy, idle = Worker("a", queued=999), Worker("b", queued=4)
    settle(book, [busy, idle])
    assert (busy.slots, idle.slots) == (60, 4)
    busy.queued = busy.in_flight = 0
    idle.queued = idle.in_flight = 0
    settle(book, [busy, idle])
    assert (busy.slots, idle.slots) == (32, 32)


def test_a_shrink_counts_when_it_is_acknowledged() -> None:
    book = LeaseBook(terms({"0": 10}))
    old, new = Worker("old", queued=99), Worker("new", queued=99)
    settle(book, [old])
    old.start(0.0, has_cap=False)
    assert old.in_flight == 10
    assert book.renew(new.report(), 0.1).slots == {"0": 0}
    shrunk = book.renew(old.report(), 0.2)
    assert shrunk.slots == {"0": 5}
    old.in_flight = 4  # it has room again, and might not have heard
    assert book.renew(new.report(), 0.3).slots == {"0": 0}
    old.heard, old.slots, old.in_flight = (
        shrunk.number,
        5,
        8,
    )  # heard; three of its requests are too many for a while
    book.renew(old.report(), 0.4)
    assert book.renew(new.report(), 0.5).slots == {"0": 2}
    old.in_flight = 3
    book.renew(old.report(), 0.6)
    assert book.renew(new.report(), 0.7).slots == {"0": 5}


def test_what_an_engine_gives_up_by_itself_is_free_at_once() -> None:
    book = LeaseBook(terms({"0": 10}))
    rich, poor = Worker("rich", queued=99), Worker("poor", queued=99)
    settle(book, [rich, poor])
    rich.start(0.0, has_cap=False)
    rich.queued, rich.in_flight = 0, 2
    rich.give_up()
    book.renew(rich.report(), 0.1)
    assert book.due(0.1) == [("poor", "poor")]
    assert book.renew(poor.report(), 0.2).slots == {"0": 8}


def test_whose_lease_would_be_another_one_is_told_to_ask_and_once() -> None:
    book = LeaseBook(terms({"0": 10}))
    old, new = Worker("old", queued=99), Worker("new", queued=99)
    settle(book, [old])
    assert book.due(0.0) == []
    old.start(0.0, has_cap=False)
    book.renew(new.report(), 0.1)
    assert book.due(0.1) == [("old", "old")]
    assert book.due(0.1) == []
    old.unheard.append((0.2, book.renew(old.report(), 0.2)))
    assert book.due(0.2) == []  # not before the smaller lease was heard
    old.hear()
    old.in_flight = 9
    assert book.renew(old.report(), 0.3).is_wanted
    assert book.due(0.3) == []  # one slot is not worth it
    old.in_flight = 5
    book.renew(old.report(), 0.4)
    assert book.due(0.4) == [("new", "new")]
    assert book.renew(new.report(), 0.5).slots == {"0": 5}
    assert book.due(0.5) == []
    book.worker_left("new")
    assert book.due(0.6) == [("old", "old")]
    assert not book.renew(old.report(), 0.7).is_wanted
    assert book.due(0.7 + LEASE_S + 0.1) == []  # its lease has run out: it asks by itself or not


def test_who_does_not_renew_keeps_what_it_may_have_started_and_who_left_nothing() -> None:
    book = LeaseBook(terms({"0": 10}))
    gone, here = Worker("gone", queued=99), Worker("here", queued=99)
    settle(book, [gone])
    assert book.renew(here.report(), LEASE_S + 0.1).slots == {"0": 0}
    assert book.renew(here.report(), LEASE_S + LONGEST_S + 0.1).slots == {"0": 10}
    gone.heard = book.renew(gone.report(), LEASE_S + LONGEST_S + 0.2).number
    here.heard, here.in_flight = 99, 2
    book.renew(here.report(), LEASE_S + LONGEST_S + 0.3)
    assert book.renew(gone.report(), LEASE_S + LONGEST_S + 0.4).slots == {"0": 5}
    book.worker_left("gone")
    assert book.renew(here.report(), LEASE_S + LONGEST_S + 0.5).slots == {"0": 10}


def test_a_cap_is_used_to_the_last_request_and_then_told_to_all() -> None:
    book = LeaseBook(terms({"0": 8}, {"requests": 21}))
    workers = [Worker("a", queued=999), Worker("b", queued=999), Worker("c", queued=5)]
    for tick in range(200):
        for worker in workers:
            lease = book.renew(worker.report(), tick * 0.3)
            worker.unheard.append((tick * 0.3, lease))
            worker.hear()
            worker.start(tick * 0.3, has_cap=True)
            worker.in_flight = max(0, worker.in_flight - 2)
    assert book.spent("requests") == 21 == sum(worker.requests for worker in workers)
    assert book.renew(workers[0].report(), 61.0).is_spent == "requests"


def test_a_cap_is_not_told_as_used_up_while_something_is_in_flight() -> None:
    book = LeaseBook(terms({"0": 8}, {"tokens": 100}))
    told: dict[str, Any] = {"heard": 0, "wanted": 9}
    over = Report(holder="a", in_flight={"0": 2}, spent={"tokens": 140.0}, **told)
    assert book.renew(over, 0.0).is_spent is None
    ended = Report(holder="a", in_flight={"0": 0}, spent={"tokens": 190.0}, **told)
    lease = book.renew(ended, 0.3)
    assert lease.is_spent == "tokens" and lease.allowed == {"tokens": 190.0}


def test_what_a_lost_worker_had_spent_stays_spent() -> None:
    book = LeaseBook(terms({"0": 4}, {"requests": 10}))
    lost = Worker("lost", queued=99, requests=6.0)
    book.renew(lost.report(), 0.0)
    book.worker_left("lost")
    assert book.renew(Worker("next", queued=99).report(), 0.1).allowed == {"requests": 4.0}


def test_a_report_that_comes_after_the_end_takes_nothing() -> None:
    book = LeaseBook(terms({"0": 8}))
    lost, here = Worker("lost", queued=99, in_flight=8), Worker("here", queued=99)
    book.leave("lost")
    assert book.renew(lost.report(), 0.0).slots == {"0": 0}
    assert book.renew(here.report(), 0.1).slots == {"0": 8}


def test_books_are_kept_apart_and_forgotten_in_time() -> None:
    office = LeaseOffice()
    plain = terms({"0": 4}).to_plain()
    for name in ("run a", "run b"):
        lease = office.renew(name, Worker("w", queued=9).report().to_plain(), plain, 0.0)
        assert lease["slots"] == {"0": 4}
    office.leave("run a", "w")
    office.leave("never heard of", "w")
    office.renew("run c", Worker("w").report().to_plain(), plain, KEPT_S + 1.0)
    assert list(office.books) == ["run c"]


def settle(book: LeaseBook, workers: list[Worker], now: float = 0.0) -> None:
    for _ in range(4):
        for worker in workers:
            worker.unheard.append((now, book.renew(worker.report(), now)))
            worker.hear()
