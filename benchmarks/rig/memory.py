"""Resident memory of this process, now and at its highest."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Self


def resident_bytes() -> int:
    """Return what of this process lies in memory."""
    return _of("VmRSS")


def _of(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name} in /proc/self/status")


class peak_bytes:
    """Context manager; afterwards `most` is the largest resident size within."""

    most = 0

    def __enter__(self) -> Self:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the kernel's own high-water mark
            self._thread = None
        except OSError:
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._watch)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._thread is None:
            self.most = _of("VmHWM")
        else:
            self._stop.set()
            self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.most = max(self.most, resident_bytes())
