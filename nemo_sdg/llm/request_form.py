"""Requests that differ in one text and in the seed: written without being built one by one.

    form = form_of(lambda text: Request(model="llama", messages=chat("Be brief.", text)))
    form.filled("What is Dask?", seed=7).keys()       # as Request(...).keys() has them

A form is cut out of what `Request` itself writes, so that keys and bodies are the same to the byte.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import orjson

from nemo_sdg.llm.request import Kind, Request, Sampling, canonical, derive_seed


class _Pieces:
    """A JSON document with two places: for a text, and behind it for a seed, where one is sent."""

    __slots__ = ("_head", "_middle", "_tail")

    def __init__(self, written: bytes, text: str, seed: int | None) -> None:
        self._head, rest = written.split(orjson.dumps(text))
        self._middle, self._tail = rest, b""
        if seed is not None and str(seed).encode() in written:
            self._middle, self._tail = rest.split(str(seed).encode())
        if text.encode() in b"".join((self._head, self._middle, self._tail)):
            raise ValueError("the text stands in more than one place")

    def filled(self, text: bytes, seed: bytes) -> bytes:
        if not self._tail:
            return b"".join((self._head, text, self._middle))
        return b"".join((self._head, text, self._middle, seed, self._tail))


class Form:
    """Made by `form_of`."""

    def __init__(self, example: Request, text: str) -> None:
        self.model: str = example.model
        self.sampling: Sampling = example.sampling
        self.kind: Kind = example.kind
        self._example, self._text = example, text
        self._key = self._pieces(canonical(example.key_source()))
        self._messages = self._pieces(canonical(example.key_source()["messages"]))
        self._options: dict[str, Any] = {}
        self._body = self._pieces(example.body())

    def _pieces(self, written: bytes) -> _Pieces:
        return _Pieces(written, self._text, self._example.seed)

    def filled(self, text: str, seed: int) -> Filled:
        """Return the request with this text; the seed counts where one is of use.

        Raises:
            TypeError: JSON cannot hold the text.
        """
        return Filled(self, orjson.dumps(text), seed if self._example.seed is not None else None)

    def body_pieces(self, options: dict[str, Any]) -> _Pieces:
        """Return what the body is put together from."""
        if options != self._options:  # as all requests of an engine have them
            self._body, self._options = self._pieces(self._example.body(**options)), options
        return self._body


class Filled:
    """A request of a form; it has what is asked of a `Request` on its way."""

    __slots__ = ("_form", "_seed", "_text", "seed")

    def __init__(self, form: Form, text: bytes, seed: int | None) -> None:
        self._form, self._text, self.seed = form, text, seed
        self._seed = b"" if seed is None else b"%d" % seed

    @property
    def model(self) -> str:
        """Who is asked."""
        return self._form.model

    @property
    def sampling(self) -> Sampling:
        """How the answer is drawn."""
        return self._form.sampling

    @property
    def kind(self) -> Kind:
        """Which call it is."""
        return self._form.kind

    def keys(self) -> tuple[str, ...]:
        """Return the one key of the answer."""
        data = self._form._key.filled(self._text, self._seed)
        return (hashlib.blake2b(data, digest_size=16).hexdigest(),)

    def prompt_hash(self) -> str:
        """Return 16 hex digits of the messages."""
        data = self._form._messages.filled(self._text, b"")
        return hashlib.blake2b(data, digest_size=8).hexdigest()

    def body(self, **options: Any) -> bytes:
        """Return the JSON body."""
        return self._form.body_pieces(options).filled(self._text, self._seed)


def form_of(make: Callable[[str], Request]) -> Form | None:
    """Return the form of what `make` returns for a text; None where there is none.

    Requests without a form: more than one sample, no chat, no model, a text that is part of a
    longer one.
    """
    text, seed = secrets.token_hex(16), secrets.randbits(60) | 1 << 60
    request = make(text)
    if request.sampling.n != 1 or not request.model:
        return None
    if not request.sampling.is_deterministic:
        request = replace(request, seed=seed)
    try:
        form = Form(request, text)
    except ValueError:
        return None
    return form


def derive_seeds(
    first: Sequence[int | str], rows: Sequence[int | str], last: Sequence[Any]
) -> list[int]:
    """Return `derive_seed(*first, row, *last)` for every row."""
    head = orjson.dumps(list(first))[:-1] + b","
    tail = b"," + orjson.dumps(list(last))[1:]
    made = []
    for row in rows:
        try:
            data = b"".join((head, orjson.dumps(row), tail))
        except TypeError:
            made.append(derive_seed(*first, row, *last))
            continue
        digest = hashlib.blake2b(data, digest_size=8).digest()
        made.append(int.from_bytes(digest, "big") & 0x7FFF_FFFF)
    return made
