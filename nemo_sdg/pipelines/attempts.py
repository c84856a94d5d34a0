"""Marks of what was started in a run folder and has not ended: they outlive every process.

    attempt = Attempt(folder, "summary/started-00007", fingerprint=..., run=...)
    with attempt:          # the mark is there from here on ...
        work()             # ... and stays when the process dies in it

A mark counts the starts. Whatever ends, well or by an exception, takes its mark along.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

import orjson

from nemo_sdg.pipelines.folder import RunFolder
from nemo_sdg.pipelines.owner import has_ended

MOST_STARTS = 3
"""A part that was started so often and never ended is made alone."""

SETTLE_S = 0.5
"""What a process that follows a dead one waits before its first piece of work. The nanny of
distributed 2026.7 gives up a worker for good that dies within some 50 ms of its start, as one does
that goes on at once with what its forerunner died of."""

_settling = threading.Lock()
_is_settled = False


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """The mark of one piece of work. `run` tells apart starts of different runs."""

    folder: RunFolder
    name: str
    fingerprint: str
    run: str

    @property
    def _path(self) -> str:
        return f"state/{self.name}.json"

    def _found(self) -> dict[str, Any]:
        found = _mark(self.folder, self._path)
        return found if found.get("fingerprint") == self.fingerprint else {}

    @property
    def times(self) -> int:
        """How often it was started and did not end."""
        return int(self._found().get("times", 0))

    @property
    def is_deadly(self) -> bool:
        """Whether it has taken a process along: in this run, or twice if runs died with it."""
        found = self._found()
        return found.get("run") == self.run or found.get("times", 0) > 1

    def __enter__(self) -> None:
        _settle(self.folder)
        mark = {"fingerprint": self.fingerprint, "run": self.run, "times": self.times + 1}
        here = {"host": socket.gethostname(), "pid": os.getpid()}
        self.folder.write_json(self._path, mark | here, sync="nothing")

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the starts."""
        (self.folder.path / self._path).unlink(missing_ok=True)


def _settle(folder: RunFolder) -> None:
    global _is_settled
    if _is_settled:
        return
    with _settling:
        if not _is_settled and _has_lost_a_process(folder):
            time.sleep(SETTLE_S)
        _is_settled = True


def _mark(folder: RunFolder, path: str) -> dict[str, Any]:
    """Return what a mark says; nothing of one that is not there, or that a machine took along."""
    try:
        found = orjson.loads((folder.path / path).read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _has_lost_a_process(folder: RunFolder) -> bool:
    """Say whether a mark was left behind on this machine."""
    for path in (folder.path / "state").glob("*/*.json"):
        if path.name.startswith("part-"):
            continue
        mark = _mark(folder, str(path.relative_to(folder.path)))
        if mark and has_ended(mark):
            return True
    return False
