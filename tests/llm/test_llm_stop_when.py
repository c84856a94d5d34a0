"""The rule that ends an answer: where in its text, whatever the pieces, and what it is then."""

from __future__ import annotations

import random
from typing import Any

import pytest

from nemo_sdg.errors import AnswerError, ConfigurationError
from nemo_sdg.llm.early import Early
from nemo_sdg.llm.request import Choice, Request, Sampling, chat
from nemo_sdg.llm.stop_when import REJECTED, REPEATING, StopWhen, rule_of
from nemo_sdg.llm.usage import Usage

LIST = "- one\n- two\n\n- three\n- two\n- four\n- one\n- one\n"


def ended(rule: StopWhen, text: str) -> tuple[str, str] | None:
    """Return what is left of a whole answer, and its finish reason."""
    stop = rule.stop(text, is_whole=True)
    return None if stop is None else (text[: stop.at], stop.reason)


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        (StopWhen(complete="END"), "a END b END", ("a END", "stop")),
        (StopWhen(complete="(?=Question 2)"), "A\nQuestion 2: B", ("A\n", "stop")),
        (StopWhen(complete="END"), "nothing of it", None),
        (StopWhen(reject="(?i)as an ai"), "Sorry, As an AI model", ("Sorry, As an AI", REJECTED)),
        (StopWhen(max_repeated_lines=2), LIST, (LIST[:-1], REPEATING)),
        (StopWhen(max_repeated_lines=3), LIST, None),
        (StopWhen(max_repeated_lines=1), "a\n\n\n\n\nb\n", None),
        (StopWhen(max_repeated_lines=1), "a\na\n a", ("a\na\n a", REPEATING)),
        (StopWhen(max_characters=4), "12345", ("1234", "length")),
        (StopWhen(max_characters=5), "12345", None),
        (StopWhen(complete="c", reject="b"), "abc", ("ab", REJECTED)),
        (StopWhen(complete="b", reject="c"), "abc", ("ab", "stop")),
        (StopWhen(complete="b", reject="b"), "abc", ("ab", REJECTED)),
        (StopWhen(complete="b", max_characters=1), "abc", ("a", "length")),
    ],
)
def test_what_comes_first_in_the_text_decides(rule: StopWhen, text: str, expected: Any) -> None:
    assert ended(rule, text) == expected


def test_a_match_counts_once_it_can_grow_no_more() -> None:
    rule = StopWhen(complete=r"\d+")
    assert rule.stop("in 19", is_whole=False) is None
    assert rule.stop("in 1987 ", is_whole=False) == (7, "stop")
    assert rule.stop("in 1987", is_whole=True) == (7, "stop")
    circles = StopWhen(max_repeated_lines=1)
    assert circles.stop("one\none\none", is_whole=False) is None, "it may be `one more`"


RULES = [
    StopWhen(complete=r"\bword7\b", max_characters=900),
    StopWhen(complete=r"(?=word3\d)"),
    StopWhen(reject=r"word1\d+ word\d+"),
    StopWhen(max_repeated_lines=4),
    StopWhen(max_characters=333),
]


@pytest.mark.parametrize("thought", ["", "<think>word7 word35 and\nand\n</think>\n"])
@pytest.mark.parametrize("rule", RULES)
def test_the_pieces_make_no_difference(rule: StopWhen, thought: str) -> None:
    """However a reply is cut, it ends as the one that came whole, reasoning or not."""
    draw = random.Random(5)
    for _ in range(40):
        words = [f"word{draw.randrange(60)}" for _ in range(draw.randrange(1, 160))]
        text = "".join(word + draw.choice(" \n\n") for word in words).strip()
        whole = {"choices": [{"message": {"content": thought + text}, "finish_reason": "end"}]}
        Early(rule, num_samples=1, prompt_tokens=0).cut(whole)
        (expected,) = whole["choices"]
        early = Early(rule, num_samples=1, prompt_tokens=0)
        choice: dict[str, Any] = {"message": {"content": ""}, "finish_reason": None}
        rest = thought + text
        while rest and not early.is_over:
            size = draw.randrange(1, 9)
            choice["message"]["content"] += rest[:size]
            rest = rest[size:]
            early.look(0, choice, is_whole=False)
        if not early.is_over:
            choice["finish_reason"] = "end"
            early.look(0, choice, is_whole=True)
        assert choice == expected


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "StopWhen: names no rule"),
        ({"complete": "a("}, "StopWhen: complete is no regular expression: missing"),
        ({"reject": "x*"}, "StopWhen: reject would end every answer"),
        ({"complete": 5}, "StopWhen: complete must be text or None, not 5"),
        ({"max_repeated_lines": 0}, "StopWhen: max_repeated_lines must be at least 1, not 0"),
        ({"max_characters": 1.5}, "StopWhen: max_characters must be a whole number"),
    ],
)
def test_a_rule_that_cannot_be_is_told_with_its_field(fields: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words.replace("(", r"\(")):
        StopWhen(**fields)


def test_a_mapping_is_no_rule() -> None:
    with pytest.raises(ConfigurationError, match=r"Sampling: stop_when must be a StopWhen or None"):
        Sampling(stop_when={"complete": "x"})  # type: ignore[arg-type]


def test_the_rule_is_part_of_the_key_and_turns_streaming_on() -> None:
    def request(**sampling: Any) -> Request:
        return Request(model="m", messages=chat(None, "x"), sampling=Sampling(**sampling), seed=3)

    plain, one = request(), request(stop_when=StopWhen(complete="END"))
    two = request(stop_when=StopWhen(complete="END", max_characters=9))
    assert len({plain.keys(), one.keys(), two.keys()}) == 3
    assert one.sampling.described()["stop_when"] == {"complete": "END"}
    assert "stop_when" not in plain.key_source()["sampling"]
    assert b'"stream":true' in one.body() and b"stream" not in plain.body()
    assert b"END" not in one.body(), "the server knows nothing of it"


def test_a_rule_crosses_a_process_boundary_as_it_is() -> None:
    for rule in RULES:
        assert rule_of(rule.plain()) == rule


@pytest.mark.parametrize("reason", [REJECTED, REPEATING])
def test_such_an_answer_is_a_reason_and_no_text(reason: str) -> None:
    body = {"message": {"content": "text"}, "finish_reason": reason}
    with pytest.raises(AnswerError) as caught:
        Choice.from_body(body).usable_text()
    assert caught.value.code == reason


def test_estimates_are_marked_and_stay_so() -> None:
    early = Early(StopWhen(max_characters=5), num_samples=1, prompt_tokens=40)
    for piece in ("a" * 9, "b", ""):
        early.received(piece)
    usage = Usage.from_body(early.usage())
    assert (usage.input_tokens, usage.output_tokens, usage.is_estimated) == (40, 3, True)
    assert (Usage(output_tokens=2) + usage).is_estimated
    early.received("c" * 400)
    assert early.usage()["completion_tokens"] == 102
