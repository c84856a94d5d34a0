"""How an engine leaves: nothing more is started, what is under way is filed, and then it says so.

Requests in flight are paid for already. So they are awaited, at most `DRAIN_S` and no longer than a
request may take, and filed; what waits for a slot is left. Only then do those who wait for answers
hear that this engine leaves (`errors.WorkerLeaves`): whoever takes their rows over finds in the
ledger all that was paid for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from nemo_sdg.errors import NemoSdgError, RunStopped, WorkerLeaves
from nemo_sdg.llm.engine_config import EngineConfig
from nemo_sdg.llm.ledger import Ledger
from nemo_sdg.llm.outbox import Outbox

DRAIN_S = 30.0
SIGNAL_S = 0.05
"""A signal to the whole group may reach this process after the end of its worker does."""


class Drain:
    """Belongs to the event loop of its engine.

    Args:
        config: of the engine.
        outbox: what has been answered is in it, or filed.
        ledger: forced to the disk before the end is told.
        in_flight: tells how many requests are under way.
        stop: ends the engine with an error.
    """

    def __init__(
        self,
        config: EngineConfig,
        outbox: Outbox,
        ledger: Ledger | None,
        in_flight: Callable[[], int],
        stop: Callable[[NemoSdgError], None],
    ) -> None:
        self.is_on = self._is_asked = False
        self._in_flight, self._outbox, self._ledger, self._stop = in_flight, outbox, ledger, stop
        self._most_s = min(DRAIN_S, config.terms.longest_s)
        self._over = asyncio.Event()

    def begin(self) -> None:
        """Start nothing from here on."""
        if not self._is_asked:
            self.is_on = self._is_asked = True
            asyncio.get_running_loop().call_later(self._most_s, self._end)

    def holds(self) -> bool:
        """Say whether nothing may be started; with nothing in flight this is the end."""
        if self._is_asked and not self._in_flight():
            self._end()
        return self.is_on

    async def ended(self) -> None:
        """Start nothing for a worker that is gone; wait until all is filed, if asked to leave."""
        self.is_on = True
        if not self._is_asked:
            await asyncio.sleep(SIGNAL_S)
        if self._is_asked:
            await self._over.wait()

    def _end(self) -> None:
        if self._over.is_set():
            return
        self._over.set()
        self._outbox.flush()
        try:
            if self._ledger is not None:
                self._ledger.sync()
        except RunStopped as error:
            self._stop(error)
            return
        self._stop(WorkerLeaves("asked to end: what was under way is filed, the rest is not asked"))
