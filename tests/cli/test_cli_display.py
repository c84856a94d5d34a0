"""What a run shows, in a terminal and elsewhere."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nemo_sdg.cli import display as display_module
from nemo_sdg.cli.display import Display, progress_line, shortened, show_preview, show_result
from nemo_sdg.pipelines.progress import Progress
from nemo_sdg.pipelines.run import RunResult


def state(**changes: Any) -> Progress:
    fields: dict[str, Any] = {
        "parts_done": 1,
        "parts_total": 4,
        "rows": 1200,
        "requests_done": 1300,
        "requests_total": 5200,
        "in_flight": 64,
        "requests_per_s": 130.0,
        "input_tokens": 10,
        "output_tokens": 20,
        "errors": 3,
        "seconds": 10.0,
        "seconds_left": 90.0,
    }
    return Progress(**(fields | changes))


def result(**changes: Any) -> RunResult:
    fields: dict[str, Any] = {
        "folder": Path("/runs/one"),
        "counts": {
            "distill": {
                "documents.complete": 7,
                "documents.partial": 1,
                "documents.filtered": 2,
                "documents.filtered.min_document_tokens": 2,
                "segments": 1012,
                "requests": 1020,
                "kept": 1000,
                "filtered.min_tokens": 8,
                "dead.length": 3,
                "dead.prefix_missing": 1,
                "input_tokens": 123456,
                "output_tokens": 65432,
            }
        },
        "exit_code": 0,
        "seconds": 75.0,
        "was_complete_before": False,
        "samples": [{"task": "distill", "id": "a", "text": "[red]x[/red]\x1b[31m", "none": None}],
        "cost": None,
        "data_folders": {"distill": Path("/runs/one/data")},
        "task_seconds": {"distill": 12.34},
    }
    return RunResult(**(fields | changes))


def shown(function: Any, *arguments: Any) -> str:
    out = io.StringIO()
    function(*arguments, Console(file=out, width=200, highlight=False))
    return out.getvalue()


def test_a_line_has_rows_rate_tokens_errors_and_time_left() -> None:
    line = progress_line(state())
    for wanted in ("1,200 rows", "1,300/5,200 requests", "130.0/s", "10 tokens in, 20 out"):
        assert wanted in line
    assert "3 errors" in line and "1 min 30 s left" in line
    assert "cost unknown" in line and "0 retries" in line
    priced = progress_line(
        state(cost=1.25, output_tokens_per_s=5321.4, retries={"rate_limited": 8, "timeout": 4})
    )
    for wanted in ("cost 1.2500", "5,321 tokens/s out", "12 retries (rate_limited 8, timeout 4)"):
        assert wanted in priced
    bare = progress_line(state(requests_total=None, seconds_left=None, note="h does not answer"))
    assert "1,300 requests" in bare and "left" not in bare and bare.endswith("h does not answer")


def test_elsewhere_plain_lines_come_every_few_seconds(monkeypatch: Any) -> None:
    now = [0.0]
    monkeypatch.setattr(display_module.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with Display(console=Console(file=out, highlight=False)) as display:
        display.announce("3 rows, [bold]not markup[/bold]")
        for tick in range(24):  # 12 seconds, twice a second
            now[0] = tick / 2
            display.progress(state())
        display.progress(state(parts_done=4))
        display.note("done")
    lines = out.getvalue().splitlines()
    assert lines[0] == "3 rows, [bold]not markup[/bold]"
    assert sum("rows |" in line for line in lines) == 4, "at 0, 5, 10 s, and at the end"
    assert "\x1b" not in out.getvalue()
    assert lines[-1] == "note: done"


def test_in_a_terminal_one_line_is_kept_up_to_date_and_cleared() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=220, highlight=False)
    with Display(console=console) as display:
        display.progress(state())
        display.progress(state(rows=1300))
    text = out.getvalue()
    assert "1,300 rows" in text and "25%" in text and "█" in text
    assert text.rstrip().endswith(("\x1b[2K", "\x1b[?25h")), "nothing is left of it"


def test_questions_are_asked_in_a_terminal_only(monkeypatch: Any) -> None:
    asked: list[str] = []

    def confirm(question: str, **_: Any) -> bool:
        asked.append(question)
        return False

    monkeypatch.setattr(display_module.click, "confirm", confirm)
    monkeypatch.setattr(display_module.sys, "stdin", io.StringIO())
    assert Display().confirm("Send?")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(display_module.sys, "stdin", Terminal())
    assert Display(agrees=True).confirm("Send?")
    assert asked == []
    assert not Display().confirm("Send?")
    assert asked == ["Send?"]


@pytest.mark.row("J1")
def test_the_table_tells_where_everything_went() -> None:
    text = shown(show_result, result())
    row = next(line for line in text.splitlines() if line.startswith("distill "))
    assert row.split()[1:5] == ["10", "1,012", "1,020", "1,000"]
    assert "documents: min_document_tokens 2; min_tokens 8" in row
    assert "length 3, prefix_missing 1" in row
    assert row.split()[-1] == "12.3"
    assert "/runs/one/data" in text and "run folder: /runs/one" in text
    assert "cost: unknown" in text and "complete after 1 min 15 s" in text
    assert "[red]x[/red]\\x1b[31m" in text and "\x1b" not in text and "none:" not in text


def test_the_second_table_tells_what_it_took() -> None:
    one = {
        "sent": 1100,
        "requests_per_s": 12.34,
        "latency": {"p50": 0.2, "p95": 0.95, "p99": 1.5},
        "tokens": {
            "input_tokens": 123456,
            "output_tokens": 65432,
            "reasoning_tokens": 0,
            "cached_tokens": 77,
        },
        "cost": 0.25,
        "retries": {"rate_limited": 60, "timeout": 3},
        "waste": {
            "dead.length": {"input_tokens": 1000, "output_tokens": 888},
            "asked_again": {"input_tokens": 0, "output_tokens": 10},
        },
    }
    empty = one | {"sent": 0, "latency": {}, "cost": None, "waste": {}, "retries": {}}
    metrics = {"total": one, "tasks": {"distill": one, "title": empty}}
    lines = shown(show_result, result(metrics=metrics)).splitlines()
    head = next(line for line in lines if "p99 s" in line)
    assert "cached" in head and "reasoning" not in head, "what no server told is left out"
    row = [line for line in lines if line.startswith("distill ")][1].split()
    assert row[1:] == [
        "1,100", "12.3", "0.200", "0.950", "1.500", "123,456", "77", "65,432", "0.2500", "63",
        "1.0%",
    ]  # fmt: skip
    assert "unknown" in next(line for line in lines if line.startswith("title "))
    assert any(line.startswith("all ") for line in lines)
    assert "retries: rate_limited 60, timeout 3" in lines
    assert "wasted: 1.0% of the tokens: dead.length 1,888, asked_again 10" in lines


def test_what_was_complete_before_says_so_and_code_4_says_why() -> None:
    assert "nothing was asked" in shown(show_result, result(was_complete_before=True))
    text = shown(show_result, result(exit_code=4, cost=0.5))
    assert "dead_letters" in text and "cost: 0.5" in text


def test_a_preview_shows_source_beside_answer() -> None:
    rows = [{"task": "t", "id": 3, "source": "a\nb", "output": float("nan"), "error": "length"}]
    assert shown(show_preview, rows).splitlines() == [
        "task: t",
        "id: 3",
        "source: a ⏎ b",
        "error: length",
    ]
    assert "no rows" in shown(show_preview, [])


def test_long_values_are_shortened() -> None:
    assert shortened("a" * 300 + "z" * 300, 11) == "aaa … zzzzz"
    assert len(shortened("x" * 5000, 240)) == 240
    assert shortened(["a", 1]) == "['a', 1]"
    assert shortened("\u202eabc\x07") == "\\u202eabc\\x07"
