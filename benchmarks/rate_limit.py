"""Is a given rate used up and never exceeded?

    python benchmarks/rate_limit.py [--quick] [--rows 1000] [--workers 2]

A server that answers 429 above 100 requests/s (after a burst of one second's worth) and takes
0.1 s; `Generate` with 6,000 requests per minute. One line: the time from the first arrival to the
last over the ideal, (rows - 1) / 100 s, and how many requests were refused.
"""

from __future__ import annotations

from rig import served, work
from rig.report import emit, options

from nemo_sdg.llm.faults import fixed
from nemo_sdg.llm.scripted import ScriptedEndpoint

PER_S = 100.0


def main() -> None:
    given = options(
        __doc__,
        lambda p: p.add_argument("--rows", type=int, default=1000),
        lambda p: p.add_argument("--workers", type=int, default=2),
    )
    count = 400 if given.quick else given.rows
    with (
        ScriptedEndpoint.start_process(
            latency=fixed(0.1), requests_per_s=PER_S, keeps_bodies=False
        ) as server,
        work.folder() as folder,
        work.cluster(given.workers),
    ):
        work.generate(
            work.write_documents(folder / "in.jsonl", work.prompts(count)),
            folder / "parts",
            server.url,
            rows=100,
            slots=64,
            ledger=folder / "ledger",
            endpoint={"requests_per_minute": 60 * PER_S},
        )
        log = served.asked(server.log)
    took_s = served.last_arrival(log) - served.first_arrival(log)
    ideal_s = (count - 1) / PER_S
    emit(
        "rate_limit",
        met={
            "at most 1.03 x the ideal time": took_s <= 1.03 * ideal_s,
            "none refused": log.statuses[429] == 0,
            "as many requests as rows": len(log) == count,
        },
        rows=count,
        workers=given.workers,
        slots=64,
        requests_per_s=PER_S,
        took_s=round(took_s, 2),
        ideal_s=round(ideal_s, 2),
        over_ideal=round(took_s / ideal_s, 4),
        refused=log.statuses[429],
    )


if __name__ == "__main__":
    main()
