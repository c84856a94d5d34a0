"""What does filing every answer cost: processor time, and bytes on disk?

    python benchmarks/ledger_cost.py [--quick] [--prompts 10000] [--paced-rows 2000]

`Generate` on one worker with the ledger on and off: unthrottled against a server that answers at
once, and at 100 requests/s (10 slots, 0.1 s). Client processor time from the first request to the
last, on over off, each the sum of alternating runs. Then the bytes of the ledger's folder, once
the run has ended and just before, over zstd level 3 of all answers as they came. One line each.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
from rig import served, work
from rig.cpu import CpuWatch, total
from rig.raw_server import raw_server, seen
from rig.report import emit, options, repeats

from nemo_sdg.llm.faults import fixed
from nemo_sdg.llm.ledger import Ledger
from nemo_sdg.llm.scripted import ScriptedEndpoint

PACED_SLOTS = 10


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def packed(folder: Path) -> int:
    """Return the bytes of all answers in a ledger, as they came, under zstd level 3."""
    ledger = Ledger(folder)
    try:
        answers = b"\n".join(orjson.dumps(orjson.loads(line)["r"]) for line in ledger.entries())
    finally:
        ledger.close()
    return len(pa.Codec("zstd", compression_level=3).compress(answers))


class Fullest:
    """Watches a folder for the most bytes it ever holds: the open files of a ledger."""

    def __init__(self, folder: Path) -> None:
        self.bytes = 0
        self._folder = folder
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            try:
                self.bytes = max(self.bytes, bytes_in(self._folder))
            except FileNotFoundError:
                continue

    def end(self) -> int:
        self._ended.set()
        self._thread.join()
        return self.bytes


def main() -> None:
    given = options(
        __doc__,
        lambda p: p.add_argument("--prompts", type=int, default=10_000),
        lambda p: p.add_argument("--paced-rows", type=int, default=2000),
    )
    count, paced = (3_000, 500) if given.quick else (given.prompts, given.paced_rows)
    rounds = 2 if given.quick else repeats(False)

    def spent(url: str, source: Path, slots: int, ends: Callable[[], tuple[float, float]]) -> Any:
        sums = {"on": 0.0, "off": 0.0}
        for number in range(rounds):
            for state in ("on", "off") if number % 2 else ("off", "on"):
                with work.folder() as made, CpuWatch() as watch:
                    work.generate(
                        source,
                        made / "parts",
                        url,
                        rows=1000,
                        slots=slots,
                        ledger=made / "ledger" if state == "on" else None,
                        seed=number,
                    )
                sums[state] += total(watch.between(*ends()))
        return sums

    def line(load: str, sums: dict[str, float], rows: int, slots: int) -> None:
        emit(
            "ledger_cost",
            met={"at most 10% more CPU": sums["on"] <= 1.1 * sums["off"]},
            load=load,
            rows=rows,
            slots=slots,
            repeats=rounds,
            on_over_off=round(sums["on"] / sums["off"], 3),
            cpu_us_per_request={k: round(1e6 * s / rows / rounds) for k, s in sums.items()},
        )

    with work.folder() as folder, work.cluster(1):
        source = work.write_documents(folder / "in.jsonl", work.prompts(count))
        with raw_server() as url:

            def raw_ends() -> tuple[float, float]:
                log = seen(url)
                return log["first"], log["last"]

            line("unthrottled", spent(url, source, 64, raw_ends), count, 64)
        few = work.write_documents(folder / "few.jsonl", work.prompts(paced))
        with ScriptedEndpoint.start_process(
            latency=fixed(0.1), default="echo", keeps_bodies=False
        ) as server:

            def ends() -> tuple[float, float]:
                log = served.asked(server.log)
                server.clear_log()
                return served.first_arrival(log), served.last_end(log)

            line("100 requests/s", spent(server.url, few, PACED_SLOTS, ends), paced, PACED_SLOTS)
        with ScriptedEndpoint.start_process(default="echo", keeps_bodies=False) as server:
            fullest = Fullest(folder / "ledger")
            work.generate(
                source,
                folder / "parts",
                server.url,
                rows=1000,
                slots=64,
                ledger=folder / "ledger",
            )
            most, left, least = (
                fullest.end(),
                bytes_in(folder / "ledger"),
                packed(folder / "ledger"),
            )
            emit(
                "ledger_cost",
                met={
                    "at most 1.3 x zstd level 3 once sealed": left <= 1.3 * least,
                    "at most 3 x while open": most <= 3 * least,
                },
                load="bytes on disk",
                rows=count,
                bytes_at_end=left,
                bytes_at_most=most,
                zstd_3_bytes=least,
                over_zstd=round(left / least, 2),
                most_over_zstd=round(most / least, 2),
            )


if __name__ == "__main__":
    main()
