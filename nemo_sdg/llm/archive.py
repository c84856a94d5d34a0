"""Answers that are filed, and no others: what stands in for an engine where nothing may be asked.

    archive = get_archive(ledger)
    with archive.session() as session:
        session.submit([(0, request)])
        session.wait()                    # [(0, Reply)], or [(0, NotFiled)]

It has the face of `EngineHandle`, starts no process, needs no key and reaches no network.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

from nemo_sdg.errors import NotFiled
from nemo_sdg.llm.ledger import Ledger, read_reply
from nemo_sdg.llm.request import Reply, Request
from nemo_sdg.llm.request_form import Filled


class Archive:
    """The answers of a ledger. Make one with `get_archive`; safe for threads."""

    def __init__(self, ledger: str) -> None:
        self._ledger = Ledger(ledger)
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Take in what was filed since."""
        with self._lock:
            self._ledger.refresh()

    def admit(self, requests: int, still_wanted: Callable[[], bool] = lambda: True) -> None:
        """Let everybody in: nothing is asked."""

    def record_rows(self, task: str, reasons: Sequence[str | None]) -> None:
        """Count nothing: no share of rows that fail stops a replay."""

    def session(self, label: str = "") -> ArchiveSession:
        """Open a session of one thread; a label of its requests is for engines that send some."""
        return ArchiveSession(self)

    def find(self, request: Request | Filled) -> Reply | NotFiled:
        """Return the answer to a request, or say that there is none."""
        keys = request.keys()
        with self._lock:
            filed = [self._ledger.get(key) for key in keys]
        entries = [entry for entry in filed if entry is not None]
        if len(entries) < len(filed):
            return NotFiled("no answer to this request is filed")
        return read_reply(entries, was_filed=True)


class ArchiveSession:
    """Has the face of `worker.Session`; all answers are there at once."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._answers: list[tuple[int, Reply | NotFiled]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._answers.clear()

    def submit(self, items: Iterable[tuple[int, Request | Filled]]) -> None:
        """Look requests up."""
        self._answers += [(token, self._archive.find(request)) for token, request in items]

    def wait(self, timeout_s: float | None = None) -> list[tuple[int, Any]]:
        """Return what was looked up since."""
        answers, self._answers = self._answers, []
        return answers


@functools.lru_cache(maxsize=2)
def _archive(ledger: str) -> Archive:
    return Archive(ledger)


def get_archive(ledger: str) -> Archive:
    """Return the archive of a ledger's folder, with all that is filed by now.

    Raises:
        RunFolderError: it cannot be read.
    """
    archive = _archive(ledger)
    archive.refresh()
    return archive
