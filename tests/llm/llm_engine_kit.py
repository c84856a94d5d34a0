"""What the tests of engine, client and transport share: requests, an engine, its answers."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemo_sdg.errors import RequestError
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.engine import EngineConfig
from nemo_sdg.llm.request import Reply, Request, Sampling, chat
from nemo_sdg.llm.retry import RetryPolicy
from nemo_sdg.llm.worker import Answer, EngineHandle, Session

MODEL = "scripted"
FAST = RetryPolicy(base_wait_s=0.01, max_wait_s=0.05)


def ask(text: str, *, seed: int = 0, **sampling: Any) -> Request:
    """Return a request for the text at temperature 0, unless told otherwise."""
    chosen = Sampling(**({"temperature": 0.0} | sampling))
    return Request(messages=chat(None, text), sampling=chosen).stamped(model=MODEL, seed=seed)


def endpoint_at(url: str, **settings: Any) -> Endpoint:
    return Endpoint(url=url, model=MODEL, **settings)


@contextmanager
def engine(
    endpoint: Endpoint | str,
    *,
    concurrency: int | None = 16,
    ledger: Path | None = None,
    place: str = "thread",
    retry: RetryPolicy = FAST,
    **settings: Any,
) -> Iterator[EngineHandle]:
    """Run an engine; in a thread where the process is not the point, since it starts faster."""
    if isinstance(endpoint, str):
        endpoint = endpoint_at(endpoint)
    if endpoint.concurrency is None and concurrency is not None:
        endpoint = endpoint.replace(concurrency=concurrency)
    config = EngineConfig(
        endpoint=endpoint,
        ledger=str(ledger) if ledger else None,
        retry=retry,
        **settings,
    )
    handle = EngineHandle(config, place=place)
    try:
        yield handle
    finally:
        handle.close()


def collect(session: Session, count: int, *, timeout_s: float = 20.0) -> list[tuple[int, Answer]]:
    """Return that many answers in the order in which they came."""
    found: list[tuple[int, Answer]] = []
    end = time.monotonic() + timeout_s
    while len(found) < count:
        assert time.monotonic() < end, f"only {len(found)} of {count} answers came"
        found.extend(session.wait(0.5))
    return found


def answers(handle: EngineHandle, requests: Sequence[Request]) -> list[Answer]:
    """Ask everything in one session; return the answers in the order of the requests."""
    with handle.session() as session:
        session.submit(enumerate(requests))
        return [answer for _, answer in sorted(collect(session, len(requests)), key=_token)]


def _token(pair: tuple[int, Answer]) -> int:
    return pair[0]


def outcome(answer: Answer) -> str:
    """Return the text of an answer, or the code of what it is instead."""
    if isinstance(answer, RequestError):
        return f"<{answer.code}>"
    (first, *_) = answer.samples()
    return first if isinstance(first, str) else f"<{first.code}>"


def texts(found: Sequence[Answer]) -> list[str]:
    return [answer.text for answer in found if isinstance(answer, Reply)]


def until(condition: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
    """Wait for a condition that another thread or process makes true."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
