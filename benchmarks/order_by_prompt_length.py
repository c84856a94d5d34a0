"""Does the order of requests leave slots idle at the end, where long prompts take long?

    python benchmarks/order_by_prompt_length.py [--quick] [--rows 3000]

A server that takes 0.25 s for every 1,000 characters of a prompt; lengths are lognormal (median
1,000, sigma 0.8). Asked by `Generate` at 64 slots, with all input in one partition and in 24, and
by the floor, which asks first come, first served. One line each: the span from the first arrival
to the last end over (sum of all times / slots), medians of five sets of documents.
"""

from __future__ import annotations

import math
import random

from rig import served, work
from rig.floor import floor
from rig.report import emit, median, options, repeats

from nemo_sdg.llm.faults import growing
from nemo_sdg.llm.scripted import ScriptedEndpoint

SLOTS = 64
S_PER_1000 = 0.25
SIGMA = 0.8


def main() -> None:
    given = options(__doc__, lambda p: p.add_argument("--rows", type=int, default=3000))
    count = 800 if given.quick else given.rows
    spans: dict[int, list[float]] = {1: [], 24: []}
    first_come: list[float] = []
    with (
        # The server counts the characters of the answer too: there are two.
        ScriptedEndpoint.start_process(
            rules=[("", "ok")], latency=growing(S_PER_1000), keeps_bodies=False
        ) as server,
        work.cluster(1),
    ):
        for seed in range(repeats(given.quick)):
            rng = random.Random(seed)
            lengths = [max(80, round(1000 * math.exp(rng.gauss(0, SIGMA)))) for _ in range(count)]
            documents = work.texts(lengths, seed)

            def span(documents: list[str] = documents) -> float:
                log = served.asked(server.log)
                assert len(log) == len(documents), f"{len(log)} requests"
                return served.span_s(log) * SLOTS / served.slot_seconds(log)

            server.clear_log()
            floor(server.url, work.bodies(documents), slots=SLOTS)
            first_come.append(span())
            for parts, found in spans.items():
                server.clear_log()
                with work.folder() as folder:
                    work.generate(
                        work.write_documents(folder / "in.jsonl", documents),
                        folder / "parts",
                        server.url,
                        rows=math.ceil(count / parts),
                        slots=SLOTS,
                        ledger=folder / "ledger",
                    )
                found.append(span())
    for parts, most in ((1, 1.03), (24, 1.10)):
        found = median(spans[parts])
        worse = max(x - y for x, y in zip(spans[parts], first_come, strict=True))
        emit(
            "order_by_prompt_length",
            met={f"at most {most} x": found <= most, "never worse than first come": worse <= 0},
            rows=count,
            partitions=parts,
            slots=SLOTS,
            s_per_1000_characters=S_PER_1000,
            sigma=SIGMA,
            repeats=len(first_come),
            span_over_perfect=found,
            spans=[round(x, 4) for x in spans[parts]],
            first_come=[round(x, 4) for x in first_come],
        )


if __name__ == "__main__":
    main()
