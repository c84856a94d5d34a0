"""Is the capacity of a server found, and followed when it changes?

    python benchmarks/unknown_capacity.py [--quick] [--servers halves doubles] [--workers 1]

Six servers that say nothing about themselves; `Generate` without a fixed concurrency, and with each
of a few fixed ones. What counts are complete answers a second from the end of a ramp of 10 s on,
for 60 s, by the server's log, and the share of 429s in that time. Servers that change do so in the
middle. One line a server; latencies are lognormal (median 0.25 s, sigma 0.8).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rig import served, work
from rig.changing_server import changing_server
from rig.report import emit, options

from nemo_sdg.llm.faults import Latency, batching, lognormal
from nemo_sdg.llm.traffic import Log

CONCURRENCY: int | None = None
"""None: found by goodput. The fixed settings beside it are each server's own."""

USUAL = lognormal(**served.LATENCY)
SLOW = lognormal(2 * served.LATENCY["median_s"], served.LATENCY["sigma"])
BATCHING = batching(32, tokens_per_s=50.0, median_tokens=8.0, sigma=0.5, first_token_s=0.05)


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server, what becomes of it in the middle, and fixed settings that may suit it.

    `per_s` is about what it can do, to know how many rows are enough.
    """

    per_s: float
    fixed: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    latency: Latency = USUAL
    change: Mapping[str, Any] = field(default_factory=dict)


def slots(number: int) -> dict[str, Any]:
    return {"capacity": number, "retry_after_s": 1.0}


SERVERS = {
    "48 slots, then 429": Server(per_s=140, fixed=(40, 48, 56), options=slots(48)),
    "100 requests/s": Server(per_s=100, fixed=(30, 36, 44), options={"requests_per_s": 100.0}),
    "batching": Server(per_s=180, fixed=(32, 64, 128), latency=BATCHING),
    "halves": Server(per_s=140, fixed=(24, 48), options=slots(48), change={"capacity": 24}),
    "doubles": Server(per_s=280, fixed=(48, 96), options=slots(48), change={"capacity": 96}),
    "slows": Server(per_s=140, fixed=(48,), options=slots(48), change={"latency": SLOW}),
}


def main() -> None:
    given = options(
        __doc__,
        lambda p: p.add_argument("--servers", nargs="*", default=list(SERVERS)),
        lambda p: p.add_argument("--workers", type=int, default=1),
    )
    ramp_s, window_s = (6.0, 10.0) if given.quick else (10.0, 60.0)
    until_s = ramp_s + window_s
    with work.folder() as folder, work.cluster(given.workers):

        def ask(server: Server, concurrency: int | None) -> Log:
            changes = [(ramp_s + window_s / 2, server.change)] if server.change else []
            count = round(server.per_s * (until_s + 3))
            source = work.write_documents(folder / "in.jsonl", work.prompts(count, characters=300))
            with (
                changing_server(
                    latency=server.latency, changes=changes, keeps_bodies=False, **server.options
                ) as running,
                work.folder() as made,
            ):
                work.generate(
                    source,
                    made / "parts",
                    running.url,
                    rows=500,
                    slots=concurrency,
                    ledger=made / "ledger",
                )
                return served.asked(running.log)

        for name in given.servers:
            server = SERVERS[name]
            found = ask(server, CONCURRENCY)
            lasted_s = served.last_arrival(found) - served.first_arrival(found)
            end_s = min(until_s, lasted_s)
            rate = served.rate(found, ramp_s, end_s)
            refused = served.refused_share(found, ramp_s, end_s)
            fixed = {n: served.rate(ask(server, n), ramp_s, end_s) for n in server.fixed}
            best = max(fixed.values())
            emit(
                "unknown_capacity",
                met={
                    "90% of the best fixed setting": rate >= 0.9 * best,
                    "fewer than 3% refused": refused < 0.03,
                },
                server=name,
                workers=given.workers,
                ramp_s=ramp_s,
                window_s=round(end_s - ramp_s, 1),
                requests_per_s=round(rate, 1),
                share_of_best=round(rate / best, 3),
                fixed_requests_per_s={n: round(r, 1) for n, r in fixed.items()},
                refused_share=round(refused, 4),
                most_in_flight=found.max_in_flight,
                requests=len(found),
            )


if __name__ == "__main__":
    main()
