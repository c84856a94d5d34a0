"""What a run shows: progress while it works, a table at its end.

In a terminal one line is kept up to date; elsewhere (a file, a pipe, a notebook) a plain line comes
every few seconds. Progress goes to standard error, results to standard output.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from nemo_sdg.pipelines.progress import Progress
    from nemo_sdg.pipelines.run import RunResult

PLAIN_LINE_EVERY_S = 5.0
_DOCUMENT_ENDS = ("complete", "partial", "empty", "filtered")
_SAMPLE_CHARACTERS = 240
_PLAIN_WIDTH = 160


class Display:
    """Shows the progress of a run; an `Observer`.

    Args:
        agrees: agree to large runs without asking.
        console: where to; by default standard error.
    """

    def __init__(self, *, agrees: bool = False, console: Console | None = None) -> None:
        self._agrees = agrees
        self._console = console or Console(stderr=True, highlight=False)
        self._is_live = self._console.is_terminal and not self._console.is_jupyter
        self._live: Live | None = None
        self._told_s = float("-inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._stop()

    def announce(self, line: str) -> None:
        """Say what is about to be asked."""
        self._write(line)

    def note(self, text: str) -> None:
        """Say something worth knowing."""
        self._write(f"note: {text}")

    def confirm(self, question: str) -> bool:
        """Ask in a terminal; where nobody can answer, go on."""
        if self._agrees or not (sys.stdin and sys.stdin.isatty()):
            return True
        self._stop()
        return click.confirm(question, default=False, err=True)

    def progress(self, state: Progress) -> None:
        """Show the state: at once in a terminal, else every few seconds and at the end."""
        is_end = state.parts_done == state.parts_total
        lines = [" | ".join(line) for line in _told(state)]
        self._update(lines, share_done(state), is_end=is_end)

    def counted(self, done: int, total: int) -> None:
        """Show how many partitions of a plan are counted."""
        self._step(f"counting: {done:,} of {total:,} partitions", done / total)

    def packed(self, done: int, total: int) -> None:
        """Show how many blocks of a ledger are packed."""
        self._step(f"packing: {done:,} of {total:,} blocks", done / total)

    def _step(self, line: str, share: float) -> None:
        if self._told_s < 0:
            self._told_s = time.monotonic()  # one that is quick needs no line
        self._update([line], share, is_end=False)

    def _update(self, lines: list[str], share: float, *, is_end: bool) -> None:
        if self._is_live:
            if self._live is None:
                self._live = Live(console=self._console, refresh_per_second=4, transient=True)
                self._live.start()
            self._live.update(_bar("\n".join(lines), share, self._console.width))
            return
        now = time.monotonic()
        if is_end or now - self._told_s >= PLAIN_LINE_EVERY_S:
            self._told_s = now
            self._write(" | ".join(lines))

    def _write(self, text: str) -> None:
        # `Text`: square brackets in what is shown are no markup.
        self._console.print(Text(text), soft_wrap=True)

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def progress_line(state: Progress) -> str:
    """Put a state into one line."""
    return " | ".join(part for line in _told(state) for part in line)


def _told(state: Progress) -> list[list[str]]:
    """Return what there is to say, in three lines: how far, what it takes, what goes wrong."""
    total = "" if state.requests_total is None else f"/{state.requests_total:,}"
    far = [
        f"{state.rows:,} rows",
        f"{state.requests_done:,}{total} requests",
        f"{state.requests_per_s:,.1f}/s",
        duration(state.seconds),
    ]
    if state.seconds_left is not None and state.parts_done < state.parts_total:
        far.append(f"{duration(state.seconds_left)} left")
    takes = [
        f"{state.input_tokens:,} tokens in, {state.output_tokens:,} out",
        f"{state.output_tokens_per_s:,.0f} tokens/s out",
        "cost unknown" if state.cost is None else f"cost {_money(state.cost)}",
        f"{state.in_flight:,} in flight",
    ]
    causes = f" ({_reasons(state.retries)})" if state.retries else ""
    wrong = [f"{state.errors:,} errors", f"{sum(state.retries.values()):,} retries{causes}"]
    return [far, takes, [*wrong, state.note] if state.note else wrong]


def share_done(state: Progress) -> float:
    """Return how much of a run is done, from 0 to 1."""
    if state.requests_total:
        return min(1.0, state.requests_done / state.requests_total)
    return state.parts_done / max(1, state.parts_total)


def _bar(text: str, share: float, width: int) -> Text:
    room = max(10, min(40, width // 4))
    full = round(share * room)
    bar = Text("█" * full, style="green").append("░" * (room - full), style="dim")
    bar.append(f" {share:4.0%}  ")
    return bar.append(text, style="default")


def duration(seconds: float) -> str:
    """Return a time in the units that fit it."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


# --- at the end -----------------------------------------------------------------------------------


def show_result(result: RunResult, console: Console | None = None) -> None:
    """Show the table by task, three rows, and where the output is."""
    console = console or out_console()
    console.print(result_table(result))
    if result.metrics:
        console.print()
        console.print(metrics_table(result.metrics))
    for row in result.samples[:3]:
        console.print()
        _show_row(console, row)
    console.print()
    lines = [f"{task}: {folder}" for task, folder in result.data_folders.items()]
    lines += [_ratio_line(task, *ratio) for task, ratio in result.ratios.items()]
    lines += _metric_lines(result.metrics["total"]) if result.metrics else []
    cost = "unknown (no price given)" if result.cost is None else _money(result.cost)
    lines += [f"cost: {cost}", f"run folder: {result.folder}"]
    if (report := result.folder / "report.html").exists():
        lines.append(f"report: {report}")
    if result.was_complete_before:
        lines.append("complete: everything was done before, nothing was asked")
    else:
        lines.append(f"complete after {duration(result.seconds)}")
    if result.exit_code == 4:
        lines.append(
            "more than 5 % of the segments of a task have no answer: the reasons stand in "
            f"{result.folder / 'dead_letters'}"
        )
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _ratio_line(task: str, ratio: float, published: float | None) -> str:
    known = "" if published is None else f" (published: {published:g})"
    return f"{task}: {ratio:.2f} tokens out for each token of text{known}"


def result_table(result: RunResult) -> Table:
    """Return the counts of every task as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("task", no_wrap=True)
    for name in ("documents", "segments", "requests", "kept"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("dropped")
    table.add_column("dead")
    table.add_column("seconds", justify="right", no_wrap=True)
    for task, counts in result.counts.items():
        numbers = [
            sum(counts.get(f"documents.{end}", 0) for end in _DOCUMENT_ENDS),
            *(counts.get(name, 0) for name in ("segments", "requests", "kept")),
        ]
        seconds = result.task_seconds.get(task)
        table.add_row(
            Text(task),
            *(f"{number:,}" for number in numbers),
            Text(_dropped(counts)),
            Text(_reasons(_under(counts, "dead.")) or "0"),
            "" if seconds is None else f"{seconds:,.1f}",
        )
    return table


def metrics_table(metrics: Mapping[str, Any]) -> Table:
    """Return what every task took as a table: requests, latency, tokens, cost, waste."""
    rows = dict(metrics["tasks"])
    if len(rows) > 1:
        rows["all"] = metrics["total"]
    tokens = {"input": "tokens in", "cached": "cached", "output": "tokens out"}
    tokens["reasoning"] = "reasoning"
    for name in ("cached", "reasoning"):  # most servers tell neither
        if not metrics["total"]["tokens"][f"{name}_tokens"]:
            del tokens[name]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("task", no_wrap=True)
    for title in (
        *("sent", "requests/s", "p50 s", "p95 s", "p99 s", *tokens.values()),
        *("cost", "retries", "wasted"),
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for task, one in rows.items():
        latency = one["latency"]
        table.add_row(
            Text(task),
            f"{one['sent']:,}",
            f"{one['requests_per_s']:,.1f}",
            *(f"{latency[name]:.3f}" if latency else "" for name in ("p50", "p95", "p99")),
            *(f"{one['tokens'][f'{name}_tokens']:,}" for name in tokens),
            "unknown" if one["cost"] is None else _money(one["cost"]),
            f"{sum(one['retries'].values()):,}",
            f"{_wasted_share(one):.1%}",
        )
    return table


def _metric_lines(total: Mapping[str, Any]) -> list[str]:
    """Say why requests were sent again, and what was paid for in vain."""
    lines = []
    if total["retries"]:
        lines.append(f"retries: {_reasons(total['retries'])}")
    if total["waste"]:
        sizes = {
            reason: spent["input_tokens"] + spent["output_tokens"]
            for reason, spent in total["waste"].items()
        }
        lines.append(f"wasted: {_wasted_share(total):.1%} of the tokens: {_reasons(sizes)}")
    return lines


def _wasted_share(one: Mapping[str, Any]) -> float:
    both = ("input_tokens", "output_tokens")
    paid = sum(one["tokens"][name] for name in both)
    lost = sum(spent[name] for spent in one["waste"].values() for name in both)
    return lost / paid if paid else 0.0


def _money(cost: float) -> str:
    return f"{cost:,.4f}"


def _under(counts: Mapping[str, int], prefix: str) -> dict[str, int]:
    return {k.removeprefix(prefix): n for k, n in counts.items() if k.startswith(prefix) and n}


def _dropped(counts: Mapping[str, int]) -> str:
    documents = _reasons(_under(counts, "documents.filtered."))
    segments = _reasons(_under(counts, "filtered."))
    told = (f"documents: {documents}" if documents else "", segments)
    return "; ".join(filter(None, told)) or "0"


def _reasons(numbers: Mapping[str, int]) -> str:
    if not numbers:
        return ""
    most = sorted(numbers.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {n:,}" for name, n in most)


def show_preview(rows: list[dict[str, Any]], console: Console | None = None) -> None:
    """Show answers beside their sources."""
    console = console or out_console()
    if not rows:
        console.print("no rows: nothing in the input is long enough for these tasks")
    for number, row in enumerate(rows):
        if number:
            console.print()
        _show_row(console, row)


def _show_row(console: Console, row: Mapping[str, Any]) -> None:
    for name, value in row.items():
        is_null = value is None or value != value  # NaN
        if is_null or name.endswith("_call"):  # keys of answers: nothing to read
            continue
        line = Text(f"{name}: ", style="bold").append(shortened(value), style="not bold")
        console.print(line, soft_wrap=not console.is_terminal)


def shortened(value: Any, most: int = _SAMPLE_CHARACTERS) -> str:
    """Return a value as one line of at most `most` characters, control characters escaped.

    Of a long text beginning and end are kept: questions stand behind their source.
    """
    text = value if isinstance(value, str) else str(value)
    if len(text) > 4 * most:
        text = text[: 2 * most] + text[-2 * most :]
    text = text.replace("\n", " ⏎ ")
    # What could move the cursor or colour a terminal is shown, not done.
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(text) <= most:
        return text
    tail = most // 2
    return f"{text[: most - tail - 3]} … {text[-tail:]}"


class _Out(Console):
    """Standard output, whose end (`| head`) is the command's affair and no failure."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def out_console() -> Console:
    """Return the console of results: wide enough for tables where it is no terminal."""
    console = _Out(highlight=False)
    return console if console.is_terminal else _Out(highlight=False, width=_PLAIN_WIDTH)
