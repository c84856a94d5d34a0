"""The frames that an engine sends its worker; answers of one turn of the loop go out together."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Sequence
from typing import Any

from nemo_sdg.errors import NemoSdgError
from nemo_sdg.llm.frames import write_frame


class Outbox:
    """Belongs to the running event loop. `writer` is where frames go."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._done: list[tuple[Any, ...]] = []
        self._is_planned = False

    def answer(self, waiters: Sequence[tuple[int, int]], ok: bool, *payload: Any) -> None:
        """Hand an answer, or the reason why there is none, to all that wait for it."""
        self._done.extend((*waiter, ok, *payload) for waiter in waiters)
        if not self._is_planned:
            self._is_planned = True
            asyncio.get_running_loop().call_soon(self._flush)

    def send(self, what: str, *content: Any) -> None:
        """Send a frame at once."""
        self._writer.write(write_frame([what, *content]))

    def end(self, error: NemoSdgError) -> None:
        """Tell that the engine has ended, and why."""
        self.send("fatal", pickle.dumps(error))

    def _flush(self) -> None:
        self._is_planned = False
        done, self._done = self._done, []
        self.send("done", done)
