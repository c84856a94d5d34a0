"""Marks of what was started in a run folder and has not ended: they outlive every process.

    attempt = Attempt(folder, "summary/started-00007", fingerprint=..., run=...)
    with attempt:          # the mark is there from here on ...
        work()             # ... and stays when the process dies in it

A mark counts the starts. Whatever ends, well or by an exception, takes its mark along.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nemo_sdg.pipelines.folder import RunFolder

MOST_STARTS = 3
"""A part that was started so often and never ended is made alone."""


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
        found: dict[str, Any] = self.folder.read_json(self._path) or {}
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
        mark = {"fingerprint": self.fingerprint, "run": self.run, "times": self.times + 1}
        self.folder.write_json(self._path, mark)

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the starts."""
        (self.folder.path / self._path).unlink(missing_ok=True)
