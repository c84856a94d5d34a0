"""Whole runs from the command line: what a stranger types first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RECIPES = Path(__file__).parent.parent.parent / "examples" / "recipes"

pytestmark = pytest.mark.cluster


def start(*arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "nemo_sdg", *arguments],
        cwd=cwd,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=100)
    assert "Traceback" not in err and "\x1b" not in out + err
    return process.returncode, out, err


def counts_of(folder: Path) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = json.loads((folder / "run.json").read_text())["counts"]
    for counts in found.values():
        ends = ("filtered.", "dead.")
        lost = sum(n for name, n in counts.items() if name.startswith(ends))
        assert counts["kept"] + lost == counts["segments"]
    return found


def documents(counts: dict[str, int], *ends: str) -> int:
    return sum(counts.get(f"documents.{end}", 0) for end in ends)


@pytest.mark.row("N9")
def test_one_command_each_for_low_and_high_quality(tmp_path: Path) -> None:
    options = ("--sample", "20", "--workers", "1")
    running = {
        name: start("run", str(RECIPES / f"{name}.yaml"), "--output", name, *options, cwd=tmp_path)
        for name in ("low-quality", "high-quality")
    }
    assert {name: ended(process)[0] for name, process in running.items()} == dict.fromkeys(
        running, 0
    )
    (low,) = counts_of(tmp_path / "low-quality").values()
    high = counts_of(tmp_path / "high-quality")
    assert list(high) == ["diverse_qa", "distill", "extract_knowledge", "knowledge_list"]
    assert 0 < low["documents.filtered.quality_low"] < 20, "some of either side were drawn"
    for counts in (low, *high.values()):
        assert documents(counts, "complete", "partial", "empty", "filtered") == 20
    for counts in high.values():
        # Each document goes to one side: what one recipe leaves out the other takes.
        routed = low["documents.filtered.quality_low"]
        assert routed + counts["documents.filtered.quality_high"] == 20


@pytest.mark.row("N8")
def test_the_quickstart_of_multilingual_questions(tmp_path: Path) -> None:
    command = "run multilingual_qa --num-samples 10 --endpoint offline --output qa --format jsonl"
    code, out, err = ended(start(*command.split(), "--workers", "1", cwd=tmp_path))
    assert code == 0
    assert "10 rows, 10 requests" in err and "not from a language model" in err
    assert "multilingual_qa: " in out and "run folder: " in out
    rows = [
        json.loads(line)
        for part in sorted((tmp_path / "qa" / "data").glob("part-*.jsonl"))
        for line in part.read_text().splitlines()
    ]
    assert len(rows) == 10
    assert sorted({row["language"] for row in rows}) == sorted(
        ["English", "French", "German", "Italian", "Spanish"]
    )
    assert all(row["question"] and row["answer"] and row["raw"] for row in rows)


@pytest.mark.row("I1")
@pytest.mark.row("M15")
def test_a_prompt_of_ones_own_against_a_server_with_a_key(
    scripted: Callable[..., Any], tmp_path: Path
) -> None:
    secret = "sk-test-secret"
    server = scripted(models={"m": 8192}, api_key=secret, rules=[("Sum up", "It is about tea.")])
    (tmp_path / "docs.jsonl").write_text(
        "".join(json.dumps({"id": f"d{i}", "text": f"Tea number {i}. " * 9}) + "\n" for i in (1, 2))
    )
    (tmp_path / "p.txt").write_text("Sum up: {document}\n")
    told = (
        "run --prompt-file p.txt --output-field summary --input docs.jsonl --output out "
        f"--endpoint {server.url} --model m --api-key-env MY_KEY --workers 1"
    )
    command = told.split()
    code, out, err = ended(start(*command, cwd=tmp_path, MY_KEY=secret))
    assert code == 0, err
    assert "about 2 rows, about 2 requests" in err and "It is about tea." in out
    assert counts_of(tmp_path / "out")["summary"]["kept"] == 2
    asked = [e for e in server.log.entries if e.path.endswith("/chat/completions")]
    assert len(asked) == 2

    code, out, err = ended(start(*command, cwd=tmp_path, MY_KEY=secret))
    assert code == 0 and "nothing was asked" in out
    assert len([e for e in server.log.entries if e.path.endswith("/chat/completions")]) == 2

    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) > 5
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
    assert secret not in out + err

    changed = [*command, "--seed", "1"]
    code, _, err = ended(start(*changed, cwd=tmp_path, MY_KEY=secret))
    assert code == 2 and "seed: 0 became 1" in err


def test_preview_shows_five_rows_and_writes_nothing(tmp_path: Path) -> None:
    recipe = str(RECIPES / "summary.yaml")
    code, out, _ = ended(start("preview", recipe, cwd=tmp_path))
    assert code == 0
    assert out.count("task: summary") == 5 and out.count("output: ") == out.count("source: ") == 5
    assert list(tmp_path.iterdir()) == []


PREVIEW = ("preview", "distill", "--input", "docs.jsonl", "--endpoint", "offline")


def chinese(folder: Path) -> None:
    text = "茶树喜欢温暖湿润的气候，在海拔一千米以上的山坡上长得比较慢，不过香气更好。" * 5
    (folder / "docs.jsonl").write_text(json.dumps({"text": text}) + "\n")


def test_a_terminal_that_cannot_show_a_letter_gets_its_number(tmp_path: Path) -> None:
    chinese(tmp_path)
    code, out, _ = ended(start(*PREVIEW, cwd=tmp_path, PYTHONIOENCODING="ascii"))
    assert code == 0
    assert "\\u8336" in out


def test_an_output_that_nobody_reads_is_no_failure(tmp_path: Path) -> None:
    chinese(tmp_path)
    process = start(*PREVIEW, cwd=tmp_path)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None  # or `communicate` would read of it
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert "error" not in err and "Traceback" not in err
