"""Requests that begin alike: next to one another, to the same replica, and no slot idle for it."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import Any

import pytest
from llm_engine_kit import MODEL, answers, ask, collect, endpoint_at, engine, free_port, texts

from nemo_sdg.errors import ConfigurationError
from nemo_sdg.llm.backlog import Item
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.prefixes import GroupedBacklog, closest, prefix_of
from nemo_sdg.llm.request import Request, Sampling, chat
from nemo_sdg.llm.scripted import ScriptedEndpoint, batching, fixed

SIZE = 380
DOCUMENTS = 12


def document(number: int) -> str:
    return f"Document {number:03} " + "is long enough to be worth keeping. " * (10 + number % 5)


def asked(questions: int, documents: int = DOCUMENTS, **fields: Any) -> list[Request]:
    """Ask each question about all documents before the next question, as tasks do."""
    return [
        ask(f"{document(d)} Question {q}{'?' * (d * q % 7)}", **fields)
        for q in range(questions)
        for d in range(documents)
    ]


def documents_of(server: ScriptedEndpoint) -> list[str]:
    return [entry.text[:12] for entry in server.log.entries]


def test_a_prefix_is_that_of_the_messages_and_not_of_what_follows() -> None:
    def body(text: str, seed: int = 0, system: str = "Be brief.") -> bytes:
        sampling = Sampling(temperature=0.7)
        messages = chat(system, text)
        return Request(model=MODEL, messages=messages, sampling=sampling, seed=seed).body()

    long = document(1)
    one = prefix_of(body(long + "one"), SIZE)
    assert one == prefix_of(body(long + "two", seed=5), SIZE)
    assert one != prefix_of(body(document(2)), SIZE)
    assert one != prefix_of(body(long + "one", system="Be long."), SIZE)
    assert prefix_of(body("short", seed=1), SIZE) == prefix_of(body("short", seed=2), SIZE)
    quoted = '"}],"' + long
    assert prefix_of(body(quoted + "one"), SIZE) != prefix_of(body('"}],"' + document(2)), SIZE)


def test_the_bytes_of_a_prefix_are_those_of_the_prompt() -> None:
    def body(user: str, system: str | None = "Be brief.", **fields: Any) -> bytes:
        return Request(model="m" * 40, messages=chat(system, user), **fields).body()

    one, two = body("A" + document(1)), body("B" + document(1))
    assert prefix_of(one, 20) != prefix_of(two, 20), "the user's text begins at byte 9"
    assert prefix_of(one, 9) == prefix_of(two, 9)
    assert prefix_of(body("A" * 10 + "x"), 19) == prefix_of(body("A" * 10 + "y"), 19)
    assert prefix_of(body("A" * 10 + "x"), 20) != prefix_of(body("A" * 10 + "y"), 20)
    quoted = '"}]," and \\'
    assert prefix_of(body("A", quoted), 40) != prefix_of(body("B", quoted), 40)
    for kind in ("completion", "embedding"):
        plain = [body(text, None, kind=kind, seed=seed) for seed, text in enumerate("AAB")]
        assert prefix_of(plain[0], 20) == prefix_of(plain[1], 20) != prefix_of(plain[2], 20)


def test_the_bytes_of_messages_in_parts_count() -> None:
    def body(*parts: dict[str, Any], seed: int = 0) -> bytes:
        messages = ({"role": "user", "content": list(parts)},)
        return Request(model="m" * 40, messages=messages, seed=seed).body()

    def text(words: str) -> dict[str, Any]:
        return {"type": "text", "text": words}

    def image(address: str) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": address}}

    assert prefix_of(body(text("A")), 20) != prefix_of(body(text("B")), 20)
    one, two = body(text("A"), image("data:x")), body(text("A"), image("data:y"))
    assert prefix_of(one, SIZE) != prefix_of(two, SIZE)
    assert prefix_of(one, 20) == prefix_of(two, 20)
    last = [body(image("data:x"), seed=seed) for seed in (1, 2)]
    assert prefix_of(last[0], 20) == prefix_of(last[1], 20)


@pytest.mark.parametrize("wait_s", [0.0, 1.0])
def test_a_replica_takes_what_is_closest_to_it_as_long_as_it_may_have_it_now(
    wait_s: float,
) -> None:
    class Some:
        endpoint = endpoint_at("http://a/v1")

        def wait_s(self, *_: object) -> float:
            return wait_s

    replica: Any = Some()
    two = (("http://a/v1", 1.0), ("http://b/v1", 1.0))
    backlog = GroupedBacklog(two)
    of: dict[str, Item] = {}
    for number in range(100):
        prefix = number.to_bytes(8)
        item = Item(("k",), "chat", MODEL, b"", 1, 0, 0, prefix=prefix)
        of.setdefault(closest(prefix, two), item)
    here, there = of["http://a/v1"], of["http://b/v1"]
    there.body = b"costlier"
    for item in (there, here):
        item.waiters.append((0, 0))
        backlog.push(item)
    assert len(backlog) == 2
    assert backlog.first is there
    assert backlog.closer(there, replica, 0.0) is (there if wait_s else here)
    backlog.pop()
    assert backlog.first is (here if wait_s else there)
    backlog.clear()
    assert len(backlog) == 0


def test_prefixes_are_shared_out_by_weight_and_few_move() -> None:
    three = (("http://a/v1", 1.0), ("http://b/v1", 2.0), ("http://c/v1", 1.0))
    prefixes = [number.to_bytes(8) for number in range(4000)]
    before = {prefix: closest(prefix, three) for prefix in prefixes}
    shares = Counter(before.values())
    assert shares["http://b/v1"] == pytest.approx(2000, rel=0.06)
    assert shares["http://a/v1"] == pytest.approx(1000, rel=0.1)
    after = {prefix: closest(prefix, three[:2]) for prefix in prefixes}
    assert all(after[p] == before[p] for p in prefixes if before[p] != "http://c/v1")


def test_what_begins_alike_is_sent_next_to_one_another() -> None:
    for size, is_grouped in ((SIZE, True), (0, False)):
        with (
            ScriptedEndpoint(default="echo") as server,
            engine(endpoint_at(server.url, group_prefixes=size), concurrency=1) as handle,
        ):
            requests = asked(5)
            found = answers(handle, requests)
            assert texts(found) == [str(one.messages[-1]["content"]) for one in requests]
            runs = [name for name, _ in groupby(documents_of(server))]
        assert (len(runs) == DOCUMENTS) is is_grouped
        assert len(runs) >= DOCUMENTS


def test_an_older_partition_goes_first_and_what_follows_from_answers_before_the_rest() -> None:
    with (
        ScriptedEndpoint(default="echo", latency=fixed(0.01)) as server,
        engine(endpoint_at(server.url, group_prefixes=SIZE), concurrency=1) as handle,
        handle.session() as first,
        handle.session() as second,
    ):
        second.submit([(0, ask(f"{document(0)} later"))])
        first.submit(list(enumerate(asked(3))))
        second.submit([(i, ask(f"{document(i)} later")) for i in range(1, DOCUMENTS)])
        first.submit([(1000, ask(f"{document(11)} follows"))])
        collect(first, 3 * DOCUMENTS + 1)
        collect(second, DOCUMENTS)
        sent = [entry.text for entry in server.log.entries]
    is_later = [text.endswith("later") for text in sent]
    assert is_later[1:] == sorted(is_later[1:]), "but for the one that found the slot free"
    at = next(i for i, text in enumerate(sent) if text.endswith("follows"))
    assert at < 5


@pytest.mark.parametrize(("weights", "slots"), [((1.0, 1.0), (4, 4)), ((3.0, 1.0), (6, 2))])
def test_what_begins_alike_goes_to_one_replica_even_when_all_are_busy(
    weights: tuple[float, float], slots: tuple[int, int]
) -> None:
    slowly = batching(64, tokens_per_s=2000, median_tokens=20, sigma=0.4, first_token_s=0.001)
    requests = asked(5, 160)
    with (
        ScriptedEndpoint(default="echo", latency=slowly) as one,
        ScriptedEndpoint(default="echo", latency=slowly) as two,
    ):
        servers, together = (one, two), {}
        for size in (SIZE, 0):
            first, second = (
                endpoint_at(server.url, weight=weight, group_prefixes=size, concurrency=slot)
                for server, weight, slot in zip(servers, weights, slots, strict=True)
            )
            for server in servers:
                server.log.clear()
            with engine(first, concurrency=None, replicas=(second,)) as handle:
                assert len(texts(answers(handle, requests))) == len(requests)
            seen = [Counter(documents_of(server)) for server in servers]
            assert all(len(documents) > 16 for documents in seen)
            where_most_are = (max(one[name] for one in seen) for name in set().union(*seen))
            together[size] = sum(where_most_are) / len(requests)
    assert together[SIZE] > 0.87, "but for what is helped out with"
    assert together[SIZE] > together[0] + 0.08


def test_a_replica_that_is_full_is_helped_out() -> None:
    """One prefix for all, so one replica for all: the other one is busy all the same."""
    with (
        ScriptedEndpoint(default="echo", latency=fixed(0.05)) as one,
        ScriptedEndpoint(default="echo", latency=fixed(0.05)) as two,
    ):
        first, second = (
            endpoint_at(server.url, group_prefixes=SIZE, concurrency=2) for server in (one, two)
        )
        with engine(first, concurrency=None, replicas=(second,)) as handle:
            requests = [ask(f"{document(1)} {i}") for i in range(40)]
            assert len(texts(answers(handle, requests))) == 40
        assert sorted((len(one.log), len(two.log)))[0] >= 15
        for server in (one, two):
            assert server.log.busy_share(2) > 0.8


def test_a_replica_that_is_down_costs_no_answer() -> None:
    with ScriptedEndpoint(default="echo") as server:
        gone = Endpoint(url=f"http://127.0.0.1:{free_port()}/v1", model=MODEL, concurrency=4)
        here = endpoint_at(server.url, concurrency=4, group_prefixes=SIZE)
        with engine(here, concurrency=None, replicas=(gone,)) as handle:
            assert len(texts(answers(handle, asked(4)))) == 4 * DOCUMENTS
        assert len(server.log) == 4 * DOCUMENTS


def test_a_size_below_0_is_told() -> None:
    with pytest.raises(ConfigurationError, match="group_prefixes must not be below 0: -1"):
        endpoint_at("http://localhost:1/v1", group_prefixes=-1)
