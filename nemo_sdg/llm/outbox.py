"""What an engine files and sends its worker: answers go out together, and only once filed."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Sequence
from typing import Any

from nemo_sdg.errors import NemoSdgError, RunStopped
from nemo_sdg.llm.frames import write_frame
from nemo_sdg.llm.ledger import Ledger
from nemo_sdg.llm.tries import TryLog

GATHER_S, GATHER_MOST = 0.002, 64
"""How long answers are gathered, and how many: a system call and a waking of the worker's thread
for each was a tenth of what a request cost."""

Waiters = Sequence[tuple[int, int]]


class Outbox:
    """Belongs to the running event loop.

    Args:
        writer: where frames go.
        ledger: where answers are filed before they are handed over; None: nowhere.
        failed: called when they cannot be filed; they are not handed over then.
        tries: written down along with the answers.
    """

    def __init__(
        self,
        writer: Any,
        ledger: Ledger | None,
        failed: Callable[[NemoSdgError], None],
        tries: TryLog,
    ) -> None:
        self._writer, self._ledger, self._failed, self._tries = writer, ledger, failed, tries
        self._done: list[tuple[Waiters, tuple[Any, ...]]] = []
        self._unfiled: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None

    def answer(self, waiters: Waiters, lines: Sequence[bytes]) -> None:
        """File the entries of an answer, then hand them to all that wait for it."""
        self._unfiled.extend(lines)
        self.hand_over(waiters, True, lines, False)

    def hand_over(self, waiters: Waiters, ok: bool, *payload: Any) -> None:
        """Hand over what is filed already, or the reason why there is no answer."""
        self._done.append((waiters, (ok, *payload)))
        if len(self._done) >= GATHER_MOST:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER_S, self.flush)

    def send(self, what: str, *content: Any) -> None:
        """Send a frame at once; where nobody is left to read it, as after Ctrl-C, do nothing."""
        if not self._writer.is_closing():
            self._writer.write(write_frame([what, *content]))

    def end(self, error: NemoSdgError) -> None:
        """Tell that the engine has ended, and why."""
        self.send("fatal", pickle.dumps(error))

    def flush(self) -> None:
        """File and hand over all that was gathered."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        done, self._done = self._done, []
        unfiled, self._unfiled = self._unfiled, []
        if self._ledger is not None and unfiled:
            try:
                self._ledger.put_many(unfiled)
            except RunStopped as error:
                self._failed(error)
                return
        self._tries.flush()
        frame = [(*waiter, *payload) for waiters, payload in done for waiter in waiters]
        if frame:
            self.send("done", frame)
