"""The sections of a report that count: figures, funnels, tokens, what was dropped or wasted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nemo_sdg.pipelines.charts import Bar, Chart, Piece, Table
from nemo_sdg.pipelines.metrics import Metrics, TaskMetrics
from nemo_sdg.pipelines.report_words import HINTS, count, many, money, reason, seconds, share, short

_DOCUMENT_ENDS = ("complete", "partial", "empty", "filtered")
_TOO_SHORT = "min_segment_tokens"


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A figure that is seen first, with a line below it."""

    label: str
    value: str
    note: str = ""


def tiles(counts: Mapping[str, Mapping[str, int]], metrics: Metrics) -> list[Tile]:
    """Return the figures at the top."""
    total = metrics.total
    rows = sum(one.get("rows", 0) for one in counts.values())
    segments = sum(one.get("segments", 0) for one in counts.values())
    kept = sum(one.get("kept", 0) for one in counts.values())
    repeated = sum(total.retries.values())
    paid = total.tokens.get("input_tokens", 0) + total.tokens.get("output_tokens", 0)
    lost = total.wasted.input_tokens + total.wasted.output_tokens
    return [
        Tile(
            label="rows made",
            value=count(rows),
            note=f"{share(kept, segments)} of {many(segments, 'segment')} kept"
            if segments
            else "no part is finished yet",
        ),
        Tile(
            label="requests",
            value=count(total.sent),
            note=f"{count(total.answered)} answered, {many(repeated, 'retry', 'retries')}"
            + (f", {count(total.copies)} sent twice" if total.copies else ""),
        ),
        Tile(
            label="requests/s",
            value=short(total.requests_per_s),
            note=f"in the {seconds(total.seconds)} with requests under way",
        ),
        Tile(
            label="latency, median",
            value=seconds(total.latency["p50"]) if total.latency else "none",
            note=f"p95 {seconds(total.latency['p95'])}, p99 {seconds(total.latency['p99'])}"
            if total.latency
            else "no request was answered",
        ),
        *_streaming_tile(total),
        Tile(
            label="tokens",
            value=short(paid),
            note=f"{short(total.tokens.get('input_tokens', 0))} in, "
            f"{short(total.tokens.get('output_tokens', 0))} out"
            + (f"; estimated for {many(total.estimated, 'request')}" if total.estimated else ""),
        ),
        Tile(
            label="cost",
            value=money(total.cost),
            note=f"{share(lost, paid)} of the tokens were for nothing",
        ),
    ]


def _streaming_tile(total: TaskMetrics) -> list[Tile]:
    """Return how soon streamed answers began, nothing where none was streamed."""
    if not total.first_token:
        return []
    rest = f", then {seconds(total.per_token['p50'])} a token" if total.per_token else ""
    note = f"p95 {seconds(total.first_token['p95'])}{rest}"
    return [Tile(label="first token, median", value=seconds(total.first_token["p50"]), note=note)]


# --- requests and tokens --------------------------------------------------------------------------


def metric_tables(metrics: Metrics) -> dict[str, Table]:
    """Return what every task took, and all of them together, by title; empty without a request."""
    rows = dict(metrics.tasks)
    if len(rows) > 1:
        rows["all tasks"] = metrics.total
    tables = {
        "Requests and latency": {name: _requests(one) for name, one in rows.items()},
        "Tokens and cost": {name: _tokens(one) for name, one in rows.items()},
    }
    return {title: _task_table(cells) for title, cells in tables.items() if cells}


def _task_table(cells: Mapping[str, Mapping[str, str]]) -> Table:
    head = list(next(iter(cells.values())))
    # Most servers tell neither of these two.
    told = [
        name
        for name in head
        if name not in ("cached", "reasoning") or any(row[name] != "0" for row in cells.values())
    ]
    rows = [[task, *(row[name] for name in told)] for task, row in cells.items()]
    return Table(head=["task", *told], rows=rows)


def _requests(one: TaskMetrics) -> dict[str, str]:
    percentiles = ("p50", "p95", "p99")
    return {
        "requests": count(one.sent),
        "answered": count(one.answered),
        "failed": count(sum(one.failed.values())),
        "retries": count(sum(one.retries.values())),
        "requests/s": short(one.requests_per_s),
    } | {name: seconds(one.latency[name]) if one.latency else "none" for name in percentiles}


def _tokens(one: TaskMetrics) -> dict[str, str]:
    names = {"input": "tokens in", "cached": "cached", "output": "tokens out"}
    names["reasoning"] = "reasoning"
    paid = one.tokens["input_tokens"] + one.tokens["output_tokens"]
    return {told: count(one.tokens[f"{name}_tokens"]) for name, told in names.items()} | {
        "cost": money(one.cost),
        "wasted": share(one.wasted.input_tokens + one.wasted.output_tokens, paid),
    }


def failures(total: TaskMetrics) -> Chart | None:
    """Return requests without an answer by cause, None where all were answered."""
    if not total.failed:
        return None
    most = max(total.failed.values())
    in_order = sorted(total.failed.items(), key=lambda pair: -pair[1])
    bars = []
    for code, number in in_order:
        again = total.retries.get(code, 0)
        bars.append(
            Bar(
                label=code,
                value=count(number),
                pieces=[
                    Piece(
                        share=100 * again / most, kind="four", title=f"{count(again)} sent again"
                    ),
                    Piece(
                        share=100 * (number - again) / most,
                        kind="bad",
                        title=f"{count(number - again)} given up",
                    ),
                ],
                note=HINTS.get(code, ""),
            )
        )
    return Chart(
        title="Requests without an answer",
        bars=bars,
        keys=[("four", "sent again"), ("bad", "given up")],
        table=Table(
            head=["cause", "requests", "sent again", "given up"],
            rows=[
                [code, count(n), count(r := total.retries.get(code, 0)), count(n - r)]
                for code, n in in_order
            ],
        ),
    )


def token_chart(metrics: Metrics) -> Chart | None:
    """Return tokens by task, None where no server told any."""
    most = max(
        (one.tokens[name] for one in metrics.tasks.values() for name in one.tokens), default=0
    )
    if not most:
        return None
    bars, rows = [], []
    for task, one in metrics.tasks.items():
        for side, part, kinds in (
            ("input", "cached", ("two", "one")),
            ("output", "reasoning", ("four", "three")),
        ):
            whole, inner = one.tokens[f"{side}_tokens"], one.tokens[f"{part}_tokens"]
            direction = "in" if side == "input" else "out"
            bars.append(
                Bar(
                    label=f"{task}, {direction}",
                    value=count(whole),
                    pieces=[
                        Piece(
                            share=100 * inner / most, kind=kinds[0], title=f"{count(inner)} {part}"
                        ),
                        Piece(
                            share=100 * max(0, whole - inner) / most,
                            kind=kinds[1],
                            title=f"{count(whole - inner)} other",
                        ),
                    ],
                    note=f"{count(inner)} of them {part}" if inner else "",
                )
            )
        names = ("input", "cached", "output", "reasoning")
        rows.append([task, *(count(one.tokens[f"{name}_tokens"]) for name in names)])
    has = {
        name: any(one.tokens[f"{name}_tokens"] for one in metrics.tasks.values())
        for name in ("cached", "reasoning")
    }
    return Chart(
        title="Tokens by task",
        bars=bars,
        keys=[
            ("one", "in"),
            *([("two", "in, from the server's cache")] if has["cached"] else []),
            ("three", "out"),
            *([("four", "out, reasoning")] if has["reasoning"] else []),
        ],
        table=Table(head=["task", "in", "of these cached", "out", "of these reasoning"], rows=rows),
    )


def waste_chart(total: TaskMetrics) -> Chart | None:
    """Return tokens that were paid for and not kept, by reason; None where there are none."""
    sizes = {name: one.input_tokens + one.output_tokens for name, one in total.waste.items()}
    if not sizes:
        return None
    paid = total.tokens["input_tokens"] + total.tokens["output_tokens"]
    most = max(sizes.values()) or 1
    in_order = sorted(total.waste.items(), key=lambda pair: -sizes[pair[0]])
    return Chart(
        title="Tokens for nothing",
        bars=[
            Bar(
                label=reason(name),
                value=count(sizes[name]),
                pieces=[Piece(share=100 * sizes[name] / most, kind="bad")],
                note=f"{many(one.answers, 'answer')}, {share(sizes[name], paid)} of all tokens",
            )
            for name, one in in_order
        ],
        table=Table(
            head=["reason", "answers", "tokens in", "tokens out", "cost"],
            rows=[
                [
                    reason(name),
                    count(one.answers),
                    count(one.input_tokens),
                    count(one.output_tokens),
                    money(one.cost),
                ]
                for name, one in in_order
            ],
        ),
        note="Answers that were paid for and stand nowhere in the data, of the finished parts.",
    )


# --- rows -----------------------------------------------------------------------------------------


def funnel(task: str, counts: Mapping[str, int]) -> Chart:
    """Return how a task's documents became rows, and what was lost at each step."""
    documents = sum(counts.get(f"documents.{end}", 0) for end in _DOCUMENT_ENDS)
    lost = {
        kind: {name.removeprefix(kind): n for name, n in counts.items() if name.startswith(kind)}
        for kind in ("documents.filtered.", "filtered.", "dead.")
    }
    segments, asked = counts.get("segments", 0), counts.get("asked", 0)
    short_ones = segments - asked
    after = dict(lost["filtered."])
    after[_TOO_SHORT] = after.get(_TOO_SHORT, 0) - short_ones
    parsed = asked - sum(lost["dead."].values())
    steps = [
        ("documents in", documents, _minus(lost["documents.filtered."])),
        ("segments", segments, _minus({_TOO_SHORT: short_ones})),
        ("asked about", asked, _minus(lost["dead."])),
        ("parsed", parsed, _minus(after)),
        ("kept", counts.get("kept", 0), ""),
        ("rows out", counts.get("rows", 0), ""),
    ]
    most = max(number for _, number, _ in steps) or 1
    return Chart(
        title=task,
        is_slim=True,
        bars=[
            Bar(
                label=label,
                value=count(number),
                pieces=[Piece(share=100 * number / most, kind="one")],
                note=note,
            )
            for label, number, note in steps
        ],
        table=Table(
            head=["step", "number", "lost after it"],
            rows=[[label, count(number), note] for label, number, note in steps],
            has_words=True,
        ),
    )


def _minus(numbers: Mapping[str, int]) -> str:
    in_order = sorted(numbers.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} −{count(n)}" for name, n in in_order if n > 0)


def dropped(counts: Mapping[str, Mapping[str, int]]) -> Chart | None:
    """Return what filters removed, by filter; None where they removed nothing."""
    found: dict[str, dict[str, int]] = {}
    for task, one in counts.items():
        for name, number in one.items():
            for kind, unit in (("documents.filtered.", "documents"), ("filtered.", "segments")):
                if number and name.startswith(kind):
                    label = f"{name.removeprefix(kind)} ({unit})"
                    found.setdefault(label, {})[task] = number
    return _by_reason("Dropped by filters", "filter", found, "four")


def dead_letters(counts: Mapping[str, Mapping[str, int]]) -> Chart | None:
    """Return segments without an answer, by reason; None where there are none."""
    found: dict[str, dict[str, int]] = {}
    for task, one in counts.items():
        for name, number in one.items():
            if number and name.startswith("dead."):
                found.setdefault(name.removeprefix("dead."), {})[task] = number
    return _by_reason("Dead letters", "reason", found, "bad")


def _by_reason(
    title: str, head: str, found: Mapping[str, Mapping[str, int]], kind: str
) -> Chart | None:
    if not found:
        return None
    sums = {name: sum(tasks.values()) for name, tasks in found.items()}
    most = max(sums.values())
    names = sorted(found, key=lambda name: -sums[name])
    by_task = {name: ", ".join(f"{t} {count(n)}" for t, n in found[name].items()) for name in names}
    return Chart(
        title=title,
        bars=[
            Bar(
                label=name,
                value=count(sums[name]),
                pieces=[Piece(share=100 * sums[name] / most, kind=kind)],
                note="; ".join(filter(None, (HINTS.get(name, ""), by_task[name]))),
            )
            for name in names
        ],
        table=Table(
            head=[head, "number", "by task"],
            rows=[[name, count(sums[name]), by_task[name]] for name in names],
            has_words=True,
        ),
    )
