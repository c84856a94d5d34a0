"""The requests of one partition on their way through an engine, and the answers that come back."""

from __future__ import annotations

import queue
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from nemo_sdg import errors
from nemo_sdg.errors import RequestError
from nemo_sdg.llm.ledger import read_reply
from nemo_sdg.llm.request import Reply, Request
from nemo_sdg.llm.request_form import Filled

if TYPE_CHECKING:
    from nemo_sdg.llm.worker import EngineHandle

Answer = Reply | RequestError

_by_code = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, RequestError)
}


class Session:
    """The requests of one partition. Used by one thread; close it (or use `with`)."""

    def __init__(self, engine: EngineHandle, number: int, label: str = "") -> None:
        self.number, self.label = number, label
        self._engine = engine
        self._inbox: queue.SimpleQueue[list[list[Any]] | None] = queue.SimpleQueue()
        self._has_submitted = False
        self._sizes: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def submit(self, items: Iterable[tuple[int, Request | Filled]]) -> None:
        """Hand over requests, each with a token of your choice that is not on its way.

        What is handed over later follows from answers: it goes before the rest of the session.
        """
        stage, self._has_submitted = int(self._has_submitted), True
        self._engine._submit(self, items, stage)

    def wait(self, timeout_s: float | None = None) -> list[tuple[int, Answer]]:
        """Return the answers that have come, at least one, or none after the time-out.

        Raises:
            NemoSdgError: the whole run cannot go on: outage, refused key, unknown model, full disk.
        """
        if self._inbox.empty():
            self._engine._check()
        try:
            raw = self._inbox.get(timeout=timeout_s)
        except queue.Empty:
            return []
        answers: list[tuple[int, Answer]] = []
        while raw is not None:
            answers.extend(_read_answer(*answer) for answer in raw)
            try:
                raw = self._inbox.get_nowait()
            except queue.Empty:
                return answers
        self._engine._check()
        return answers

    def close(self) -> None:
        """Give up what has not been answered; its requests are cancelled."""
        self._engine._forget(self)


def _read_answer(token: int, ok: bool, *payload: Any) -> tuple[int, Answer]:
    if ok:
        entries, was_filed = payload
        return token, read_reply(entries, was_filed=was_filed)
    code, detail, status = payload
    return token, _by_code.get(code, RequestError)(detail, status=status)
