"""`nemo-sdg plan`: the table, what stands below it, and what it does not do."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from nemo_sdg.cli import display as display_module
from nemo_sdg.cli.display import Display
from nemo_sdg.cli.main import app
from nemo_sdg.cli.plan_command import money, show_plan, size
from nemo_sdg.pipelines.plan import Band, Disk, Pilot, RunPlan, TaskPlan

TEXT = "Tea number {}. " + "It is green, comes from the hills, and people drink it hot. " * 4


def task(**changes: Any) -> TaskPlan:
    fields: dict[str, Any] = {
        "documents": 1200,
        "rows": 1300,
        "requests": 1300,
        "is_least": False,
        "input_tokens": 654321,
        "output_tokens": Band(50_000.4, 100_000.0, 390_000.0),
        "cost": None,
        "disk": Disk(data=3_000_000, ledger=2_000_000, provenance=100_000, parts=15_000),
        "ground": "half of its limit of 300",
    }
    return TaskPlan(**(fields | changes))


def planned(**changes: Any) -> RunPlan:
    fields: dict[str, Any] = {
        "tasks": {"distill": task()},
        "total": task(ground=""),
        "seconds": None,
        "concurrency": 64,
        "tokenizer": "bundled",
        "is_estimate": False,
        "model": "m",
        "host": "h",
    }
    return RunPlan(**(fields | changes))


def shown(plan: RunPlan) -> str:
    out = io.StringIO()
    show_plan(plan, Console(file=out, width=200, highlight=False))
    assert "\x1b" not in out.getvalue()
    return out.getvalue()


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"id": i, "text": TEXT.format(i)} for i in range(6)]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "p.txt").write_text("Sum up: {document}\n")
    return tmp_path


OWN = ("--prompt-file", "p.txt", "--output-field", "summary", "--input", "docs.jsonl")


# --- what is shown --------------------------------------------------------------------------------


def test_a_guess_is_called_one() -> None:
    text = shown(planned())
    title, row = text.splitlines()[:2]
    assert "tokens out (guess)" in title
    assert row.split()[:5] == ["distill", "1,200", "1,300", "1,300", "654,321"]
    assert "50,000 – 100,000 – 390,000" in row and row.split()[-3:] == ["unknown", "5.1", "MB"]
    assert "are a guess" in text and "distill: expected half of its limit of 300" in text
    assert "cost: unknown (no price given" in text and "0.00" not in text
    assert "time: unknown until a pilot" in text and "nothing was asked" in text
    assert "data 3.0 MB, ledger 2.0 MB, provenance 100 kB, parts 15 kB" in text
    assert "model m at h" in text and "stands in" not in text
    assert "stands in for the model's own" in shown(planned(is_estimate=True))


def test_tasks_are_summed_and_a_least_is_marked() -> None:
    least = task(is_least=True, output_tokens=Band(1.0, 2.0, None))
    total = replace(least, requests=2600)
    text = shown(planned(tasks={"[b]a": task(), "c": least}, total=total))
    rows = {line.split()[0]: line for line in text.splitlines()[:5] if line}
    assert "≥ 1,300" in rows["c"] and "1 – 2 – ?" in rows["c"] and "≥" not in rows["[b]a"]
    assert "≥ 2,600" in rows["all"] and "depends on its answers" in text


def test_a_pilot_says_how_sure_it_is_and_what_it_spent() -> None:
    one = task(output_tokens=Band(96_000.0, 100_000.0, 104_000.0), cost=Band(1.9, 2.0, 2.1))
    pilot = Pilot(
        rows=20, requests=21, filed=3, input_tokens=900, output_tokens=500, cost=0.0123,
        ledger="/runs/one/ledger",
    )  # fmt: skip
    text = shown(
        planned(
            tasks={"distill": one},
            total=one,
            seconds=Band(60.0, 75.0, 90.0),
            pilot=pilot,
            free_bytes=4_000_000,
        )
    )
    title, row = text.splitlines()[:2]
    assert "tokens out (measured)" in title and "100,000 ± 4%" in row and "2.00 ± 5%" in row
    assert "20 rows, 21 requests, 3 of them filed before" in text and "cost 0.0123" in text
    assert "it took 900 tokens in, 500 out" in text
    assert "/runs/one/ledger: the run does not pay for them again" in text and "95%" in text
    assert "about 1 min 15 s (1 min 0 s to 1 min 30 s) with 64 requests at a time" in text
    assert "guess" not in text and "free there 4.0 MB, WHICH MAY NOT BE ENOUGH" in text
    unsure = replace(one, output_tokens=Band(None, 5.0, None), cost=None)
    text = shown(planned(tasks={"distill": unsure}, total=unsure, pilot=replace(pilot, cost=None)))
    assert "5 ± ?" in text and "cost unknown" in text


def test_numbers_have_the_digits_they_need() -> None:
    assert [money(x) for x in (0.0, 0.00123, 0.5, 12.345, 1234.5)] == [
        "0.0000", "0.0012", "0.5000", "12.35", "1,234.50",
    ]  # fmt: skip
    assert [size(x) for x in (0, 999, 1500, 15_400, 2.5e6, 3e9, 4e12, 5e18)] == [
        "0 B", "999 B", "1.5 kB", "15 kB", "2.5 MB", "3.0 GB", "4.0 TB", "5,000.0 PB",
    ]  # fmt: skip


def test_a_long_count_shows_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(display_module.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with Display(console=Console(file=out, highlight=False)) as display:
        for done in range(1, 13):
            now[0] += 1.0
            display.counted(done, 40)
    assert out.getvalue().splitlines() == [
        "counting: 6 of 40 partitions",
        "counting: 11 of 40 partitions",
    ]
    out = io.StringIO()
    terminal = Console(file=out, force_terminal=True, width=120, highlight=False)
    with Display(console=terminal) as display:
        display.counted(10, 40)
    assert "25%" in out.getvalue() and "10 of 40 partitions" in out.getvalue()


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.row("I1")
def test_a_plan_asks_nothing_and_a_pilot_needs_a_place(scripted: Callable[..., Any]) -> None:
    server = scripted(models=["m"])
    options = (*OWN, "--endpoint", server.url, "--model", "m", "--tokenizer", "bundled")
    result = call("plan", *options, "--price-in", "2", "--price-out", "3")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[1].split()[:4] == ["summary", "6", "6", "6"]
    assert "nothing was asked" in result.stdout and "unknown" not in result.stdout.split("\n\n")[0]
    refused = call("plan", *options, "--pilot", "2")
    assert refused.exit_code == 2 and "--output" in refused.stderr
    assert server.log.entries == []

    result = call("plan", *options, "--pilot", "3", "--ledger", "answers")
    assert result.exit_code == 0, result.output
    assert "3 rows, 3 requests, 0 of them filed before" in result.stdout
    assert len([e for e in server.log.entries if e.path.endswith("/completions")]) == 3
    assert list(Path("answers").iterdir()) and not Path("out").exists()


@pytest.mark.row("M15")
@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_key_does_not_go_out_in_plain_http(
    command: str, scripted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = scripted(models=["m"], api_key="sk-test-secret")
    monkeypatch.setenv("MY_KEY", "sk-test-secret")
    # Linux takes 0.0.0.0 to this machine, and it is no loopback address.
    url = server.url.replace("127.0.0.1", "0.0.0.0")
    told = (command, *OWN, "--endpoint", url, "--model", "m", "--api-key-env", "MY_KEY")
    told += ("--output", "out", "--tokenizer", "bundled")
    told += ("--pilot", "2") if command == "plan" else ()
    refused = call(*told)
    assert refused.exit_code == 2 and "--allow-http-key" in refused.stderr
    assert server.log.entries == [] and "sk-test" not in refused.output
    if command == "plan":
        assert call(*told, "--allow-http-key").exit_code == 0
        assert server.log.entries and all(entry.authorized for entry in server.log.entries)
