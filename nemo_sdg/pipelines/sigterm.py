"""SIGTERM to the command: a cluster wants its node back, and gives some time for it.

While requests are on their way the first one is noted only, and whoever waits for the work has what
is under way filed (`pipelines.watch`). Before and after that, or the second time, it ends the run
at once. Either way the run can be resumed.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from nemo_sdg.errors import Interrupted


class _State:
    is_at_work = False
    is_asked = False


def is_asked_to_leave() -> bool:
    """Say whether SIGTERM came while requests were on their way."""
    return _State.is_asked


@contextlib.contextmanager
def leaving_in_peace() -> Iterator[None]:
    """Do work of which what is under way is to be filed when SIGTERM comes."""
    _State.is_at_work = True
    try:
        yield
    finally:
        _State.is_at_work = False


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Turn SIGTERM into a clean, resumable end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: Any) -> None:
        if _State.is_at_work and not _State.is_asked:
            _State.is_asked = True
            return
        raise Interrupted("asked to end (SIGTERM); run the same command again to go on")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _State.is_asked = False
