"""Wrong input on the command line: one message with a remedy, exit code 2, nothing spent."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import pytest
from click.testing import CliRunner

from nemo_sdg.cli import main as main_module
from nemo_sdg.cli.main import app
from nemo_sdg.tasks import registry

OFFLINE = ("--endpoint", "offline")


@pytest.fixture(autouse=True)
def plain(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.delenv("NEMO_SDG_TRACEBACK", raising=False)
    monkeypatch.delenv("NEMO_SDG_API_KEY", raising=False)
    monkeypatch.setattr(main_module.Place, "folder", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs.jsonl").write_text('{"id": "a", "title": "T", "n": 1, "text": "A. B."}\n')
    (tmp_path / "p.txt").write_text("Sum up: {document}\n")


def refused(*arguments: str) -> str:
    """The one message of a command that must fail so."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    told = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    assert len(told) == 1 and told[0].startswith("error: "), result.stderr
    assert "defect" not in told[0]
    return told[0].removeprefix("error: ")


def run_it(*options: str) -> tuple[str, ...]:
    return ("run", *options, "--input", "docs.jsonl", "--output", "out")


@pytest.fixture
def served(scripted: Callable[..., Any]) -> tuple[str, ...]:
    server = scripted(models={"m": 8192})
    return ("--endpoint", server.url, "--model", "m", "--tokenizer", "bundled")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("run", "distill", "--input", "docs.jsonl", "--output", "", *OFFLINE), "'--output'"),
        (("preview", "distill", "--input", "docs.jsonl", "--output", " ", *OFFLINE), "'--output'"),
        (("run", "distill", "--input", "", "--output", "out", *OFFLINE), "--input: must not be"),
        (run_it("distill", *OFFLINE, "--task-file", ""), "--task-file: must not be empty"),
        (run_it("distill", *OFFLINE, "--tokenizer", ""), "--tokenizer: must not be empty"),
        (run_it("distill", *OFFLINE, "--scheduler", ""), "--scheduler: must not be empty"),
        (run_it("distill", *OFFLINE, "--text-field", ""), "--text-field: must not be empty"),
        (run_it("--prompt-file", "", "--output-field", "s", *OFFLINE), "--prompt-file is empty"),
    ],
)
def test_an_empty_value_is_not_the_current_folder(arguments: tuple[str, ...], wanted: str) -> None:
    assert wanted in refused(*arguments)
    assert sorted(path.name for path in Path().iterdir()) == ["docs.jsonl", "p.txt"]


@pytest.mark.parametrize("command", ["run", "preview"])
def test_an_address_as_output_is_told_and_makes_no_folder_of_its_name(command: str) -> None:
    made = (command, "distill", "--input", "docs.jsonl", "--output", "s3://bucket/x", *OFFLINE)
    assert "s3://bucket/x is an address" in refused(*made)
    assert not Path("s3:").exists()


def test_the_output_field_may_be_no_column_of_the_input(served: tuple[str, ...]) -> None:
    told = refused(*run_it("--prompt-file", "p.txt", "--output-field", "title", *served))
    assert "'title' is a column of the input already" in told and "--output-field" in told
    assert not Path("out/recipe.yaml").exists()


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (("--api-key-env", "NO_SUCH_KEY"), "NO_SUCH_KEY"),
        (("--api-key-file", "none.key"), "none.key"),
        (("--model", "gpt"), "has one model, offline-extractive, and no 'gpt': leave --model out"),
    ],
)
def test_the_built_in_endpoint_is_told_before_it_starts(
    options: tuple[str, ...], wanted: str, monkeypatch: Any
) -> None:
    def started(*_: Any) -> Any:
        raise AssertionError("the endpoint was started")

    monkeypatch.setattr("nemo_sdg.pipelines.begin.offline_endpoint", started)
    assert wanted in refused(*run_it("distill", *OFFLINE, *options))
    assert not Path("out/recipe.yaml").exists()


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("localhost:8000", "write http://localhost:8000/v1, or `offline`"),
        ("localhost:8000/v1/", "write http://localhost:8000/v1, or `offline`"),
        ("offlin", "did you mean 'offline'?"),
        ("http://", "is no address"),
    ],
)
def test_an_address_without_its_beginning_is_one_problem(address: str, wanted: str) -> None:
    told = refused(*run_it("distill", "--endpoint", address))
    assert wanted in told and "model" not in told.replace("that needs no model", "")


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nowhere", "nosuch://a:1"])
def test_a_scheduler_that_does_not_answer_is_one_message(
    address: str, served: tuple[str, ...]
) -> None:
    with dask.config.set({"distributed.comm.timeouts.connect": "300ms"}):
        result = CliRunner().invoke(app, run_it("distill", *served, "--scheduler", address))
    assert result.exit_code == 2, result.output
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"error: no Dask scheduler answers at {address} (")
    assert "mend --scheduler" in last and result.stderr.count("error: ") == 1


def test_an_output_that_is_a_file_or_below_one_is_told() -> None:
    for output in ("docs.jsonl", "docs.jsonl/out"):
        told = refused("run", "distill", "--input", "docs.jsonl", "--output", output, *OFFLINE)
        assert "docs.jsonl is a file. Choose another --output" in told


def test_a_recipe_that_is_not_there_comes_with_a_way_to_write_it() -> None:
    assert "`nemo-sdg init TASK --output nope.yaml`" in refused(*run_it("nope.yaml", *OFFLINE))


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("Sum up.\n\n{document", "the brace of `{document` in line 3 is not closed"),
        ("{title}: {document", "the brace of `{document` in line 1 is not closed"),
        ("Say hello.", "there is no placeholder in the prompt"),
    ],
)
def test_a_prompt_without_its_document_is_told(prompt: str, wanted: str) -> None:
    Path("p.txt").write_text(prompt)
    told = refused(*run_it("--prompt-file", "p.txt", "--output-field", "s", *OFFLINE))
    assert wanted in told and "write {document}" in told


def test_a_task_file_without_placeholder_is_told(monkeypatch: Any) -> None:
    monkeypatch.setattr(registry, "_tasks", dict(registry._tasks))
    Path("t.py").write_text(
        "from nemo_sdg.tasks.task import Task\n"
        "hello = Task(name='bad_input_hello', output='h', prompt='Say hello.', doc='Greet.')\n"
    )
    told = refused(*run_it("--task-file", "t.py", *OFFLINE))
    assert "task bad_input_hello: there is no placeholder" in told


@pytest.mark.parametrize(
    ("name", "content", "options", "wanted"),
    [
        ("a.jsonl", b'{"n": 1, "body": "B."}\n', (), "of the texts with text_field (--text-field)"),
        ("a.jsonl", b'{"n": 1, "body": "B."}\n', ("--text-field", "n"), "(--text-field): body."),
        ("a.jsonl", b'{"n": 1}\n', (), "has no column of strings"),
        ("a.jsonl", b"", (), "Name files that hold documents"),
        ("a.parquet", b"PAR1", (), "Copy or write it again"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 999)[:-12], (), "Copy or write it again"),
        ("a.jsonl", b'{"id": 1, "text": "a"}\n' * 2, (), "id_field (--id-field)"),
        ("a.jsonl", b'{"id": 0.5, "text": "a"}\n', (), "id_field (--id-field)"),
        ("a.jsonl", b'{"q": "7", "text": "a"}\n', ("--quality-field", "q"), "holds str, not numb"),
    ],
    ids=("no text", "numbers", "no strings", "empty", "parquet", "gzip", "twice", "id", "quality"),
)
def test_an_input_that_cannot_be_used_comes_with_a_remedy(
    name: str, content: bytes, options: tuple[str, ...], wanted: str, served: tuple[str, ...]
) -> None:
    Path(name).write_bytes(content)
    told = refused("run", "distill", "--input", name, "--output", "out", *served, *options)
    assert wanted in told and "id_field:" not in told
