"""Paid answers of a client: found in a ledger, filed there, safe for threads.

answers = Answers(folder, endpoint)
reply = answers.find(request) or answers.file(request, body, attempts=1, latency_s=0.4)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.ledger import Ledger, entries_of, read_reply
from nemo_sdg.llm.request import Reply, Request

REFRESH_S = 1.0
SYNC_S = 1.0


class Answers:
    """A ledger behind a lock, or none: then nothing is found and nothing kept.

    Args:
        folder: of the ledger, made if missing; None: answers are not kept.
        endpoint: named in each entry.
    """

    def __init__(self, folder: str | Path | None, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._ledger = Ledger(folder, writer=True) if folder is not None else None
        self._lock = threading.Lock()
        self._refreshed = self._synced = time.monotonic()

    @property
    def are_kept(self) -> bool:
        """Whether there is a ledger: an equal request is then answered by the same answer."""
        return self._ledger is not None

    def find(self, request: Request) -> Reply | None:
        """Return the filed answer, also one that another process filed a second ago or more.

        Raises:
            RunFolderError: the ledger cannot be read any more.
        """
        if self._ledger is None:
            return None
        keys = request.keys()
        with self._lock:
            found = [self._ledger.get(key) for key in keys]
            if None in found and time.monotonic() - self._refreshed > REFRESH_S:
                self._ledger.refresh()
                self._refreshed = time.monotonic()
                found = [self._ledger.get(key) for key in keys]
        lines = [line for line in found if line is not None]
        return read_reply(lines, was_filed=True) if len(lines) == len(found) else None

    def file(
        self,
        request: Request,
        body: Mapping[str, Any],
        *,
        attempts: int,
        latency_s: float,
        first_token_s: float | None = None,
    ) -> Reply:
        """File what came and return it; killing the process loses nothing of it.

        Raises:
            MalformedReply: it is not what the protocol says.
            LedgerFull: the disk takes no more.
        """
        lines = entries_of(
            request.keys(),
            body,
            model=request.model,
            endpoint=self._endpoint.url,
            attempts=attempts,
            latency_s=latency_s,
            first_token_s=first_token_s,
        )
        if self._ledger is not None:
            with self._lock:
                for line in lines:
                    self._ledger.put(line)
        return read_reply(lines, was_filed=False)

    @property
    def is_sync_due(self) -> bool:
        """Whether `sync` should be called: a second has passed since the last time."""
        return self._ledger is not None and time.monotonic() - self._synced > SYNC_S

    def sync(self) -> None:
        """Force what was filed to the disk; blocks, so call it beside an event loop."""
        self._synced = time.monotonic()
        if self._ledger is not None:
            self._ledger.sync()

    def close(self) -> None:
        """Sync and close the ledger."""
        if self._ledger is not None:
            with self._lock:
                self._ledger.close()
