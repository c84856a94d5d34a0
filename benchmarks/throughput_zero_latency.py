"""How much processor time does a request cost us, beside a bare loop of aiohttp?

    python benchmarks/throughput_zero_latency.py [--quick] [--prompts 25000] [--slots 64]

Prompts of 1 KB against a server that answers at once with 1 KB (`rig/raw_server.py`), one worker,
ledger on; through `Generate` on a Dask cluster, and through `run()` of a recipe, which adds limits,
provenance and accounting. One line a way and partition size: requests for each second of client
processor time from the first request to the last, by kind of process, beside the floor in the
same run.
"""

from __future__ import annotations

from pathlib import Path

from rig import work
from rig.cpu import CpuWatch, total
from rig.floor import floor
from rig.raw_server import raw_server, seen
from rig.report import emit, options

from nemo_sdg.pipelines.run import run

MODEL = "raw"
MUST = {1000: 0.70, 200: 0.50}


def through_generate(source: Path, folder: Path, url: str, rows: int, slots: int) -> None:
    with work.cluster(1):
        work.generate(
            source,
            folder / "parts",
            url,
            rows=rows,
            slots=slots,
            model=MODEL,
            ledger=folder / "ledger",
        )


def through_run(source: Path, folder: Path, url: str, rows: int, slots: int) -> None:
    recipe = work.recipe(source, url, rows=rows, slots=slots, model=MODEL)
    assert run(recipe, folder / "run").exit_code == 0


def main() -> None:
    given = options(
        __doc__,
        lambda p: p.add_argument("--prompts", type=int, default=25_000),
        lambda p: p.add_argument("--slots", type=int, default=64),
        lambda p: p.add_argument("--rows", type=int, nargs="*", default=list(MUST)),
        lambda p: p.add_argument("--ways", nargs="*", default=["Generate", "run"]),
    )
    count = 5_000 if given.quick else given.prompts
    documents = work.prompts(count)
    bodies = work.bodies(documents, model=MODEL)
    ways = {"Generate": through_generate, "run": through_run}
    with raw_server() as url, work.folder() as folder:
        source = work.write_documents(folder / "in.jsonl", documents)
        for way in given.ways:
            for rows in given.rows:
                before = floor(url, bodies, slots=given.slots)
                seen(url)
                with work.folder() as made, CpuWatch() as watch:
                    ways[way](source, made, url, rows, given.slots)
                log = seen(url)
                after = floor(url, bodies, slots=given.slots)
                spent = watch.between(log["first"], log["last"])
                wall_s = log["last"] - log["first"]
                rate = log["requests"] / total(spent)
                # Once before and once after: other work on the machine slows everything down.
                floor_rate = 2 * count / (before["cpu_s"] + after["cpu_s"])
                share = rate / floor_rate
                emit(
                    "throughput_zero_latency",
                    met={
                        f"{MUST.get(rows, 0.5):.0%} of the floor": share >= MUST.get(rows, 0.5),
                        "as many requests as rows": log["requests"] == count,
                    },
                    way=way,
                    rows_per_partition=rows,
                    prompts=count,
                    slots=given.slots,
                    prompt_bytes=len(bodies[0]),
                    share_of_floor=round(share, 3),
                    requests_per_cpu_s=round(rate),
                    floor_requests_per_cpu_s=[f["requests_per_cpu_s"] for f in (before, after)],
                    requests_per_s=round(log["requests"] / wall_s),
                    floor_requests_per_s=[f["requests_per_s"] for f in (before, after)],
                    cpu_s=spent,
                    us_per_request={
                        kind: round(1e6 * seconds / count) for kind, seconds in spent.items()
                    },
                    cpu_s_with_start_and_end=watch.whole(),
                )


if __name__ == "__main__":
    main()
