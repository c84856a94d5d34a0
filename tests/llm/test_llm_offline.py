"""The built-in endpoint over real HTTP, and how it finds its rule."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest

from nemo_sdg.llm.offline import (
    OFFLINE_MODEL,
    OfflineServer,
    Rule,
    cut_answer,
    generic_answer,
    literal_ends,
    serve_offline,
)
from nemo_sdg.text.tokens import load_tokenizer


def rule(name: str, template: str, answer: Any) -> Rule:
    """A rule from a template with `{name}` places, made as the tasks layer makes them."""
    parts = re.split(r"\{(\w+)\}", template)
    pattern = "".join(
        f"(?P<{part}>.*)" if i % 2 else re.escape(part) for i, part in enumerate(parts)
    )
    return Rule(name=name, pattern=re.compile(pattern, re.DOTALL), answer=answer)


def shout(values: Mapping[str, str], seed: int) -> str:
    return f"{values['document'].upper()} [{seed}]"


RULES = [
    rule("shout", "Shout (loudly).\n\nText:\n{document}", shout),
    rule("pair", "In {language} about {topic}.", lambda v, s: f"{v['language']}/{v['topic']}"),
]
ARTICLE = " ".join(f"The lake number {i} is {i * 3} metres deep and very cold." for i in range(30))


@pytest.fixture(scope="module")
def server() -> Iterator[OfflineServer]:
    with serve_offline(RULES) as running:
        yield running


def ask(server: OfflineServer, text: str, *, system: str = "", **more: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": text})
    payload = {"model": OFFLINE_MODEL, "messages": messages, **more}
    with httpx.Client(trust_env=False, verify=False, timeout=30) as client:
        reply = client.post(f"{server.url}/chat/completions", json=payload)
    assert reply.status_code == 200, reply.text
    data: dict[str, Any] = reply.json()
    return data


def text_of(reply: dict[str, Any]) -> str:
    return str(reply["choices"][0]["message"]["content"])


def test_rules_answer_from_the_variables_of_the_prompt(server: OfflineServer) -> None:
    prompt = "Shout (loudly).\n\nText:\nhello {x}\n\nText: twice"
    assert text_of(ask(server, prompt, seed=5)) == "HELLO {X}\n\nTEXT: TWICE [5]"
    assert text_of(ask(server, prompt, seed=5, system="Be kind.")).endswith("[5]")
    assert text_of(ask(server, "In Dutch about a, b.")) == "Dutch/a, b"


def test_the_seed_is_the_request_s_or_a_hash_of_its_messages(server: OfflineServer) -> None:
    prompt = "Shout (loudly).\n\nText:\nhello"
    assert text_of(ask(server, prompt)) == text_of(ask(server, prompt))
    assert text_of(ask(server, prompt)) != text_of(ask(server, prompt, seed=5))
    choices = ask(server, prompt, seed=5, n=3)["choices"]
    texts = [choice["message"]["content"] for choice in choices]
    assert texts[0] == "HELLO [5]"
    assert len(set(texts)) == 3


def test_what_fits_no_rule_gets_sentences_of_the_text(server: OfflineServer) -> None:
    prompt = f"You are to summarise.\nRules:\n- be short\n\nText:\n{ARTICLE}"
    answer = text_of(ask(server, prompt))
    assert 0.3 * len(ARTICLE) < len(answer) < 0.7 * len(ARTICLE)
    assert "be short" not in answer
    assert all(s in ARTICLE for s in re.split(r"(?<=\.) ", answer))
    assert generic_answer("Translate: " + ARTICLE).startswith("The lake")
    assert text_of(ask(server, "?!")).startswith("There is nothing")


def test_limits_and_stop_strings_hold(server: OfflineServer) -> None:
    prompt = "Shout (loudly).\n\nText:\n" + "one two, three. " * 20
    cut = ask(server, prompt, max_tokens=7)["choices"][0]
    assert cut["finish_reason"] == "length"
    assert cut["message"]["content"] == "ONE TWO, THREE. ONE TWO"
    stopped = ask(server, prompt, stop=[", THREE"])["choices"][0]
    assert (stopped["message"]["content"], stopped["finish_reason"]) == ("ONE TWO", "stop")
    reply = ask(server, prompt, max_tokens=500)
    assert reply["choices"][0]["finish_reason"] == "stop"
    # As a run against it counts, so that the figures of a run agree.
    tokenizer = load_tokenizer("bundled")
    (tokens,) = tokenizer.count([text_of(reply)])
    chat = tokenizer.chat_tokens([{"role": "user", "content": prompt}])
    assert reply["usage"]["completion_tokens"] == tokens
    assert reply["usage"]["prompt_tokens"] == chat > tokenizer.count([prompt])[0]


def test_an_answer_of_exactly_the_limit_is_whole() -> None:
    assert cut_answer("a b c", 3).finish_reason == "stop"
    assert cut_answer("a b c", 2).text == "a b"
    assert cut_answer("abc END def", None, ("END", "", "zzz")).text == "abc "


def test_it_says_that_it_is_no_model_and_lists_one_name(server: OfflineServer) -> None:
    with httpx.Client(trust_env=False, verify=False) as client:
        about = client.get(server.url.removesuffix("v1")).text
        assert "not a language model" in about
        assert server.url in about
        [model] = client.get(f"{server.url}/models").json()["data"]
        assert (model["id"], model["max_model_len"]) == ("offline-extractive", 131072)
        assert client.post(f"{server.url}/tokenize", json={"prompt": "x"}).status_code == 404
        wrong = {"model": "gpt", "messages": [{"role": "user", "content": "x"}]}
        assert client.post(f"{server.url}/chat/completions", json=wrong).status_code == 404


def test_streaming_and_plain_completion(server: OfflineServer) -> None:
    prompt = "Shout (loudly).\n\nText:\nhello there"
    with httpx.Client(trust_env=False, verify=False) as client:
        payload: dict[str, Any] = {"prompt": prompt, "seed": 1}
        plain = client.post(f"{server.url}/completions", json=payload).json()
        assert plain["choices"][0]["text"] == "HELLO THERE [1]"
        streamed = client.post(f"{server.url}/completions", json=payload | {"stream": True}).text
    assert "".join(re.findall(r'"text":"([^"]*)"', streamed)) == "HELLO THERE [1]"


def test_latency_and_port_can_be_set() -> None:
    with serve_offline(RULES, latency_s=0.2) as slow:
        begin = time.monotonic()
        ask(slow, "In Dutch about tea.")
        assert time.monotonic() - begin >= 0.2
        with pytest.raises(OSError, match="address"), serve_offline(port=slow.port):
            pass


def test_a_document_of_two_megabytes_is_answered_or_refused_in_words(
    server: OfflineServer,
) -> None:
    assert "lake" in text_of(ask(server, "Text:\n" + ARTICLE * 100))
    payload = {"messages": [{"role": "user", "content": "word " * 400_000}]}
    with httpx.Client(trust_env=False, verify=False) as client:
        reply = client.post(f"{server.url}/chat/completions", json=payload)
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == 400
    assert "maximum context length is 131072" in reply.json()["error"]["message"]


# Finding the rule -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "first", "last"),
    [
        (re.escape("Say (it): ") + "(?P<x>.*)" + re.escape(".\nEnd!"), "Say (it): ", ".\nEnd!"),
        ("ab+c", "a", "c"),
        ("abc", "abc", "abc"),
        (r"\d+ tons", "", " tons"),
        ("x{3}y", "", "y"),
        ("[ab]c(d)", "", ""),
    ],
)
def test_literal_ends(pattern: str, first: str, last: str) -> None:
    assert literal_ends(pattern) == (first, last)


def test_alternatives_and_case_are_left_to_the_pattern() -> None:
    either = Rule(name="e", pattern=re.compile("abc|xyz"), answer=lambda v, s: "")
    assert either.match("xyz") == {}
    loose = Rule(name="l", pattern=re.compile("abc(?P<d>.*)", re.IGNORECASE), answer=shout)
    assert loose.match("ABCd") == {"d": "d"}
    assert either.match("abcd") is None


def test_a_long_text_for_another_rule_costs_next_to_nothing() -> None:
    greedy = rule("g", "First {a} then {b} and {c} last.", shout)
    text = "First " + "x then y and z " * 100_000
    begin = time.perf_counter()
    assert greedy.match(text) is None
    assert time.perf_counter() - begin < 0.05
