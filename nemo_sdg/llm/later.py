"""Requests that wait to be asked again; they hold no slot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from nemo_sdg.llm.backlog import Item


class Later:
    """Hands each request back when its time has come. Belongs to the running event loop."""

    def __init__(self, due: Callable[[Item], None]) -> None:
        self._due = due
        self._timers: dict[asyncio.TimerHandle, Item] = {}

    def __len__(self) -> int:
        return len(self._timers)

    def put(self, item: Item, wait_s: float) -> None:
        """Keep a request for so many seconds."""
        timer: list[asyncio.TimerHandle] = []
        loop = asyncio.get_running_loop()
        timer.append(loop.call_later(wait_s, lambda: self._ring(timer[0])))
        self._timers[timer[0]] = item

    def drop_unwanted(self) -> None:
        """Give up the requests that nobody waits for any more."""
        for timer, item in list(self._timers.items()):
            if not item.waiters:
                timer.cancel()
                del self._timers[timer]

    def clear(self) -> None:
        """Give up all."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _ring(self, timer: asyncio.TimerHandle) -> None:
        self._due(self._timers.pop(timer))
