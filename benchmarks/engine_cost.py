"""What does a request cost the engine's process alone, beside a bare loop of aiohttp?

    python benchmarks/engine_cost.py [--quick] [--prompts 12000] [--rows 1000]

An engine in a child process as workers start it, with ledger and tries, against a server that
answers at once (`rig/raw_server.py`). This process hands over frames that were packed before and
reads what comes; a fixed lease is given for every report. One line: processor time of all threads
of the engine a request, by the kernel's count, over that of the floor in the same minutes, which
runs between the repeats; medians.
"""

from __future__ import annotations

import pickle
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from rig import work
from rig.floor import floor
from rig.raw_server import raw_server
from rig.report import emit, median, options

from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.engine_config import EngineConfig
from nemo_sdg.llm.frames import receive_frame, write_frame
from nemo_sdg.llm.leases import Lease
from nemo_sdg.llm.worker import ADMIT_FACTOR, _start
from nemo_sdg.tasks.task import stamp_of

MODEL = "raw"


def packed(count: int) -> list[list[Any]]:
    """Return the requests of so many documents, as a worker writes them into a frame."""
    asked, made = work.task(), []
    for number, document in enumerate(work.prompts(count)):
        stamp = stamp_of(asked.name, model=MODEL, seed=0, row_id=work.row_id(number))
        request = stamp.request(asked.request({"document": document}), 0)
        longest = request.sampling.max_output_tokens
        body = request.body()
        made.append([number, request.keys(), request.kind, MODEL, body, longest, None])
    return made


def cpu_s(pid: int) -> float:
    """Return what all threads of a process have run so far."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(one.read_text().split()[0]) for one in threads) / 1e9


def engine(url: str, folder: Path, frames: list[bytes], rows: int, count: int, slots: int) -> float:
    """Have an engine ask everything; return its processor time in seconds."""
    ours, theirs = socket.socketpair()
    child = _start(theirs, "process")
    assert isinstance(child, subprocess.Popen)
    config = EngineConfig(
        endpoint=Endpoint(url=url, model=MODEL, concurrency=slots),
        ledger=str(folder / "ledger"),
        tries=str(folder / "tries"),
    )
    ours.sendall(write_frame([pickle.dumps(config)]))
    left, on_way, number = count, 0, 0
    begun_s, todo = 0.0, iter(frames)
    while left:
        what, *rest = receive_frame(ours)
        if what == "done":
            left -= len(rest[0])
            on_way -= len(rest[0])
        elif what == "state":
            number += 1
            lease = Lease(number=number, slots={"0": slots}, allowed={})
            ours.sendall(write_frame(["lease", rest[3], lease.to_plain(), False]))
            begun_s = begun_s or cpu_s(child.pid)
        elif what == "fatal":
            raise pickle.loads(rest[0])
        while begun_s and on_way < ADMIT_FACTOR * slots and (frame := next(todo, None)):
            ours.sendall(frame)
            on_way += rows
    spent_s = cpu_s(child.pid) - begun_s
    ours.close()
    child.wait(20)
    return spent_s


def main() -> None:
    given = options(
        __doc__,
        lambda p: p.add_argument("--prompts", type=int, default=12_000),
        lambda p: p.add_argument("--rows", type=int, default=1000),
        lambda p: p.add_argument("--slots", type=int, default=64),
    )
    count = 3_000 if given.quick else given.prompts
    asked = packed(count)
    frames = [
        write_frame(["submit", 1 + at // given.rows, 0, "rewrite", asked[at : at + given.rows]])
        for at in range(0, count, given.rows)
    ]
    bodies = [one[4] for one in asked[:8000]]
    costs, floors, shares = [], [], []
    with raw_server() as url:
        for _ in range(2 if given.quick else 5):
            before = floor(url, bodies, slots=given.slots)["cpu_s"]
            with work.folder() as folder:
                begun = time.monotonic()
                cost = engine(url, folder, frames, given.rows, count, given.slots) / count
                took_s = time.monotonic() - begun
            after = floor(url, bodies, slots=given.slots)["cpu_s"]
            costs.append(1e6 * cost)
            floors.append(1e6 * (before + after) / 2 / len(bodies))
            shares.append(costs[-1] / floors[-1])
    emit(
        "engine_cost",
        met={"at most half of what the floor costs": median(shares) <= 0.5},
        prompts=count,
        rows_per_partition=given.rows,
        slots=given.slots,
        over_floor=median(shares),
        overs=[round(share, 3) for share in shares],
        us_per_request=median(costs, 1),
        floor_us_per_request=median(floors, 1),
        last_took_s=round(took_s, 2),
    )


if __name__ == "__main__":
    main()
