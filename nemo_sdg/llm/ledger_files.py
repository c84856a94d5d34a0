"""Open files of the ledger: JSON lines that one writer appends to, and how its death is known.

A writer holds a lock on its file as long as it may append. Who gets that lock has found a file
that nobody writes any more, and may seal it. A lock is believed about writers of this machine
only, since some file systems lock within one machine; without one, the process id is asked. A
file from another machine must have been silent for an hour besides, and a writer that was silent
looks whether its file is still there before it goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import orjson

from nemo_sdg.errors import RunFolderError, RunStopped

OPEN = ".jsonl"
ASIDE = ".tmp"
OPEN_VERSION = 1
HEADER = b'{"format":"nemo_sdg ledger","v":%d}\n' % OPEN_VERSION
SILENT_S = 3600.0
"""A writer elsewhere that appended nothing for so long is taken for dead."""

LOOK_S = 600.0
"""After a silence of this length a writer looks whether its file is still there."""

_SCAN_BYTES = 1 << 20
_TRIES = 10


class LedgerFull(RunStopped):
    """The disk takes no more answers; those that are filed are safe.

    `num_filed` of the entries that were to be filed had room.
    """

    num_filed = 0


class OpenFile:
    """The file that one writer appends to.

    Attributes:
        end: bytes that are complete entries, header included.
        is_closed: file and lock were let go of.
    """

    def __init__(self, folder: Path) -> None:
        for _ in range(_TRIES):
            self.path = folder / (new_name() + OPEN)
            self._handle = os.open(
                self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600
            )
            if _locked(self._handle) is not False and os.fstat(self._handle).st_nlink:
                break
            os.close(self._handle)  # somebody took it for a dead one's before it was locked
        os.write(self._handle, HEADER)
        self.end = len(HEADER)
        self._is_dirty = False
        self.is_closed = False
        self._used = time.monotonic()
        self._closing = threading.Lock()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was filed."""
        return self.end <= len(HEADER)

    def append(self, data: bytes) -> None:
        """Append whole lines; when this returns, killing the process loses nothing.

        Raises:
            LedgerFull: the disk is full; the lines that had room are filed, and the file ends with
                the last of them.
        """
        written = 0
        try:
            while written < len(data):
                written += os.write(self._handle, data[written:])
        except OSError as error:
            whole = data.rfind(b"\n", 0, written) + 1
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, self.end + whole)
            full = LedgerFull(
                f"the answer cannot be filed ({error.strerror}) in {self.path.parent}; what is "
                "filed is safe: make room and run the same command again"
            )
            full.num_filed = data.count(b"\n", 0, whole)
            written = whole
            raise full from None
        finally:
            self.end += written
            self._is_dirty = self._is_dirty or written > 0
            self._used = time.monotonic()

    def was_taken(self) -> bool:
        """Whether another, after a long silence, took this writer for dead and sealed its file."""
        if time.monotonic() - self._used < LOOK_S:
            return False
        self._used = time.monotonic()
        try:
            return not os.path.samestat(os.stat(self.path), os.fstat(self._handle))
        except OSError:
            return True

    def sync(self) -> None:
        """Force what was appended to the disk; may be called beside `append`.

        Raises:
            LedgerFull: the disk does not take it.
        """
        with self._closing:
            if self.is_closed or not self._is_dirty:
                return
            self._is_dirty = False
            try:
                os.fdatasync(self._handle)
            except OSError as error:
                raise LedgerFull(
                    f"the disk takes no more answers ({error.strerror}) in {self.path.parent}; "
                    "make room and run the same command again"
                ) from None

    def close(self) -> None:
        """Let go of file and lock."""
        with self._closing:
            if not self.is_closed:
                self.is_closed = True
                os.close(self._handle)


def new_name() -> str:
    """Return a name for a file of this process, without suffix."""
    return f"{_host()}-{os.getpid()}-{secrets.token_hex(4)}"


def sync_folder(folder: Path) -> None:
    """Force names to the disk; syncing a file does not sync its name."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot, and need not
            os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Hold the lock on a folder; yield whether nobody else does. True where there are no locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield _locked(handle) is not False
    finally:
        os.close(handle)


@contextlib.contextmanager
def taken_over(path: Path) -> Iterator[bool]:
    """Hold a file of which nobody writes any more; yield whether that is so."""
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:  # gone, or not ours to change
        yield False
        return
    try:
        yield _is_dead(path, handle)
    finally:
        os.close(handle)


def complete_lines(path: Path, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield the lines from an offset on and where they begin; the header is checked and left out.

    A torn tail, or a line that is being written, is not yielded.

    Raises:
        RunFolderError: it is no file of ours, or of another version.
    """
    with path.open("rb", buffering=_SCAN_BYTES) as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            if offset == 0:
                check_header(path, line)
            else:
                yield offset, line
            offset += len(line)


def check_header(path: Path, line: bytes) -> None:
    """Raise `RunFolderError` where a first line is not that of an open file."""
    try:
        version = orjson.loads(line).get("v")
    except (orjson.JSONDecodeError, AttributeError):
        version = None
    if version != OPEN_VERSION:
        raise RunFolderError(
            f"{path} is no ledger of version {OPEN_VERSION}; it was written by another "
            "version of nemo_sdg, or is another file"
        )


def _host() -> str:
    return "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:40]


def _locked(handle: int) -> bool | None:
    """Lock a file; False where another holds it, None where its file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_dead(path: Path, handle: int) -> bool:
    locked, found = _locked(handle), os.fstat(handle)
    if locked is False or not found.st_nlink:
        return False
    host, _, rest = path.name.partition(".")[0].rpartition("-")[0].rpartition("-")
    if host == _host() and (locked or not _is_process(rest)):
        return True
    return time.time() - found.st_mtime > SILENT_S


def _is_process(number: str) -> bool:
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True
