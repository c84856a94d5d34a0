"""The log of tries: one line for every request that was sent, whatever became of it.

    tries = TryLog(folder)
    tries.put("distill", started, usage)                           # an answer
    tries.put("distill", started, code="timeout", is_repeated=True)
    tries.flush()
    for batch in read_tries(folder): ...                              # Arrow record batches

What was paid for is known from here alone: from a run that was killed, stopped or resumed, from
parts that are not finished, from requests that failed. A file belongs to one engine and is only
appended to; a torn tail costs its line. About 60 bytes a request.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nemo_sdg.llm.usage import NO_USAGE, Usage

COLUMNS = {
    "at": "float64",
    "latency_s": "float64",
    "task": "string",
    "code": "string",
    "repeated": "int64",
    "input_tokens": "int64",
    "output_tokens": "int64",
    "reasoning_tokens": "int64",
    "cached_tokens": "int64",
    "cost": "float64",
    "first_token_s": "float64",
    "estimated": "int64",
    "copy": "int64",
}
"""`at`: when it ended, in seconds since 1970. `code`: why there is no answer, "" for an answer.
`repeated`: 1 where the same request is sent again because of this failure. `cost`: by the prices of
the endpoint that was asked, null where they are not known. `first_token_s`: from sending to
the first token of a stream, null for an answer in one piece and in files that do not tell.
`estimated`: 1 where the tokens are ours: the connection was closed before the server told them.
`copy`: 1 for the second copy of a request that took long (`Endpoint.hedge`)."""

CANCELLED = "cancelled"
"""The code of a request that the run's end, or its row's, overtook."""

OVERTAKEN = "overtaken"
"""The code of the one of two copies whose twin was answered first."""

_HEADER = ",".join(COLUMNS).encode() + b"\n"


class TryLog:
    """Appends to a file of its own in `folder`; makes both with the first line.

    Without a folder nothing is kept. A full disk stops no run by itself (the ledger does): lines
    wait for room.
    """

    def __init__(self, folder: str | Path | None) -> None:
        host = "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:40]
        name = f"{host}-{os.getpid()}-{secrets.token_hex(4)}.csv"
        self._path = None if folder is None else Path(folder) / name
        self._lines: list[str] = []
        self._unwritten = _HEADER
        self._out: int | None = None

    def put(
        self,
        task: str,
        started: float,
        usage: Usage = NO_USAGE,
        *,
        code: str = "",
        is_repeated: bool = False,
        cost: float | None = None,
        first_token_s: float | None = None,
        is_copy: bool = False,
    ) -> None:
        """Note a request that has just ended; `flush` hands it to the operating system.

        Args:
            task: who asked.
            started: when it was sent, by `time.perf_counter`.
            usage: what the reply said it cost.
            code: why there is no answer.
            is_repeated: whether the same request will be sent again.
            cost: None where a price is unknown.
            first_token_s: None where no stream told.
            is_copy: whether it was the second copy of a request.
        """
        if self._path is None:
            return
        last = (
            "0,0" if not (usage.is_estimated or is_copy) else f"{usage.is_estimated:d},{is_copy:d}"
        )
        self._lines.append(
            f"{time.time():.3f},{time.perf_counter() - started:.5f},{task},{code},{is_repeated:d},"
            f"{usage.input_tokens},{usage.output_tokens},{usage.reasoning_tokens},"
            f"{usage.cached_tokens},{'' if cost is None else f'{cost:.9g}'},"
            f"{'' if first_token_s is None else f'{first_token_s:.5f}'},{last}\n"
        )

    def flush(self) -> None:
        """Write what was noted since."""
        if self._path is None or (not self._lines and self._unwritten in (b"", _HEADER)):
            return
        self._unwritten += "".join(self._lines).encode()
        self._lines.clear()
        with contextlib.suppress(OSError):
            if self._out is None:
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
                self._out = os.open(self._path, flags, 0o600)
            while self._unwritten:
                self._unwritten = self._unwritten[os.write(self._out, self._unwritten) :]

    def close(self) -> None:
        """Write the rest and let go of the file."""
        self.flush()
        if self._out is not None:
            os.close(self._out)
            self._out = self._path = None


def usage_told(body: Mapping[str, Any]) -> Usage:
    """Return what a reply that is of no use says it cost; nothing where that cannot be read."""
    try:
        return Usage.from_body(body.get("usage"))
    except (AttributeError, TypeError, ValueError):
        return NO_USAGE


def read_tries(folder: str | Path) -> Iterator[Any]:
    """Yield all lines as Arrow record batches with `COLUMNS`, a megabyte at a time.

    Files that are being written are read up to their last complete line.
    """
    import pyarrow as pa
    import pyarrow.csv

    types: dict[str, Any] = dict(COLUMNS)
    for path in sorted(Path(folder).glob("*.csv")):
        complete = _complete_bytes(path)
        if not complete:
            continue
        with pa.memory_map(str(path)) as file:
            lines: Any = pa.BufferReader(file.read_buffer(complete))
            reader = pa.csv.open_csv(
                lines,
                read_options=pa.csv.ReadOptions(use_threads=False),
                convert_options=pa.csv.ConvertOptions(
                    column_types=types,
                    strings_can_be_null=False,
                    include_columns=list(COLUMNS),
                    include_missing_columns=True,
                ),
            )
            yield from reader


def _complete_bytes(path: Path) -> int:
    """Return the size of a file up to its last line end, 0 where it has no more than its header."""
    with path.open("rb") as file:
        header = len(file.readline())
        end = file.seek(0, os.SEEK_END)
        tail = min(end, 4096)
        file.seek(end - tail)
        complete = end - tail + file.read(tail).rfind(b"\n") + 1
        return complete if complete > header else 0
