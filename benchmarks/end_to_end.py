"""Where does the processor time of a whole run go, when the endpoint costs none?

    python benchmarks/end_to_end.py [--quick] [--megabytes 20] [--workers 2]

The five tasks of Nemotron-CC over English documents of the installed system (`rig/texts.py`), with
answers made beforehand out of their segments (`rig/answers.py`) by a server that answers at once
(`rig/raw_server.py`): routing off, ledger, provenance and accounting on. One line: rows, requests
and segments for each second from the first request to the last, and the share of each step in the
processor time of the run, once all is imported. The steps of a worker are timed in its task
threads, each without those inside it (`rig/steps.py`); "client" is the HTTP engine, and what a
worker spends to hand requests over and to take answers.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import orjson
from rig import texts, work
from rig.answers import answers_of
from rig.cpu import CpuWatch, total
from rig.raw_server import raw_server, seen
from rig.report import emit, options
from rig.steps import collected, install

from nemo_sdg.data.backend import to_values
from nemo_sdg.pipelines.job import own_tokenizer, plan_job
from nemo_sdg.pipelines.recipe import Recipe
from nemo_sdg.pipelines.run import run

TASKS = ("wikipedia_rephrase", "diverse_qa", "distill", "extract_knowledge", "knowledge_list")
MOST = 0.10


def answers(recipe: Recipe, url: str) -> dict[str, str]:
    """Return the user's text of every request -> its answer."""
    endpoint = recipe.endpoint_for(url)
    tokenizer = own_tokenizer(recipe)
    job = plan_job(recipe, endpoint, tokenizer=tokenizer, ledger="", fingerprint="")
    made: dict[str, str] = {}
    for part in job.parts:
        chain = part.chain
        sources = to_values(chain.prepare(part.frame.compute(scheduler="sync"))["text"])
        for source, answer in zip(sources, answers_of(chain.task.name, sources), strict=True):
            made[chain.task.request({"document": source}).messages[-1]["content"]] = answer
    return made


def main() -> None:
    given = options(
        __doc__,
        lambda p: p.add_argument("--megabytes", type=float, default=20.0),
        lambda p: p.add_argument("--workers", type=int, default=2),
        lambda p: p.add_argument("--slots", type=int, default=64),
        lambda p: p.add_argument("--partition-size", default="256KB"),
    )
    megabytes = 0.3 if given.quick else given.megabytes
    documents = texts.documents(texts.english(), int(megabytes * 1e6))
    with work.folder() as folder:
        source = work.write_documents(folder / "in.jsonl", documents)
        fields: dict[str, Any] = {
            "tasks": list(TASKS),
            "input": [str(source)],
            "model": "raw",
            "tokenizer": "bundled",
            "concurrency": given.slots,
            "workers": given.workers,
            "partition_size": given.partition_size,
            "yes": True,
        }
        made = answers(Recipe(endpoint="http://127.0.0.1:9/v1", **fields), "http://127.0.0.1:9/v1")
        (folder / "answers.json").write_bytes(orjson.dumps(made))
        with raw_server(folder / "answers.json") as url:
            _measure(Recipe(endpoint=url, **fields), folder, url, given, megabytes)


def _measure(recipe: Recipe, folder: Path, url: str, given: Any, megabytes: float) -> None:
    with work.cluster(given.workers) as client:
        run(recipe.replace(limit=40), folder / "warm", client=client)  # imports, tokenizer
        client.run(install)
        seen(url)
        with CpuWatch() as watch:
            result = run(recipe, folder / "run", client=client)
        log = seen(url)
        steps: Counter[str] = Counter()
        for spent in client.run(collected).values():
            steps.update(spent)
    assert result.exit_code == 0
    cpu, asking = watch.whole(), watch.between(log["first"], log["last"])
    begin, end = watch.span
    cpu["engine"] = asking["engine"]  # without its start
    wall_s = log["last"] - log["first"]
    counts: Counter[str] = Counter()
    for task in result.counts.values():
        counts.update(task)
    in_all = total(cpu)
    steps["client"] += cpu["engine"]
    steps["plan and estimate"] = watch.between(begin, log["first"])["client"]
    steps["scheduler and progress"] = asking["client"]
    steps["accounting and report"] = watch.between(log["last"], end)["client"]
    steps["Dask in the workers"] = in_all - sum(steps.values())
    shares = {step: round(spent / in_all, 3) for step, spent in steps.most_common()}
    allowed = {"client", "tokenizer"}
    over = [step for step, share in shares.items() if share > MOST and step not in allowed]
    emit(
        "end_to_end",
        met={"nothing but client and tokenizer above 10 %": not over},
        tasks=list(TASKS),
        megabytes=megabytes,
        workers=given.workers,
        slots=given.slots,
        partition_size=given.partition_size,
        requests=log["requests"],
        rows=counts["rows"],
        segments=counts["segments"],
        wall_s=round(wall_s, 2),
        rows_per_s=round(counts["rows"] / wall_s),
        requests_per_s=round(log["requests"] / wall_s),
        us_per_request=round(1e6 * in_all / log["requests"]),
        cpu_s=cpu,
        share_of_cpu=shares,
        above=over,
    )


if __name__ == "__main__":
    main()
