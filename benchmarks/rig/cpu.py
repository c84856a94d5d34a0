"""Processor time of all processes of a run, between two moments.

    with CpuWatch() as watch:
        ...
    watch.between(log.first, log.last)      # {"client": 0.4, "worker": 2.1, "engine": 1.7}

Client CPU is what this process and all its descendants used (client and scheduler, workers,
engines), from the first request to the last; servers, the floor and the watch itself are left
out. A process of its own reads /proc every 50 ms, so that watching costs the watched nothing;
between two readings the time is interpolated. Moments are of the machine's monotonic clock.
"""

from __future__ import annotations

import bisect
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

EVERY_S = 0.05
LOOK_FOR_NEW_S = 0.25
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_LEFT_OUT = ("raw_server", "changing_server", "scripted_process", "rig/floor", "rig/cpu")


class CpuWatch:
    """Watches this process and its descendants while it is entered.

    Attributes:
        most_bytes: largest memory of each kind of process, once it has ended.
        memory: (moment, kind of process -> bytes resident that are of no file), every reading.
    """

    def __init__(self) -> None:
        self._readings: list[tuple[float, dict[str, float]]] = []
        self.memory: list[tuple[float, dict[str, int]]] = []

    def __enter__(self) -> Self:
        command = [sys.executable, __file__, str(os.getpid())]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._child.stdout is not None
        self._child.stdout.readline()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        out, _ = self._child.communicate("stop\n", timeout=60)
        for line in out.splitlines():
            moment, seconds, sizes = json.loads(line)
            self._readings.append((moment, seconds))
            self.memory.append((moment, sizes))

    def between(self, first: float, last: float) -> dict[str, float]:
        """Return the seconds of each kind of process between two moments."""
        before, after = self._at(first), self._at(last)
        return {kind: round(after[kind] - before.get(kind, 0.0), 3) for kind in after}

    @property
    def span(self) -> tuple[float, float]:
        """The first moment and the last."""
        return self._readings[0][0], self._readings[-1][0]

    def whole(self) -> dict[str, float]:
        """Return the seconds of each kind of process while it was watched."""
        return self.between(*self.span)

    @property
    def most_bytes(self) -> dict[str, int]:
        """Largest memory of each kind of process, summed over those of a kind."""
        most: dict[str, int] = {}
        for _, sizes in self.memory:
            for kind, size in sizes.items():
                most[kind] = max(most.get(kind, 0), size)
        return most

    def _at(self, moment: float) -> dict[str, float]:
        place = bisect.bisect_left(self._readings, moment, key=lambda reading: reading[0])
        if place == 0:
            return self._readings[0][1]
        if place == len(self._readings):
            return self._readings[-1][1]
        (t0, low), (t1, high) = self._readings[place - 1 : place + 1]
        share = (moment - t0) / (t1 - t0)
        return {k: low.get(k, 0.0) + share * (v - low.get(k, 0.0)) for k, v in high.items()}


# --- the watching process -------------------------------------------------------------------------


def _stat(pid: int) -> tuple[int, float, int] | None:
    """Return (parent, seconds of processor time, bytes of memory) of a process.

    Memory is what is resident and of no file: pages of mapped files are the system's to take back.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        _, resident, of_files, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    size = (int(resident) - int(of_files)) * _PAGE
    return int(fields[1]), (int(fields[11]) + int(fields[12])) / _TICKS, size


def _kind(pid: int, root: int) -> str:
    if pid == root:
        return "client"
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    if not words or any(name in words for name in _LEFT_OUT):
        return ""
    if "engine_process" in words:
        return "engine"
    return "worker" if "spawn_main" in words else "other"


def _family(root: int) -> set[int]:
    children: dict[int, list[int]] = defaultdict(list)
    for place in Path("/proc").iterdir():
        if place.name.isdigit() and (found := _stat(int(place.name))) is not None:
            children[found[0]].append(int(place.name))
    family, new = set(), [root]
    while new:
        pid = new.pop()
        family.add(pid)
        new.extend(children[pid])
    return family


def _watch(root: int) -> None:
    kinds: dict[int, str] = {}
    seconds: dict[int, float] = {}
    looked = 0.0
    os.set_blocking(sys.stdin.fileno(), False)
    lines: list[str] = []
    print("ready", flush=True)
    while not sys.stdin.readline():
        now = time.monotonic()
        if now - looked > LOOK_FOR_NEW_S:
            looked = now
            for pid in _family(root) - kinds.keys():
                # A process that has just been forked still bears its parent's name.
                if (kind := _kind(pid, root)) != "client" or pid == root:
                    kinds[pid] = kind
        sizes: dict[str, int] = defaultdict(int)
        for pid, kind in kinds.items():
            if kind and (found := _stat(pid)) is not None:
                seconds[pid] = found[1]
                sizes[kind] += found[2]
        sums: dict[str, float] = defaultdict(float)
        for pid, spent in seconds.items():
            sums[kinds[pid]] += spent
        lines.append(json.dumps([time.monotonic(), sums, sizes]))
        time.sleep(EVERY_S)
    print("\n".join(lines), flush=True)


def total(seconds: dict[str, Any]) -> float:
    """Return the sum over all kinds of process."""
    return float(sum(seconds.values()))


if __name__ == "__main__":
    _watch(int(sys.argv[1]))
