"""What does a server that breaks cost, beside a bare loop with the same retries?

    python benchmarks/fault_mix.py [--quick] [--rows 1000]

The first try of 5 % of the questions is answered by 429, of 2 % by 500, 1 % each by a reset, by
JSON that is cut and by a null text, and 0.2 % hang; latency is lognormal (median 0.25 s, sigma
0.8), 64 slots, time-out of a request 5 s in both. The server echoes the question, so that an
answer can be told right or wrong. One line, medians of five sets of documents.
"""

from __future__ import annotations

import pyarrow.dataset as ds
from rig import served, work
from rig.floor import floor
from rig.report import emit, median, options, repeats

from nemo_sdg.llm.endpoint import Timeouts
from nemo_sdg.llm.faults import Fault, lognormal
from nemo_sdg.llm.retry import RetryPolicy
from nemo_sdg.llm.scripted import ScriptedEndpoint
from nemo_sdg.llm.traffic import Log

SLOTS = 64
TIMEOUT_S = 5.0
MIX = {
    "rate_limit": 0.05,
    "error_500": 0.02,
    "reset": 0.01,
    "truncated_json": 0.01,
    "null_content": 0.01,
    "hang": 0.002,
}


def again_after_answer(log: Log) -> int:
    """Count the questions that were asked once more after a complete and right answer."""
    answered: set[str] = set()
    again = 0
    for entry in log.entries:
        again += entry.messages_hash in answered
        if entry.status == 200 and entry.fault is None and not entry.client_left:
            answered.add(entry.messages_hash)
    return again


def main() -> None:
    given = options(__doc__, lambda p: p.add_argument("--rows", type=int, default=1000))
    count = 500 if given.quick else given.rows
    server_options = {
        "latency": lognormal(**served.LATENCY),
        "default": "echo",
        "keeps_bodies": False,
        "faults": [Fault(kind=kind, share=share, times=1) for kind, share in MIX.items()],
    }
    limits = Timeouts(
        connect_s=TIMEOUT_S,
        first_byte_s=TIMEOUT_S,
        between_bytes_s=TIMEOUT_S,
        total_s=TIMEOUT_S,
    )
    right, again, spans, floor_spans, below = [], [], [], [], []
    faults: dict[str, int] = {}
    with work.cluster(1):
        for seed in range(repeats(given.quick)):
            documents = work.prompts(count, seed=seed)
            template = work.task().template
            wanted = {
                work.row_id(n): template.render({"document": text}).strip()
                for n, text in enumerate(documents)
            }
            # A server of its own each: faults are played once a question.
            with ScriptedEndpoint.start_process(**server_options) as server:
                found = floor(
                    server.url,
                    work.bodies(documents),
                    slots=SLOTS,
                    tries=RetryPolicy().max_tries,
                    timeout_s=TIMEOUT_S,
                )
                below.append(found["right"])
                floor_spans.append(served.span_s(served.asked(server.log)))
            with ScriptedEndpoint.start_process(**server_options) as server, work.folder() as made:
                work.generate(
                    work.write_documents(made / "in.jsonl", documents),
                    made / "parts",
                    server.url,
                    rows=250,
                    slots=SLOTS,
                    ledger=made / "ledger",
                    endpoint={"timeouts": limits},
                )
                log = served.asked(server.log)
                files = [str(path) for path in (made / "parts").glob("part-*.parquet")]
                rows = ds.dataset(files).to_table(columns=["id", "rewritten"]).to_pylist()
            right.append(sum(row["rewritten"] == wanted[row["id"]] for row in rows))
            again.append(again_after_answer(log))
            spans.append(served.span_s(log))
            faults = dict(log.faults)
    over = median([ours / base for ours, base in zip(spans, floor_spans, strict=True)])
    emit(
        "fault_mix",
        met={
            "all right": set(right) == {count},
            "none asked again after a complete answer": set(again) == {0},
            "at most 1.15 x the floor": over <= 1.15,
        },
        rows=count,
        slots=SLOTS,
        timeout_s=TIMEOUT_S,
        mix=MIX,
        latency=served.LATENCY,
        repeats=len(right),
        right=right,
        floor_right=below,
        asked_again=again,
        over_floor=over,
        span_s=median(spans, 2),
        floor_span_s=median(floor_spans, 2),
        faults_played=faults,
    )


if __name__ == "__main__":
    main()
