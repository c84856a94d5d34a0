"""How work in a run folder ends early: by a signal or an error, noted in `run.json`."""

from __future__ import annotations

import contextlib
import errno
import signal
import threading
from collections.abc import Iterator
from typing import Any

from nemo_sdg.errors import (
    CredentialError,
    EndpointError,
    NemoSdgError,
    RunStopped,
    Terminated,
    Unauthorized,
    UnknownModel,
)
from nemo_sdg.pipelines.folder import RunFolder


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Turn SIGTERM (a cluster that wants its nodes back) into a clean, resumable end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: Any) -> None:
        raise Terminated("asked to end (SIGTERM); run the same command again to go on")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def note_end(folder: RunFolder, fingerprint: str, error: BaseException) -> None:
    """Leave a run.json that says why there is no complete one."""
    status = "stopped" if isinstance(error, RunStopped | KeyboardInterrupt) else "failed"
    with contextlib.suppress(OSError):  # the disk may be what is full
        folder.write_json(
            "run.json",
            {
                "status": status,
                "reason": type(error).__name__,
                "detail": str(error),
                "exit_code": getattr(error, "exit_code", 130),
                "fingerprint": fingerprint,
            },
        )


@contextlib.contextmanager
def ends_noted(folder: RunFolder, fingerprint: str) -> Iterator[None]:
    """Where the work in a folder ends early, note why there and raise what a user should see."""
    try:
        yield
    except BaseException as error:
        known = as_known(error)
        note_end(folder, fingerprint, known)
        if known is error:
            raise
        raise known from error


def as_known(error: BaseException) -> BaseException:
    """Return the error that a user should see for what came up from workers and libraries."""
    if isinstance(error, Unauthorized):
        return CredentialError(f"the endpoint refuses the key: {error}")
    if isinstance(error, UnknownModel):
        return EndpointError(f"the endpoint does not know the model or the address: {error}")
    if isinstance(error, NemoSdgError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunStopped(
            f"the disk is full ({error.filename or 'output folder'}); what is filed is safe: make "
            "room and run the same command again"
        )
    if type(error).__name__ in ("KilledWorker", "CancelledError", "FutureCancelledError"):
        return RunStopped(
            f"workers were lost ({type(error).__name__}): run the same command again; answers are "
            "filed. If it happens at the same place, give workers more memory or smaller partitions"
        )
    return error
