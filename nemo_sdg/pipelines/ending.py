"""How work in a run folder ends: noted in `run.json` and the report, early or not."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from nemo_sdg.errors import Interrupted
from nemo_sdg.pipelines.folder import RunFolder
from nemo_sdg.pipelines.report import write_report
from nemo_sdg.pipelines.result import as_known, note_end


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Turn SIGTERM (a cluster that wants its nodes back) into a clean, resumable end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: Any) -> None:
        raise Interrupted("asked to end (SIGTERM); run the same command again to go on")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def ends_noted(folder: RunFolder, fingerprint: str, *, is_priced: bool) -> Iterator[None]:
    """Write the report when the work ends; where it ends early, note why and raise what to tell."""
    try:
        yield
    except BaseException as error:
        known = as_known(error)
        note_end(folder, fingerprint, known, is_priced=is_priced)
        with contextlib.suppress(Exception):  # its own error matters more
            write_report(folder)
        if known is error:
            raise
        raise known from error
    write_report(folder)
