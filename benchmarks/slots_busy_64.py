"""Are 64 slots ever idle, however the input is cut?

    python benchmarks/slots_busy_64.py [--quick] [--rows 3000]

A server with lognormal latency (median 0.25 s, sigma 0.8), asked by `Generate` on a Dask cluster.
One line a partition size and number of workers: which share of the slots was busy from the first
arrival to the last, by the server's log, and how long it took from there to the end. Seeds differ
between the repeats, and with them the latencies; figures are medians.
"""

from __future__ import annotations

from rig import served, work
from rig.report import emit, median, options, repeats

from nemo_sdg.llm.faults import lognormal
from nemo_sdg.llm.scripted import ScriptedEndpoint

SLOTS = 64
PARTITIONS = (64, 125, 500, 3000)


def main() -> None:
    given = options(__doc__, lambda p: p.add_argument("--rows", type=int, default=3000))
    count = 640 if given.quick else given.rows
    sizes = (64, 640) if given.quick else PARTITIONS
    latency = lognormal(**served.LATENCY)
    with (
        ScriptedEndpoint.start_process(latency=latency, keeps_bodies=False) as server,
        work.folder() as folder,
    ):
        source = work.write_documents(folder / "in.jsonl", work.prompts(count))
        for workers in (1, 2):
            with work.cluster(workers):
                for rows in sizes:
                    logs = []
                    for seed in range(repeats(given.quick)):
                        server.clear_log()
                        with work.folder() as made:
                            work.generate(
                                source,
                                made / "parts",
                                server.url,
                                rows=rows,
                                slots=SLOTS,
                                ledger=made / "ledger",
                                seed=seed,
                            )
                        logs.append(served.asked(server.log))
                    busy = median([log.busy_share(SLOTS) for log in logs])
                    late = median([served.tail_s(log) - served.longest_s(log) for log in logs])
                    requests = [len(log) for log in logs]
                    emit(
                        "slots_busy_64",
                        met={
                            "99% busy until the last arrival": busy >= 0.99,
                            "then one longest latency + 0.3 s": late <= 0.3,
                            "as many requests as rows": set(requests) == {count},
                        },
                        rows=count,
                        rows_per_partition=rows,
                        workers=workers,
                        slots=SLOTS,
                        latency=served.LATENCY,
                        repeats=len(logs),
                        busy_share=busy,
                        busy_shares=[round(log.busy_share(SLOTS), 4) for log in logs],
                        tail_beyond_longest_s=late,
                        span_s=median([served.span_s(log) for log in logs], 2),
                        perfect_s=median([served.slot_seconds(log) / SLOTS for log in logs], 2),
                        most_in_flight=max(log.max_in_flight for log in logs),
                        requests=requests,
                    )


if __name__ == "__main__":
    main()
