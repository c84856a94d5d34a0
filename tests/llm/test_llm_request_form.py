"""A form writes what `Request` writes, to the byte."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nemo_sdg.llm.request import Request, Sampling, chat, derive_seed
from nemo_sdg.llm.request_form import derive_seeds, form_of

TEXTS = ["plain", "", 'quotes " and \\ and\nlines\t\x00', "ünï 漢字 😀", "%s %b %d {x} 100%"]
SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.0, max_output_tokens=9),
    Sampling(stop=("</s>", "%"), top_k=3, logprobs=2),
    Sampling(schema={"type": "object"}, extra_body={"min_p": 0.1}),
    Sampling(extra_body={"seed": 5}),
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {
        "max_tokens_field": "max_completion_tokens",
        "unsupported": frozenset({"seed", "top_k"}),
        "stream": True,
    },
]


@pytest.mark.parametrize("system", [None, 'Be brief.\n50 % "of" it.'])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=range(len(SAMPLINGS)))
def test_a_form_writes_what_the_request_writes(sampling: Sampling, system: str | None) -> None:
    def make(text: str) -> Request:
        return Request(model="m", messages=chat(system, text), sampling=sampling)

    form = form_of(make)
    assert form is not None
    for number, text in enumerate(TEXTS):
        usual = make(text).stamped(model="", seed=number)
        filled = form.filled(text, number)
        assert filled.keys() == usual.keys()
        assert filled.prompt_hash() == usual.prompt_hash()
        assert filled.seed == usual.seed
        assert (filled.model, filled.kind, filled.sampling) == ("m", "chat", sampling)
        for options in OPTIONS:
            assert filled.body(**options) == usual.body(**options)


def test_what_has_no_form() -> None:
    asked = Request(model="m", messages=chat(None, "x"))

    def texts(text: str) -> Request:
        return replace(asked, messages=chat(None, text))

    assert form_of(texts) is not None
    assert form_of(lambda text: replace(texts(text), model="")) is None
    assert form_of(lambda text: replace(texts(text), sampling=Sampling(n=2))) is None
    assert form_of(lambda text: replace(texts(text), kind="completion")) is not None
    assert form_of(lambda text: replace(asked, messages=chat(text, text))) is None
    assert form_of(lambda text: replace(asked, messages=chat(None, f"> {text}"))) is None


def test_half_a_surrogate_pair_cannot_be_filled_in() -> None:
    form = form_of(lambda text: Request(model="m", messages=chat(None, text)))
    assert form is not None
    with pytest.raises(TypeError):
        form.filled("\ud800", 1)


def test_many_seeds_are_the_seeds_one_by_one() -> None:
    rows: list[int | str] = [0, 7, -3, "a", 'x"y/0', "ü", "\ud800", 2**70]
    wanted = [derive_seed(5, row, "task", (0,)) for row in rows]
    assert derive_seeds((5,), rows, ("task", (0,))) == wanted
