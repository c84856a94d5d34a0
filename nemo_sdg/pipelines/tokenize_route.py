"""Count tokens on the server, where its model's tokenizer is not on this machine."""

from __future__ import annotations

import atexit
import functools
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from nemo_sdg.errors import EndpointDown, EndpointError, RequestError, TokenizerError
from nemo_sdg.llm.client import Client
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.retry import RetryPolicy, Tries
from nemo_sdg.text.tokens import Tokenizer, load_tokenizer

AT_ONCE = 16
NAME = "tokenize route"

_CHOOSING = RetryPolicy(max_tries=3, base_wait_s=0.3, max_wait_s=2.0)
_RUNNING = RetryPolicy()
_CACHED_CHARACTERS, _CACHED_TEXTS = 500, 4096


class NoRoute(TokenizerError):
    """The server does not count tokens, or not this text."""


@dataclass(frozen=True, slots=True)
class RemoteCount:
    """Counts texts by the tokenize route of an endpoint: one request a text, `AT_ONCE` at a time.

    Short texts are remembered: prompts, marks and headings come again and again. Pickles small.
    """

    endpoint: Endpoint
    retry: RetryPolicy = _RUNNING

    def __call__(self, texts: list[str]) -> list[int]:
        """Return the tokens of each text, in order.

        Raises:
            NoRoute: the server has no such route, or takes one of the texts for a wrong request.
            EndpointDown: it fails again and again.
        """
        each = list(dict.fromkeys(texts))
        if len(each) == 1:
            counts = [self._count(each[0])]
        else:
            _client(self.endpoint)  # one for all threads, made before they start
            with ThreadPoolExecutor(max(1, min(AT_ONCE, self.endpoint.limit, len(each)))) as pool:
                counts = list(pool.map(self._count, each))
        known = dict(zip(each, counts, strict=True))
        return [known[text] for text in texts]

    def _count(self, text: str) -> int:
        if not text:
            return 0  # some servers take an empty prompt for a wrong request
        ask = _remembered if len(text) <= _CACHED_CHARACTERS else _ask
        return ask(self.endpoint, self.retry, text)


@functools.cache
def _client(endpoint: Endpoint) -> Client:
    client = Client(endpoint)
    atexit.register(client.close)
    return client


def _ask(endpoint: Endpoint, retry: RetryPolicy, text: str) -> int:
    tries = Tries(retry, patience_s=endpoint.timeouts.total_s)
    while True:
        try:
            counts = _client(endpoint).tokenize_counts([text])
        except RequestError as error:
            try:
                wait_s = tries.wait_s(error, time.monotonic(), random.random())
            except RequestError:
                raise EndpointDown(
                    f"{endpoint.host} does not count tokens any more ({error.code}: {error.detail})"
                    "; run the same command again when it does, or name a --tokenizer"
                ) from None
            time.sleep(wait_s)
        else:
            if counts is None:
                raise NoRoute(
                    f"{endpoint.host} has no tokenize route, or takes a text of {len(text)} "
                    "characters for a wrong request: name the model's tokenizer with --tokenizer"
                )
            return counts[0]


_remembered = functools.lru_cache(maxsize=_CACHED_TEXTS)(_ask)


def remote_tokenizer(endpoint: Endpoint, model: str) -> Tokenizer:
    """Return the model's tokenizer if it is on this machine, else the server's, else a stand-in.

    A route that answers with errors or with what is no count is no route.
    """
    try:
        RemoteCount(endpoint, retry=_CHOOSING)(["a"])
        return load_tokenizer(model=model, remote=RemoteCount(endpoint))
    except (NoRoute, EndpointDown, EndpointError):
        return load_tokenizer(model=model)
