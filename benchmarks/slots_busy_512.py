"""Are 512 slots kept busy by one worker, with and without Python that parses every answer?

    python benchmarks/slots_busy_512.py [--quick] [--rows 12000] [--rows-per-partition 1000]

A server with lognormal latency (median 0.25 s, sigma 0.8), asked by `Generate` on a Dask cluster of
one worker, and by the floor. The parser holds the interpreter for 100 microseconds a row. One line
each: which share of the slots was busy from the first arrival to the last, by the server's log.
"""

from __future__ import annotations

import time

from rig import served, work
from rig.floor import floor
from rig.report import emit, median, options, repeats

from nemo_sdg.llm.faults import lognormal
from nemo_sdg.llm.scripted import ScriptedEndpoint

SLOTS = 512
PARSE_S = 100e-6


def slow_parser(text: str) -> str:
    end = time.perf_counter() + PARSE_S
    while time.perf_counter() < end:
        pass
    return text


def main() -> None:
    given = options(
        __doc__,
        lambda p: p.add_argument("--rows", type=int, default=12_000),
        lambda p: p.add_argument("--rows-per-partition", type=int, default=1000),
    )
    count = 4_000 if given.quick else given.rows
    documents = work.prompts(count)
    latency = lognormal(**served.LATENCY)
    tasks = {"plain": work.task(), "100 us of Python": work.task(parse=slow_parser)}
    with (
        ScriptedEndpoint.start_process(latency=latency, keeps_bodies=False) as server,
        work.folder() as folder,
        work.cluster(1),
    ):
        source = work.write_documents(folder / "in.jsonl", documents)
        for parser, least in (("plain", 0.97), ("100 us of Python", 0.95)):
            ours, below = [], []
            for seed in range(repeats(given.quick)):
                server.clear_log()
                floor(server.url, work.bodies(documents, seed=seed), slots=SLOTS)
                below.append(served.asked(server.log))
                server.clear_log()
                with work.folder() as made:
                    work.generate(
                        source,
                        made / "parts",
                        server.url,
                        rows=given.rows_per_partition,
                        slots=SLOTS,
                        ledger=made / "ledger",
                        seed=seed,
                        what=tasks[parser],
                    )
                ours.append(served.asked(server.log))
            busy = median([log.busy_share(SLOTS) for log in ours])
            emit(
                "slots_busy_512",
                met={
                    f"{least:.0%} busy until the last arrival": busy >= least,
                    "as many requests as rows": {len(log) for log in ours} == {count},
                },
                parser=parser,
                rows=count,
                rows_per_partition=given.rows_per_partition,
                slots=SLOTS,
                latency=served.LATENCY,
                repeats=len(ours),
                busy_share=busy,
                floor_busy_share=median([log.busy_share(SLOTS) for log in below]),
                span_s=median([served.span_s(log) for log in ours], 2),
                floor_span_s=median([served.span_s(log) for log in below], 2),
                perfect_s=median([served.slot_seconds(log) / SLOTS for log in ours], 2),
                most_in_flight=max(log.max_in_flight for log in ours),
            )


if __name__ == "__main__":
    main()
