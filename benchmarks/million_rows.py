"""Do memory and cost of a row stay the same, however many rows there are?

    python benchmarks/million_rows.py [--quick] [--rows 100000] [--rows-per-partition 1000]

`run()` of short documents against a server that answers at once, one worker; `--rows 1000000` is
the full size. The server is asked twice a second how many requests came, memory and processor time
of all processes are read 20 times a second. One line: bytes for each 1,000 rows, the median slope
between the least memory in each twentieth of the rows from 10,000 on, and the processor time of a
row in each tenth of the run. What comes and goes in a worker blurs its slope: more
rows, less blur.
"""

from __future__ import annotations

import threading
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
from rig import work
from rig.cpu import CpuWatch, total
from rig.raw_server import raw_server, seen
from rig.report import emit, options

from nemo_sdg.pipelines.run import run

FROM_ROWS = 10_000
WINDOWS = 20
EVERY_S = 0.5


class Progress:
    """How many requests the server had seen, and when."""

    def __init__(self, url: str) -> None:
        self.moments: list[float] = []
        self.counts: list[int] = []
        self._url = url
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(EVERY_S):
            found = seen(self._url, so_far=True)
            if found["requests"]:
                self.moments.append(found["last"])
                self.counts.append(found["requests"])

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def rows_at(self, moment: float) -> float:
        return float(np.interp(moment, self.moments, self.counts))

    def moment_of(self, rows: float) -> float:
        return float(np.interp(rows, self.counts, self.moments))


def least(
    readings: list[tuple[float, dict[str, int]]], kind: str, first: float, last: float
) -> list[int]:
    """Return the least memory of each of `WINDOWS` stretches of the rows.

    What partitions take that are at work comes and goes; what stays is below.
    """
    edges = np.linspace(first, last, WINDOWS + 1)
    return [
        min(sizes.get(kind, 0) for rows, sizes in readings if low <= rows <= high)
        for low, high in pairwise(edges)
    ]


def slope(rows: list[float], sizes: list[int]) -> float:
    """Return bytes for each 1,000 rows: the median over all pairs (Theil and Sen)."""
    pairs = combinations(zip(rows, sizes, strict=True), 2)
    return float(np.median([(s2 - s1) / (r2 - r1) for (r1, s1), (r2, s2) in pairs])) * 1000


def write_short(path: Path, count: int) -> Path:
    """Write documents of some 60 characters, without holding all of them in memory."""
    some = work.texts([60] * 1000)
    with path.open("w") as file:
        for number in range(count):
            text = f"{number:08d} {some[number % 1000]}"
            file.write(f'{{"id": "{work.row_id(number)}", "text": "{text}"}}\n')
    return path


def main() -> None:
    given = options(
        __doc__,
        lambda p: p.add_argument("--rows", type=int, default=100_000),
        lambda p: p.add_argument("--rows-per-partition", type=int, default=1000),
    )
    count = 25_000 if given.quick else given.rows
    with raw_server() as url, work.folder() as folder:
        source = write_short(folder / "in.jsonl", count)
        recipe = work.recipe(source, url, rows=given.rows_per_partition, slots=64, model="raw")
        seen(url)
        with CpuWatch() as watch:
            progress = Progress(url)
            try:
                assert run(recipe, folder / "run").exit_code == 0
            finally:
                progress.end()
        kinds = ("client", "worker", "engine")
        readings = [
            (progress.rows_at(moment), sizes)
            for moment, sizes in watch.memory
            if progress.moments[0] <= moment <= progress.moments[-1]
        ]
        last = progress.counts[-1]
        floors = {kind: least(readings, kind, FROM_ROWS, last) for kind in kinds}
        middles = np.linspace(FROM_ROWS, last, 2 * WINDOWS + 1)[1::2].tolist()
        slopes = {kind: round(slope(middles, floors[kind])) for kind in kinds}
        edges = np.linspace(FROM_ROWS, last, 11)
        costs = [
            1e6
            * total(watch.between(progress.moment_of(low), progress.moment_of(high)))
            / (high - low)
            for low, high in pairwise(edges)
        ]
        half = len(costs) // 2
        drift = float(np.mean(costs[half:]) / np.mean(costs[:half])) - 1
        emit(
            "million_rows",
            met={
                "each below 1 KB per 1,000 rows": max(slopes.values()) < 1024,
                "cost of a row constant within 10%": abs(drift) <= 0.10,
            },
            rows=count,
            rows_per_partition=given.rows_per_partition,
            slots=64,
            bytes_per_1000_rows=slopes,
            least_kb={kind: [size >> 10 for size in floors[kind]] for kind in kinds},
            most_bytes=watch.most_bytes,
            us_per_row_by_tenths=[round(cost) for cost in costs],
            second_half_over_first=round(1 + drift, 3),
            requests_per_s=round(
                (progress.counts[-1] - progress.counts[0])
                / (progress.moments[-1] - progress.moments[0])
            ),
        )


if __name__ == "__main__":
    main()
