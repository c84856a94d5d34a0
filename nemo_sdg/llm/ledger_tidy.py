"""Keep the files of a ledger few and small: seal what dead writers left, merge small sealed files.

Any process may do so at any time, beside writers and readers; one at a time where the file system
has locks. Without locks two would do the work twice, which costs room until the next merge.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_sdg.errors import RunFolderError
from nemo_sdg.llm.ledger_files import ASIDE, OPEN, LedgerFull, OpenFile, held, taken_over
from nemo_sdg.llm.ledger_seal import GivenUp, Go, merge, seal
from nemo_sdg.llm.ledger_segment import SEALED, Segment

SEAL_BYTES = 4 << 20
"""An open file that has grown past this is sealed."""

FAN = 8
"""So many sealed files of a size become one of the next size."""

SIZES = (2 << 20, 16 << 20, 128 << 20)
"""Bytes below which a file is of a size; above the last it is left alone."""
MOST_ENTRIES = 1 << 18
"""A file with more entries is merged by `clean` only: to sort its index takes memory."""


@dataclass
class Tidied:
    """What was done. A file that could not be sealed or read stands in `notes`."""

    sealed: int = 0
    merged: int = 0
    leftovers: int = 0
    notes: list[str] = field(default_factory=list)


def tidy(folder: Path, go: Go = lambda: True) -> Tidied:
    """Seal files of dead writers, remove what dead sealers left, and merge what is small.

    Raises:
        OSError: the disk is full, or the folder cannot be read.
        GivenUp: `go` said no.
    """
    done = Tidied()
    with held(folder) as is_mine:
        if is_mine:
            remove_leftovers(folder, done)
            adopt(folder, done, go)
            merge_small(folder, done, go)
    return done


def adopt(folder: Path, done: Tidied, go: Go = lambda: True) -> None:
    """Seal the open files of writers that are dead; raises as `tidy`."""
    for path in sorted(folder.glob("*" + OPEN)):
        with taken_over(path) as is_dead:
            if is_dead:
                try:
                    seal(path, is_trusted=False, go=go)
                    done.sealed += 1
                except RunFolderError as error:
                    done.notes.append(str(error))


def remove_leftovers(folder: Path, done: Tidied) -> None:
    """Remove what was written aside by processes that are dead."""
    for path in leftovers(folder):
        with taken_over(path) as is_dead:
            if is_dead:
                path.unlink(missing_ok=True)
                done.leftovers += 1


def leftovers(folder: Path) -> list[Path]:
    """Return the files aside, also those of a process that is at work."""
    return sorted(folder.glob("*" + ASIDE))


def merge_small(folder: Path, done: Tidied, go: Go = lambda: True) -> None:
    """Merge sealed files of one size as soon as there are `FAN` of them; raises as `tidy`."""
    for size in SIZES:
        small = [path for path in sorted(folder.glob("*" + SEALED)) if path.stat().st_size < size]
        if len(small) < FAN:
            continue
        segments = opened(small, done)
        chosen = [one for one in segments if len(one) <= MOST_ENTRIES]
        if len(chosen) >= FAN:
            merge(chosen, go)
            done.merged += len(chosen)


def opened(paths: list[Path], done: Tidied) -> list[Segment]:
    """Open sealed files; those that cannot be read are told of and left out."""
    found = []
    for path in paths:
        try:
            found.append(Segment(path))
        except FileNotFoundError:
            continue
        except RunFolderError as error:
            done.notes.append(str(error))
    return found


class Housekeeper:
    """Seals and tidies in a thread of its own, for one writer.

    A file that cannot be sealed (no room, say) stays open: it is read as it is, and whoever
    tidies next seals it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pool: ThreadPoolExecutor | None = None
        self._jobs: list[Future[None]] = []
        self._is_ending = threading.Event()

    def seal(self, file: OpenFile) -> None:
        """Seal a file of this process that is full, and merge what has become many."""
        self._start(self._seal, file)

    def tidy(self) -> None:
        """Tidy the folder once; given up when the ledger closes."""
        self._start(self._tidy)

    def close(self) -> None:
        """Wait until what is full is sealed."""
        self._is_ending.set()
        if self._pool is not None:
            self._pool.shutdown()
            jobs, self._jobs = self._jobs, []
            for job in jobs:
                job.result()

    def _start(self, work: Callable[..., None], *args: Any) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "ledger")
        self._jobs = [job for job in self._jobs if not job.done() or job.exception()]
        self._jobs.append(self._pool.submit(work, *args))

    def _seal(self, file: OpenFile) -> None:
        seal_own(file)
        self._tidy()

    def _tidy(self) -> None:
        with contextlib.suppress(OSError, GivenUp):
            tidy(self._folder, lambda: not self._is_ending.is_set())


def seal_own(file: OpenFile) -> None:
    """Sync and seal a file that this process wrote, where there is room; remove an empty one."""
    with contextlib.suppress(OSError, LedgerFull):
        if file.is_empty:
            file.path.unlink(missing_ok=True)
        else:
            file.sync()
            seal(file.path, is_trusted=True)
    file.close()
