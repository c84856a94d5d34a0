"""The plots of a report: throughput over time, and the distribution of latencies."""

from __future__ import annotations

import math

from nemo_sdg.pipelines.charts import (
    Chart,
    Mark,
    Plot,
    Shape,
    Table,
    Tick,
    apart,
    columns,
    log_place,
    log_steps,
    nice_steps,
    stairs,
    time_steps,
)
from nemo_sdg.pipelines.metrics import Metrics
from nemo_sdg.pipelines.over_time import OverTime
from nemo_sdg.pipelines.report_words import count, seconds, short
from nemo_sdg.pipelines.tally import latency_bins

_COLUMNS_OF_LATENCY = 40
_ROWS_OF_TIME = 24


def time_plots(series: OverTime | None) -> list[Chart]:
    """Return throughput and requests in flight over time."""
    if series is None:
        return []
    length = series.width_s * len(series.answered)
    across = apart(
        [
            Tick(at=round(100 * step / length, 2), label=seconds(step) if step else "0")
            for step in time_steps(length)
        ]
    )
    pauses = [Mark(at=100 * at / length, label="a pause, cut out") for at in series.pauses_s]
    table = _time_table(series)

    def plot(words: str, *lines: tuple[str, str, list[float], bool]) -> Plot:
        steps = nice_steps(max(max(values) for _, _, values, _ in lines))
        top = steps[-1]
        return Plot(
            words=words,
            shapes=[
                Shape(name=name, kind=kind, path=stairs(values, top, is_area=area), is_area=area)
                for name, kind, values, area in lines
            ],
            marks=pauses,
            across=across,
            up=[Tick(at=100 * (1 - step / top), label=short(step)) for step in steps],
        )

    pause = "A dashed line marks a pause between sessions that was cut out." if pauses else ""
    has_failures = any(series.failed)
    lines = [("answered", "two", series.answered, True)]
    if has_failures:
        lines.append(("failed", "bad", series.failed, False))
    charts = [
        Chart(
            title="Requests per second",
            plot=plot("Requests answered and failed per second over the time of the run.", *lines),
            keys=[("two", "answered"), *([("bad", "failed")] if has_failures else [])],
            table=table,
            note=pause,
        ),
        Chart(
            title="Requests in flight",
            plot=plot(
                "Requests under way over the time of the run.",
                ("in flight", "one", series.in_flight, True),
            ),
            table=table,
            note=pause,
        ),
    ]
    if any(series.output_tokens):
        charts.insert(
            1,
            Chart(
                title="Tokens out per second",
                plot=plot(
                    "Tokens of answers per second over the time of the run.",
                    ("tokens out", "three", series.output_tokens, True),
                ),
                table=table,
                note=pause,
            ),
        )
    return charts


def _time_table(series: OverTime) -> Table:
    each = max(1, -(-len(series.answered) // _ROWS_OF_TIME))
    rows = []
    for start in range(0, len(series.answered), each):
        some = slice(start, start + each)
        means = [
            sum(values[some]) / len(values[some])
            for values in (series.answered, series.failed, series.output_tokens, series.in_flight)
        ]
        rows.append([seconds(start * series.width_s), *(f"{mean:,.1f}" for mean in means)])
    return Table(
        head=["from", "answered/s", "failed/s", "tokens out/s", "in flight"],
        rows=rows,
    )


def latency_plot(metrics: Metrics) -> Chart | None:
    """Return the distribution of latencies, None where nothing was answered."""
    fine = list(latency_bins(metrics.latencies))
    if not fine:
        return None
    each = max(1, -(-len(fine) // _COLUMNS_OF_LATENCY))
    bins = list(latency_bins(metrics.latencies, each=each))
    low, high = bins[0][0], bins[-1][1]
    titles = [f"{seconds(a)} to {seconds(b)}: {count(n)} requests" for a, b, n in bins]
    numbers = [number for *_, number in bins]
    steps = nice_steps(max(numbers))
    # Powers of ten first: where there is no room for all, they stay.
    marked = sorted(log_steps(low, high), key=lambda step: not math.log10(step).is_integer())
    kinds = {"p50": "ink", "p95": "four", "p99": "bad"}
    return Chart(
        title="Latency of answered requests",
        plot=Plot(
            words="How many requests took how long, on a logarithmic axis.",
            blocks=columns(numbers, titles, steps[-1]),
            marks=[
                Mark(
                    at=log_place(min(max(value, low), high), low, high),
                    label=f"{name} {seconds(value)}",
                    kind=kinds[name],
                )
                for name, value in metrics.total.latency.items()
            ],
            across=apart(
                [Tick(at=log_place(step, low, high), label=seconds(step)) for step in marked]
            ),
            up=[Tick(at=100 * (1 - step / steps[-1]), label=short(step)) for step in steps],
        ),
        keys=[
            (kinds[name], f"{name} {seconds(value)}")
            for name, value in metrics.total.latency.items()
        ],
        table=Table(
            head=["from", "to", "requests"],
            rows=[[seconds(a), seconds(b), count(n)] for a, b, n in bins if n],
        ),
        note="Time from sending a request to its whole answer; of a request that was sent again, "
        "the last time. Percentiles are within 0.5 %.",
    )
