"""What a run says it took is what the server saw: requests, tokens, cost, latency, waste."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run_rig as rig

from nemo_sdg.errors import Interrupted
from nemo_sdg.llm.faults import Fault, lognormal
from nemo_sdg.llm.retry import RetryPolicy
from nemo_sdg.llm.scripted import ScriptedEndpoint
from nemo_sdg.llm.tries import CANCELLED, TryLog
from nemo_sdg.llm.usage import Usage
from nemo_sdg.pipelines import job
from nemo_sdg.pipelines.folder import RunFolder
from nemo_sdg.pipelines.metrics import Metrics, TaskMetrics, measure
from nemo_sdg.pipelines.over_time import over_time
from nemo_sdg.pipelines.preview import preview
from nemo_sdg.pipelines.progress import counts_so_far
from nemo_sdg.pipelines.run import run
from nemo_sdg.pipelines.tally import latency_bins, percentile, union
from nemo_sdg.stages.base import ASKED_AGAIN, KEPT, Record

PRICES = {"price_in": 2.0, "price_out": 5.0}
UNREADABLE = ("reset", "truncated_json")
CODES = {
    "rate_limit": "rate_limited",
    "error_500": "server_error",
    "reset": "connection",
    "truncated_json": "malformed_reply",
    "empty_choices": "malformed_reply",
    "bad_request": "bad_request",
}
"""Kind of fault -> what becomes of the try; all but the last are tried again."""

PLAYED: tuple[tuple[Any, int | None], ...] = (
    ("rate_limit", 2),
    ("error_500", 1),
    ("reset", 1),
    ("truncated_json", 1),
    ("empty_choices", 1),
    ("length_cut", 1),
    ("bad_request", None),
    ("refusal", None),
    ("reasoning", None),
)
SHORT = "9"
"""The last digit of documents whose answers are too short to be kept."""

RULES = [(rf"number \d*{SHORT} is", "Short.")]
TASKS = [
    rig.SUMMARY | {"filters": {"min_tokens": 6}},
    {"name": "title", "output": "title", "prompt": "A title for this, please: {document}"},
]
PHRASES = {"summary": "Sum up", "title": "A title"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less between tries; the chain that travels to the workers says how long."""
    make = job._chain

    def impatient(*args: Any) -> Any:
        chain = make(*args)
        retry = RetryPolicy(max_tries=3, base_wait_s=0.02)
        return replace(chain, generate_options=chain.generate_options | {"retry": retry})

    monkeypatch.setattr(job, "_chain", impatient)


def faults() -> list[Fault]:
    """One kind of fault for each of the last digits 0 to 8."""
    return [
        Fault(kind=kind, pattern=rf"number \d*{digit} is", times=times)
        for digit, (kind, times) in enumerate(PLAYED)
    ]


def spent(entries: Iterable[Any]) -> tuple[int, int, int]:
    """Return (answers, tokens in, tokens out) of what the server sent."""
    usages = [entry.usage for entry in entries]
    return (
        len(usages),
        sum(usage["prompt_tokens"] for usage in usages),
        sum(usage["completion_tokens"] for usage in usages),
    )


def holds(found: TaskMetrics, entries: list[Any], *, is_titled: bool) -> None:
    """Hold metrics against the server's log of the same requests."""
    assert found.sent == len(entries)
    failed = Counter(CODES[e.fault] for e in entries if e.fault in CODES)
    assert found.failed == failed
    assert found.retries == {code: n for code, n in failed.items() if code != "bad_request"}
    answers = [e for e in entries if e.fault not in CODES]
    assert found.answered == len(answers)
    told = [e for e in entries if e.usage is not None and e.fault not in UNREADABLE]
    _, tokens_in, tokens_out = spent(told)
    thought = sum(
        (e.usage.get("completion_tokens_details") or {}).get("reasoning_tokens", 0) for e in told
    )
    assert thought > 0
    assert found.tokens == {
        "input_tokens": tokens_in,
        "output_tokens": tokens_out,
        "reasoning_tokens": thought,
        "cached_tokens": 0,
    }
    assert found.cost == pytest.approx((tokens_in * 2 + tokens_out * 5) / 1e6)

    waste = {
        "asked_again": [e for e in answers if e.fault == "length_cut"],
        "dead.refused": [e for e in answers if e.fault == "refusal"],
        "failed.malformed_reply": [e for e in told if e.fault == "empty_choices"],
    }
    if not is_titled:
        waste["filtered.min_tokens"] = [e for e in answers if is_short(e)]
    assert {
        reason: (one.answers, one.input_tokens, one.output_tokens)
        for reason, one in found.waste.items()
    } == {reason: spent(some) for reason, some in waste.items()}
    lost = [id(entry) for some in waste.values() for entry in some]
    kept = spent(e for e in told if id(e) not in lost)
    assert (found.kept.answers, found.kept.input_tokens, found.kept.output_tokens) == kept
    assert found.kept.cost is not None and found.wasted.cost is not None
    assert found.kept.cost + found.wasted.cost == pytest.approx(found.cost)

    took = sorted(e.end_s - e.arrival_s for e in answers)
    for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        exact = took[int(np.ceil(share * len(took))) - 1]
        assert found.latency[name] == pytest.approx(exact, rel=0.01, abs=1.0)
        assert found.latency[name] >= exact * 0.99
    spans = union(np.array([(e.arrival_s, e.end_s) for e in entries]))
    busy = float((spans[:, 1] - spans[:, 0]).sum())
    assert found.requests_per_s == pytest.approx(len(entries) / busy, rel=0.3)


def is_short(entry: Any) -> bool:
    return f"{SHORT} is" in entry.text


@pytest.mark.cluster
@pytest.mark.row("J5")
def test_a_report_says_what_the_server_saw(client: Any, tmp_path: Path, quick: None) -> None:
    """A run with scripted faults: every number of run.json, by task, against the server's log."""
    source = rig.documents(tmp_path / "in.jsonl", range(100))
    with ScriptedEndpoint.start_process(
        rules=RULES, faults=faults(), latency=lognormal(0.05)
    ) as server:
        recipe = rig.recipe_for(server.url, source, tasks=TASKS, partition_size="4KB", **PRICES)
        result = run(recipe, tmp_path / "out", client=client)
        entries = rig.asked(server.log)
    metrics = measure(RunFolder(tmp_path / "out"), is_priced=True)
    assert set(metrics.tasks) == set(PHRASES)
    for task, phrase in PHRASES.items():
        mine = [entry for entry in entries if phrase in entry.text]
        holds(metrics.tasks[task], mine, is_titled=task == "title")
    assert metrics.total.sent == len(entries)
    assert metrics.total.cost == pytest.approx(sum(m.cost or 0 for m in metrics.tasks.values()))

    found = rig.report(tmp_path / "out")
    assert found["metrics"] == json.loads(json.dumps(metrics.plain())) == result.metrics
    assert found["tokens"] == metrics.total.tokens and found["cost"] == metrics.total.cost
    outcomes = Counter(rig.table_of(tmp_path / "out", "provenance")["outcome"])
    assert outcomes == {
        KEPT: 150, ASKED_AGAIN: 20, "dead.refused": 40, "filtered.min_tokens": 10,
    }  # fmt: skip
    page = (tmp_path / "out" / "report.html").read_text()
    for number in (metrics.total.sent, metrics.total.tokens["input_tokens"]):
        assert f"{number:,}" in page
    series = over_time(str(tmp_path / "out" / "tries"), metrics.spans, metrics.total.sent)
    assert series is not None
    assert sum(series.answered) * series.width_s == pytest.approx(metrics.total.answered, rel=0.01)
    assert sum(series.failed) * series.width_s == pytest.approx(
        sum(metrics.total.failed.values()), rel=0.01
    )
    assert max(series.in_flight) <= 16.5


@pytest.mark.cluster
def test_numbers_are_right_also_after_a_stop_and_a_preview(
    client: Any, tmp_path: Path, quick: None
) -> None:
    source = rig.documents(tmp_path / "in.jsonl", range(100))

    def stop() -> None:
        raise Interrupted("enough for now")

    with ScriptedEndpoint.start_process(faults=faults(), latency=lognormal(0.1)) as server:
        recipe = rig.recipe_for(server.url, source, partition_size="4KB", **PRICES)
        preview(recipe, output=tmp_path / "out", rows=3)
        with pytest.raises(Interrupted):
            run(recipe, tmp_path / "out", client=client, observer=rig.At(40, stop))
        stopped = rig.report(tmp_path / "out")
        held(stopped["metrics"]["total"], rig.asked(server.log))
        assert stopped["status"] == "stopped" and stopped["exit_code"] == 3
        assert stopped["metrics"]["total"]["failed"][CANCELLED] > 0, "it stopped in mid-air"
        assert stopped["counts"].get("summary", {"asked": 0})["asked"] < 100
        result = run(recipe, tmp_path / "out", client=client)
        entries = rig.asked(server.log)
    held(result.metrics["total"], entries)
    assert result.metrics["total"]["cost"] == result.cost
    assert rig.report(tmp_path / "out")["metrics"] == result.metrics


def held(found: dict[str, Any], entries: list[Any]) -> None:
    """Hold totals against the log; what was cancelled is not known to have come there, or not."""
    late = found["failed"].get(CANCELLED, 0)
    assert len(entries) <= found["sent"] <= len(entries) + late
    answered = [e for e in entries if e.fault not in CODES and not e.client_left]
    assert len(answered) - late <= found["answered"] <= len(answered)
    least = sum(e.usage["prompt_tokens"] for e in answered if e.usage)
    most = sum(
        e.usage["prompt_tokens"] for e in entries if e.usage
    )  # malformed ones were paid, too
    assert (0.8 if late else 0.95) * least <= found["tokens"]["input_tokens"] <= 1.05 * most


@pytest.mark.cluster
def test_a_killed_run_has_lost_no_answer_from_its_numbers(tmp_path: Path) -> None:
    source = rig.documents(tmp_path / "in.jsonl", range(120))
    (tmp_path / "recipe.yaml").write_text(
        "tasks:\n- {name: summary, output: summary, prompt: 'Sum up in a line: {document}'}\n"
        f"input: {source}\nmodel: {rig.MODEL}\ntokenizer: bundled\nconcurrency: 8\n"
    )
    with ScriptedEndpoint.start_process(latency=lognormal(0.1)) as server:
        command = ["run", "recipe.yaml", "--output", "out", "--endpoint", server.url]
        process = rig.start(*command, cwd=tmp_path)
        rig.until(lambda: len(rig.asked(server.log)) >= 40)
        rig.kill_all(process)
        folder = RunFolder(tmp_path / "out")
        assert rig.report(tmp_path / "out")["status"] == "running"
        killed = measure(folder, is_priced=True).total
        assert killed.answered == pytest.approx(len(rig.filed_keys(tmp_path / "out")), abs=1)
        code, _, err = rig.ended(rig.start(*command, cwd=tmp_path))
        assert code == 0, err
        entries = rig.asked(server.log)
    total = measure(folder, is_priced=True).total
    # Lost are those in flight, and what was answered in the two milliseconds before the kill.
    assert len(entries) - 8 - 3 <= total.sent <= len(entries)
    assert total.answered == pytest.approx(len(rig.filed_keys(tmp_path / "out")), abs=1)
    # A pause between sessions is no time in which requests were under way.
    assert total.seconds < max(e.end_s for e in entries if e.end_s) - entries[0].arrival_s


@pytest.mark.cluster
def test_an_answer_that_rows_share_is_paid_for_once(client: Any, tmp_path: Path) -> None:
    lines = [json.dumps({"id": i, "text": rig.text_of(i % 5)}) + "\n" for i in range(60)]
    (tmp_path / "in.jsonl").write_text("".join(lines))
    task = rig.SUMMARY | {"sampling": {"temperature": 0.0}}
    with ScriptedEndpoint.start_process() as server:
        recipe = rig.recipe_for(
            server.url, tmp_path / "in.jsonl", tasks=[task], partition_size="4KB", **PRICES
        )
        result = run(recipe, tmp_path / "out", client=client)
        entries = rig.asked(server.log)
    total = measure(RunFolder(tmp_path / "out"), is_priced=True).total
    assert len(rig.data_of(tmp_path / "out")) == 60
    assert total.kept.answers == 5 and not total.waste
    # Two workers may ask the same at the same time: neither knows of the other's request yet.
    assert 5 <= total.answered == len(entries) <= 10
    assert total.tokens["input_tokens"] == spent(entries)[1] == result.tokens["input_tokens"]
    assert result.counts["summary"]["input_tokens"] > 5 * total.kept.input_tokens


# --- the parts ------------------------------------------------------------------------------------


def test_a_dropped_document_takes_the_answers_of_its_segments_along() -> None:
    record = Record(task="t")
    places = [("a", 0), ("a", 1), ("b", 0), ("c", 0), ("d", None)]
    for (row_id, segment), outcome in zip(places, [KEPT] * 3 + [ASKED_AGAIN, KEPT], strict=True):
        record.provenance.append({"id": row_id, "segment_id": segment, "outcome": outcome})
    record.dropped += [
        {"id": "a", "segment_id": None, "filter": "min_tokens"},
        {"id": "b", "segment_id": 1, "filter": "short"},
        {"id": "c", "segment_id": 0, "filter": "short"},
    ]
    record.settle()
    assert [row["outcome"] for row in record.provenance] == [
        "filtered.min_tokens", "filtered.min_tokens", KEPT, ASKED_AGAIN, KEPT,
    ]  # fmt: skip


@pytest.mark.parametrize("count", [1, 2, 10, 5000])
def test_percentiles_are_within_half_a_percent(tmp_path: Path, count: int) -> None:
    draws = np.random.default_rng(3).lognormal(-1, 1.2, count)
    log = TryLog(tmp_path / "tries")
    for latency_s in draws:
        log.put("t", time.perf_counter() - float(latency_s), Usage(input_tokens=1))
    log.put("t", time.perf_counter() - 500, code="timeout")  # no answer, no latency of one
    log.close()
    metrics = measure(RunFolder(tmp_path), is_priced=True)
    for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        exact = np.sort(draws)[int(np.ceil(share * count)) - 1]
        # What calls take on the way to the log is part of what they measured.
        assert metrics.total.latency[name] == pytest.approx(exact, rel=0.0051, abs=2e-3)
    assert sum(n for *_, n in latency_bins(metrics.latencies, each=7)) == count
    assert percentile(metrics.latencies, 0.0) <= percentile(metrics.latencies, 1.0)


def test_spans_are_joined_where_they_touch() -> None:
    spans = np.array([(5.0, 6.0), (0.0, 2.0), (1.0, 1.5), (2.0, 3.0), (8.0, 9.0), (0.5, 2.5)])
    assert union(spans).tolist() == [[0, 3], [5, 6], [8, 9]]
    assert union(spans[:0]).shape == (0, 2)
    apart = np.column_stack([np.arange(30_000.0), np.arange(30_000) + 0.5])
    apart[100:, :] += 7
    found = union(apart)
    assert len(found) <= 10_001 and found[0, 0] == 0 and found[-1, 1] == 30_006.5
    assert (found[1:, 0] - found[:-1, 1]).max() == 7.5, "the longest gap is no time of work"


def test_a_folder_where_nothing_was_sent_has_nothing_to_tell(tmp_path: Path) -> None:
    metrics = measure(RunFolder(tmp_path), is_priced=True)
    assert metrics.total == TaskMetrics(
        tokens=dict.fromkeys(metrics.total.tokens, 0), cost=0.0, kept=metrics.total.kept
    )
    assert metrics.total.kept.answers == 0 and metrics.tasks == {}
    assert over_time(str(tmp_path / "tries"), metrics.spans, 0) is None
    assert not any(counts_so_far(str(tmp_path / "tries"), []).values())
    unknown = measure(RunFolder(tmp_path), is_priced=False)
    assert unknown.total.cost is None, "unknown is not 0"


def test_a_long_pause_between_sessions_is_cut_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, now = TryLog(tmp_path / "tries"), [1000.0]
    monkeypatch.setattr("nemo_sdg.llm.tries.time.time", lambda: now[0])
    for begin in (1000.0, 9000.0):
        for second in range(10):
            now[0] = begin + second + 1
            for _ in range(2):  # two at a time, a second each
                log.put("t", time.perf_counter() - 1.0, Usage(output_tokens=10))
    log.close()
    metrics = measure(RunFolder(tmp_path), is_priced=True)
    assert metrics.total.seconds == pytest.approx(20, abs=0.1)
    assert metrics.total.requests_per_s == pytest.approx(2, rel=0.01)
    series = over_time(str(tmp_path / "tries"), metrics.spans, 40)
    assert series is not None
    assert series.width_s * len(series.answered) == pytest.approx(20, abs=0.1)
    assert series.pauses_s == pytest.approx([10], abs=0.1)
    assert series.in_flight == pytest.approx([2] * 20, abs=0.1)
    assert sum(series.output_tokens) * series.width_s == pytest.approx(400, rel=0.01)


def make_big(folder: Path, count: int) -> Metrics:
    log = TryLog(folder / "tries")
    for number in range(count):
        log.put("t", time.perf_counter() - 0.1 - number % 97 / 100, Usage(output_tokens=3))
        if number % 1000 == 0:
            log.flush()
    log.close()
    return measure(RunFolder(folder), is_priced=True)


def test_memory_does_not_grow_with_the_requests(tmp_path: Path) -> None:
    """Arrow's and numpy's own memory, from ten thousand to ten times as many lines."""
    import tracemalloc

    import pyarrow as pa

    peaks = []
    for count in (20_000, 200_000):
        folder = tmp_path / str(count)
        make_big(folder, 10)
        make_big(folder, count)
        tracemalloc.start()
        before = pa.total_allocated_bytes()
        metrics = measure(RunFolder(folder), is_priced=True)
        peaks.append(tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() - before)
        tracemalloc.stop()
        assert metrics.total.answered == count + 10
    assert peaks[1] < 1.5 * peaks[0] + (1 << 20)
