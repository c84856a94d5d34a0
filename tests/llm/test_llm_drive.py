"""One flow, three drivers: the same values, the same seeds, the same order."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

from nemo_sdg.errors import ParseError, RefusedAnswer, RequestTimeout, RowError
from nemo_sdg.llm.drive import Crowd, Flow, FlowCrashed, Stamp, run_flow, run_flow_async, settle
from nemo_sdg.llm.request import Choice, Reply, Request, Sampling, chat

STAMP = Stamp("the-model", (0, "row-1", "task"))
Sent = dict[str, Request]
Outcome = tuple[Any, Sent]


def ask(text: str, **sampling: Any) -> Request:
    return Request(messages=chat(None, text), sampling=Sampling(**sampling))


def answer(request: Request) -> Reply:
    """Answer by rule: the text in capitals; "refuse" and "timeout" fail as they say."""
    text = request.prompt()
    if "timeout" in text:
        raise RequestTimeout(text)
    if "refuse" in text:
        return Reply(choices=(Choice(refusal=text),))
    return Reply(choices=(Choice(text=text.upper()),))


def blocking(make: Callable[[], Flow]) -> Outcome:
    sent: Sent = {}

    def carry(request: Request) -> Reply:
        sent[request.prompt()] = request
        return answer(request)

    try:
        return run_flow(make(), carry, STAMP), sent
    except RowError as error:
        return repr(error), sent


def in_coroutines(make: Callable[[], Flow]) -> Outcome:
    sent: Sent = {}
    draw = random.Random(3)

    async def carry(request: Request) -> Reply:
        sent[request.prompt()] = request
        for _ in range(draw.randrange(4)):
            await asyncio.sleep(0)
        return answer(request)

    try:
        return asyncio.run(run_flow_async(make(), carry, STAMP)), sent
    except RowError as error:
        return repr(error), sent


def in_a_crowd(make: Callable[[], Flow]) -> Outcome:
    sent: Sent = {}
    draw = random.Random(4)
    crowd = Crowd()
    open_requests = crowd.start(5, make(), STAMP)
    while open_requests:
        token, request = open_requests.pop(draw.randrange(len(open_requests)))
        sent[request.prompt()] = request
        try:
            reply: Reply | RowError = answer(request)
        except RowError as error:
            reply = error
        open_requests += crowd.deliver(token, reply)
    ((row, value, _),) = crowd.ended()
    assert row == 5
    assert len(crowd) == 0
    return (repr(value) if isinstance(value, RowError) else value), sent


DRIVERS = (blocking, in_coroutines, in_a_crowd)


# ---------------------------------------------------------------------------------------- flows


def chain() -> Flow:
    first = yield ask("one")
    second = yield ask(f"after {first.text}")
    return second.text


def fan() -> Flow:
    replies = yield [ask(f"part {i}") for i in range(5)]
    return [reply.text for reply in replies]


def nested() -> Flow:
    def leaf(name: str) -> Flow:
        parts = yield [ask(f"{name}.{i}") for i in range(2)]
        last = yield ask(f"{name} end")
        return [*(part.text for part in parts), last.text]

    head = yield from leaf("head")
    mixed = yield [leaf("a"), ask("alone"), leaf("b")]
    none = yield []
    return [head, mixed[0], mixed[1].text, mixed[2], none]


def settled() -> Flow:
    found = yield [settle(ask("timeout 1")), ask("fine"), settle(chain())]
    return [type(found[0]).__name__, found[1].text, found[2]]


def unsettled() -> Flow:
    yield [ask("fine"), ask("timeout 1"), ask("timeout 2"), ask("fine too")]


def caught() -> Flow:
    try:
        yield [ask("timeout 1"), ask("fine")]
    except RequestTimeout:
        reply = yield ask("instead")
        return reply.text


def single_failure() -> Flow:
    yield ask("timeout 7")


def used_anyway() -> Flow:
    reply = yield ask("refuse")
    return reply.text


def own_reason() -> Flow:
    yield ask("one")
    raise ParseError("no_items", "three were asked for")


def asks_nothing() -> Flow:
    return "at once"
    yield


def yields_rubbish() -> Flow:
    yield "a text"


def yields_rubbish_in_a_list() -> Flow:
    yield [ask("one"), "a text"]


FLOWS: dict[Callable[[], Flow], Any] = {
    chain: "AFTER ONE",
    fan: [f"PART {i}" for i in range(5)],
    nested: [
        ["HEAD.0", "HEAD.1", "HEAD END"],
        ["A.0", "A.1", "A END"],
        "ALONE",
        ["B.0", "B.1", "B END"],
        [],
    ],
    settled: ["RequestTimeout", "FINE", "AFTER ONE"],
    unsettled: repr(RequestTimeout("timeout 1")),
    caught: "INSTEAD",
    single_failure: repr(RequestTimeout("timeout 7")),
    used_anyway: repr(RefusedAnswer("refuse")),
    own_reason: repr(ParseError("no_items", "three were asked for")),
    asks_nothing: "at once",
}


@pytest.mark.parametrize("make", FLOWS, ids=lambda make: make.__name__)
def test_three_drivers_give_one_result(make: Callable[[], Flow]) -> None:
    outcomes = [driver(make) for driver in DRIVERS]
    for value, _ in outcomes:
        assert value == FLOWS[make]
    # Same requests with the same seeds; the blocking driver asks those after a failure too.
    first, second, third = (sent for _, sent in outcomes)
    assert first == second == third


@pytest.mark.parametrize("make", [yields_rubbish, yields_rubbish_in_a_list])
@pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.__name__)
def test_a_flow_that_yields_something_else_is_told(
    make: Callable[[], Flow], driver: Callable[[Callable[[], Flow]], Outcome]
) -> None:
    value, sent = driver(make)
    assert "FlowCrashed" in value
    assert "yields a Request" in value
    assert sent == {}


def test_every_request_of_a_flow_has_its_own_seed() -> None:
    def same_words() -> Flow:
        yield ask("again")
        replies = yield [ask("again"), ask("again")]
        replies += yield [ask("again")]
        return len(replies)

    seeds: list[int | None] = []

    def carry(request: Request) -> Reply:
        seeds.append(request.seed)
        return answer(request)

    run_flow(same_words(), carry, STAMP)
    first = list(seeds)
    assert len(set(first)) == 4
    run_flow(same_words(), carry, STAMP)
    assert seeds[4:] == first
    for row in ((1, "row-1", "task"), (0, "row-2", "task"), (0, "row-1", "other")):
        seeds.clear()
        run_flow(same_words(), carry, Stamp("the-model", row))
        assert not set(seeds) & set(first)


def test_stamped_seeds_are_golden() -> None:
    # They decide the ledger keys of every run: a change repays all answers.
    _, sent = blocking(nested)
    assert [sent[text].seed for text in ("head.0", "head end", "a.1", "b end")] == [
        1964237039,
        1294691934,
        996542869,
        1128093082,
    ]
    assert {request.model for request in sent.values()} == {"the-model"}


# ---------------------------------------------------------------------------------------- crowd


def test_a_crash_fails_one_row_of_the_crowd() -> None:
    def crash() -> Flow:
        reply = yield ask("one")
        return reply.text[99]

    def crash_in_a_part() -> Flow:
        found = yield [settle(crash()), ask("fine")]
        return [found[0].code, found[1].text]

    crowd = Crowd()
    waiting = []
    for row, make in enumerate((crash, chain, crash_in_a_part, fan)):
        waiting += crowd.start(row, make(), STAMP)
    while waiting:
        token, request = waiting.pop(0)
        waiting += crowd.deliver(token, answer(request))
    ended = {row: value for row, value, _ in crowd.ended()}
    assert isinstance(ended[0], FlowCrashed)
    assert ended[0].code == "task_crashed"
    assert "IndexError" in ended[0].detail
    assert ended[1] == FLOWS[chain]
    assert ended[2] == ["task_crashed", "FINE"]
    assert ended[3] == FLOWS[fan]


def test_an_ended_row_brings_its_last_reply_once() -> None:
    crowd = Crowd()
    ((token, _),) = crowd.start(3, chain(), STAMP)
    assert list(crowd.ended()) == []
    ((token, _),) = crowd.deliver(token, Reply(choices=(Choice(text="x"),), model="first"))
    assert crowd.deliver(token, Reply(choices=(Choice(text="y"),), model="second")) == []
    ((row, value, last),) = crowd.ended()
    assert (row, value) == (3, "y")
    assert last is not None
    assert last.model == "second"
    assert list(crowd.ended()) == []


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_last_reply_is_last_in_the_flow_whatever_the_timing(order: tuple[int, ...]) -> None:
    def middle() -> Flow:
        yield ask("middle")
        yield ask("middle end")

    def fan_at_the_end() -> Flow:
        yield [ask("first"), middle(), ask("last")]
        return "done"

    def last_fails() -> Flow:
        yield [ask("first"), middle(), settle(ask("timeout"))]
        return "done"

    for make, wanted in ((fan_at_the_end, "LAST"), (last_fails, "MIDDLE END")):
        crowd = Crowd()
        asked = crowd.start(0, make(), STAMP)
        waiting = [asked[place] for place in order]
        while waiting:
            token, request = waiting.pop(0)
            try:
                reply: Reply | RowError = answer(request)
            except RowError as error:
                reply = error
            waiting += crowd.deliver(token, reply)
        ((_, value, last),) = crowd.ended()
        assert value == "done"
        assert last is not None
        assert last.text == wanted


def test_close_gives_up_what_waits() -> None:
    left: list[str] = []

    def patient() -> Flow:
        try:
            yield ask("one")
        finally:
            left.append("closed")

    crowd = Crowd()
    crowd.start(0, patient(), STAMP)
    crowd.start(1, patient(), STAMP)
    crowd.close()
    assert left == ["closed", "closed"]
    assert len(crowd) == 0


def test_a_long_flow_does_not_grow_the_stack() -> None:
    def long() -> Flow:
        total = 0
        for _ in range(3000):
            replies = yield [ask("x")]
            nothing = yield []
            total += len(replies) + len(nothing)
        return total

    assert [driver(long)[0] for driver in DRIVERS] == [3000] * 3


# ----------------------------------------------------------------------------------- faults


@pytest.mark.fault(2)
def test_a_failing_row_leaves_its_neighbours() -> None:
    def batch_predecessor(flows: list[Callable[[], Flow]]) -> list[Any]:
        """Gathers plainly: the first error ends the batch."""
        return [run_flow(make(), answer, STAMP) for make in flows]

    def batch_ours(flows: list[Callable[[], Flow]]) -> list[Any]:
        crowd = Crowd()
        waiting = [item for i, make in enumerate(flows) for item in crowd.start(i, make(), STAMP)]
        while waiting:
            token, request = waiting.pop(0)
            try:
                reply: Reply | RowError = answer(request)
            except RowError as error:
                reply = error
            waiting += crowd.deliver(token, reply)
        ended = {row: value for row, value, _ in crowd.ended()}
        return [ended[i] for i in range(len(flows))]

    def check(run: Callable[[list[Callable[[], Flow]]], list[Any]]) -> None:
        try:
            values = run([chain, single_failure, chain])
        except RowError:
            values = []
        assert values[::2] == ["AFTER ONE", "AFTER ONE"]

    check(batch_ours)
    with pytest.raises(AssertionError):
        check(batch_predecessor)
