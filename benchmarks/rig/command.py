"""The command in processes of its own, as a shell starts it: to be killed and run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

from nemo_sdg.llm.traffic import Log
from nemo_sdg.pipelines.recipe import Recipe
from rig import served

END_S = 180.0


class Command:
    """`nemo-sdg run RECIPE --output FOLDER`, the leader of a process group."""

    def __init__(self, recipe: Recipe, folder: Path, *options: str) -> None:
        self.folder = folder
        path = folder.with_suffix(".yaml")
        path.write_text(recipe.to_yaml())
        self._child = subprocess.Popen(
            [sys.executable, "-m", "nemo_sdg", "run", str(path), "--output", str(folder), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def kill_worker(self) -> None:
        """Kill -9 one worker."""
        os.kill(self._workers()[0], signal.SIGKILL)

    def kill_scheduler(self) -> None:
        """Kill -9 the command itself, in which the scheduler runs; workers see for themselves."""
        os.kill(self._child.pid, signal.SIGKILL)

    def kill_everything(self) -> None:
        """Kill -9 the whole process group."""
        os.killpg(self._child.pid, signal.SIGKILL)

    def interrupt(self) -> None:
        """Press Ctrl-C: every process of the group gets it."""
        os.killpg(self._child.pid, signal.SIGINT)

    def ended(self) -> tuple[int, str]:
        """Wait for the command and all its processes; return exit code and standard error."""
        try:
            _, error = self._child.communicate(timeout=END_S)
            end = time.monotonic() + END_S
            while self._members():
                if time.monotonic() > end:
                    raise TimeoutError(f"processes of the command live on: {self._members()}")
                time.sleep(0.05)
        except BaseException:
            self.kill_everything()
            raise
        return self._child.returncode, error

    @property
    def is_running(self) -> bool:
        return self._child.poll() is None

    def _workers(self) -> list[int]:
        return [pid for pid, words in self._members().items() if "spawn_main" in words]

    def _members(self) -> dict[int, str]:
        """Return the processes of the group that run, with their command lines."""
        found = {}
        for place in Path("/proc").glob("[0-9]*"):
            try:
                state, _, group = (place / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(group) == self._child.pid and state not in "ZX":
                    found[int(place.name)] = (place / "cmdline").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
        return found


def at_share(server: Any, command: Command, answers: int, action: Callable[[], Any]) -> float:
    """Do something when so many requests have been answered; return the moment."""
    while sum(entry.status == 200 for entry in served.asked(server.log).entries) < answers:
        if not command.is_running:
            raise RuntimeError(f"the command ended too early: {command.ended()}")
        time.sleep(0.05)
    moment = time.monotonic()
    action()
    return moment


def asked_again(log: Log, moment: float, margin_s: float = 0.2) -> tuple[int, int, int]:
    """Return what the end of a command at a moment cost.

    Returns:
        Requests in flight then; requests that were sent more than once; of these the ones whose
        answer had been complete `margin_s` before, and so must have been filed.
    """
    in_flight = repeated = filed = 0
    seen: dict[str, float | None] = {}
    for entry in sorted(log.entries, key=lambda e: e.arrival_s):
        if entry.arrival_s <= moment and (entry.end_s is None or entry.end_s >= moment):
            in_flight += 1
        if entry.body_hash in seen:
            repeated += 1
            before = seen[entry.body_hash]
            filed += before is not None and before < moment - margin_s
        is_whole = entry.status == 200 and not entry.client_left
        seen[entry.body_hash] = entry.end_s if is_whole else None
    return in_flight, repeated, filed


def output_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what "equal output" is about: rows of data, and who failed or was dropped, and why."""
    found = {}
    for name, columns in (
        ("data", None),
        ("dead_letters", ["id", "segment_id", "task", "reason"]),
        ("dropped", ["id", "segment_id", "task", "filter"]),
    ):
        files = [str(path) for path in sorted((folder / name).glob("part-*"))]
        rows = ds.dataset(files).to_table(columns=columns).to_pylist()
        found[name] = sorted(rows, key=lambda row: str(row["id"]))
    return found
