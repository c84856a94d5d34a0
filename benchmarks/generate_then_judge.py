"""Does a chain of two questions a row keep 64 slots busy?

    python benchmarks/generate_then_judge.py [--quick] [--rows 1000] [--rows-per-partition 125]

A flow asks for a text and then for a verdict on it; the server has lognormal latency (median
0.25 s, sigma 0.8). One line: which share of the slots was busy until the last request for a text
arrived, by the server's log, and how long it took from there to the end.
"""

from __future__ import annotations

from rig import served, work
from rig.report import emit, median, options, repeats

from nemo_sdg.llm.drive import Flow
from nemo_sdg.llm.faults import lognormal
from nemo_sdg.llm.request import Request, Sampling, chat
from nemo_sdg.llm.scripted import ScriptedEndpoint
from nemo_sdg.llm.traffic import Entry
from nemo_sdg.tasks.task import flow

SLOTS = 64
SAMPLING = Sampling(temperature=0.7, max_output_tokens=512)
JUDGE = "Is the text below well written? Answer with a number from 1 to 5."


@flow(output="verdict", doc="Write a text, then judge it.")
def write_and_judge(document: str) -> Flow:
    written = yield Request(messages=chat(None, f"Rewrite:\n{document}"), sampling=SAMPLING)
    judged = yield Request(messages=chat(None, f"{JUDGE}\n\n{written.text}"), sampling=SAMPLING)
    return judged.text


def is_first(entry: Entry) -> bool:
    return not entry.text.startswith(JUDGE)


def main() -> None:
    given = options(
        __doc__,
        lambda p: p.add_argument("--rows", type=int, default=1000),
        lambda p: p.add_argument("--rows-per-partition", type=int, default=125),
    )
    count = 400 if given.quick else given.rows
    busy, tails, requests = [], [], []
    with (
        ScriptedEndpoint.start_process(latency=lognormal(**served.LATENCY)) as server,
        work.folder() as folder,
        work.cluster(1),
    ):
        source = work.write_documents(folder / "in.jsonl", work.prompts(count))
        for seed in range(repeats(given.quick)):
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
                    what=write_and_judge,
                )
            log = served.asked(server.log)
            head = served.until_last(log, is_first)
            busy.append(head.busy_share(SLOTS))
            after_s = served.last_end(log) - served.last_arrival(head)
            tails.append(after_s - 2 * served.longest_s(log))
            requests.append(len(log))
    emit(
        "generate_then_judge",
        met={
            "95% busy until the last request for a text": median(busy) >= 0.95,
            "then two longest latencies + 0.3 s": median(tails) <= 0.3,
            "two requests a row": set(requests) == {2 * count},
        },
        rows=count,
        rows_per_partition=given.rows_per_partition,
        slots=SLOTS,
        latency=served.LATENCY,
        repeats=len(busy),
        busy_share=median(busy),
        busy_shares=[round(x, 4) for x in busy],
        tail_beyond_two_longest_s=median(tails),
        requests=requests,
    )


if __name__ == "__main__":
    main()
