"""What the tests of whole runs share: documents, a cluster, a server, and what a run came to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import pandas as pd
import pyarrow.parquet as pq

from nemo_sdg.data.parts import read_manifest
from nemo_sdg.llm.ledger import Ledger
from nemo_sdg.llm.request import Request, Sampling
from nemo_sdg.pipelines.folder import TABLES
from nemo_sdg.pipelines.progress import Progress, Quiet
from nemo_sdg.pipelines.recipe import Recipe

SUMMARY = {"name": "summary", "output": "summary", "prompt": "Sum up in a line: {document}"}
MODEL = "scripted"
_SUBJECTS = ("bridges", "rivers", "clocks", "bread", "glass", "ships", "maps", "wells")


@contextmanager
def cluster(workers: int = 2) -> Iterator[Any]:
    """Yield a client of a cluster like the one that a run starts by itself."""
    from distributed import Client, LocalCluster

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 20}),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            silence_logs=50,
        ) as local,
        Client(local) as client,
    ):
        yield client


def text_of(number: int) -> str:
    subject = _SUBJECTS[number % len(_SUBJECTS)]
    return (
        f"Text number {number} is about {subject}. People have known {subject} for {number + 200} "
        f"years, and a museum with {number + 3} rooms shows how they came to be what they are."
    )


def documents(path: Path, numbers: Iterable[int]) -> Path:
    """Write short documents with ids d0000, d0001 ... as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"id": f"d{i:04d}", "text": text_of(i)} for i in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe_for(url: str, source: Path | Sequence[Path] | None, **fields: Any) -> Recipe:
    """Return a recipe of one request a document against a scripted endpoint."""
    given: dict[str, Any] = {
        "tasks": [SUMMARY],
        "model": MODEL,
        "tokenizer": "bundled",
        "endpoint": url,
        "concurrency": 16,
    }
    if source is not None:
        given["input"] = [str(p) for p in ([source] if isinstance(source, Path) else source)]
    return Recipe(**(given | fields))


# --- what a run left behind -----------------------------------------------------------------------


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def data_of(folder: Path, task: str | None = None) -> pd.DataFrame:
    """Return the rows of a task, in whatever format, sorted by id and segment."""
    place = folder / "data" / task if task else folder / "data"
    manifest = read_manifest(place)
    assert manifest is not None, f"{place} is not complete"
    frames = []
    for part in manifest["parts"]:
        path = place / part["name"]
        is_parquet = path.suffix == ".parquet"
        frames.append(
            pq.read_table(path).to_pandas() if is_parquet else pd.read_json(path, lines=True)
        )
    return in_order(pd.concat([f for f in frames if len(f)] or frames, ignore_index=True))


def in_order(frame: pd.DataFrame) -> pd.DataFrame:
    by = [name for name in ("id", "segment_id", "task", "filter", "call") if name in frame.columns]
    return frame.sort_values(by, kind="stable").reset_index(drop=True) if by else frame


def table_of(folder: Path, name: str) -> pd.DataFrame:
    """Return one of the side tables."""
    manifest = read_manifest(folder / name)
    assert manifest is not None, f"{name} is not complete"
    parts = [pq.read_table(folder / name / part["name"]) for part in manifest["parts"]]
    assert parts and len({str(part.schema) for part in parts}) == 1
    frame = pd.concat(
        [part.to_pandas() for part in parts if part.num_rows] or [parts[0].to_pandas()]
    )
    assert list(frame.columns) == list(TABLES[name])
    return in_order(frame.reset_index(drop=True))


def assert_equal_output(one: Path, other: Path) -> None:
    """Hold two run folders to "equal output" of DESIGN 7."""
    tasks = [sorted(report(folder)["counts"]) for folder in (one, other)]
    assert tasks[0] == tasks[1]
    for task in tasks[0] if len(tasks[0]) > 1 else [None]:
        pd.testing.assert_frame_equal(data_of(one, task), data_of(other, task))
    for name, columns in (
        ("dead_letters", ["id", "segment_id", "task", "reason"]),
        ("dropped", ["id", "segment_id", "task", "filter"]),
    ):
        first, second = (table_of(folder, name)[columns] for folder in (one, other))
        pd.testing.assert_frame_equal(first, second)


def add_up(counts: dict[str, int]) -> None:
    lost = sum(n for name, n in counts.items() if name.startswith(("filtered.", "dead.")))
    assert counts.get("kept", 0) + lost == counts.get("segments", 0)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# --- what was asked -------------------------------------------------------------------------------


def asked(log: Any) -> list[Any]:
    """Return the requests that cost something, oldest first."""
    return [entry for entry in log.entries if entry.path.endswith("/completions")]


def requests_of(log: Any) -> Counter[str]:
    return Counter(entry.body_hash for entry in asked(log))


def filed_keys(folder: Path) -> set[str]:
    ledger = Ledger(folder / "ledger")
    try:
        return {json.loads(line)["k"] for line in ledger.entries()}
    finally:
        ledger.close()


def key_of(body: dict[str, Any]) -> str:
    """Return the key under which the answer to this body is filed."""
    sampling = Sampling(
        temperature=body["temperature"],
        top_p=body["top_p"],
        max_output_tokens=body.get("max_tokens"),
        stop=tuple(body.get("stop", ())),
    )
    request = Request(
        model=body["model"],
        messages=tuple(body["messages"]),
        sampling=sampling,
        seed=body.get("seed"),
    )
    return request.keys()[0]


# --- commands in processes of their own -----------------------------------------------------------


def start(*arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """Start `nemo-sdg` as the leader of a process group of its own, as a shell does."""
    return subprocess.Popen(
        [sys.executable, "-m", "nemo_sdg", *arguments],
        cwd=cwd,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str], timeout_s: float = 60) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        kill_all(process)
        raise
    return process.returncode, out, err


def kill_all(process: subprocess.Popen[str]) -> None:
    """Kill -9 the command with its workers, engines and all."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    until(lambda: not group_lives(process.pid))


def group_lives(group: int) -> bool:
    """Tell whether a process of the group runs; one that nobody has reaped does not count."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, found = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(found) == group and state not in "ZX":
            return True
    return False


def until(condition: Callable[[], bool], *, timeout_s: float = 60) -> None:
    """Wait for what another process makes true."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)


class At(Quiet):
    """An observer that does something once, when so many requests have been answered."""

    def __init__(self, num_requests: int, action: Callable[[], Any]) -> None:
        self.num_requests, self.action = num_requests, action
        self.result: Any = None
        self.states: list[Progress] = []
        self.notes: list[str] = []
        self.lines: list[str] = []

    def announce(self, line: str) -> None:
        self.lines.append(line)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, state: Progress) -> None:
        self.states.append(state)
        if self.num_requests >= 0 and state.requests_done >= self.num_requests:
            self.num_requests = -1
            self.result = self.action()
