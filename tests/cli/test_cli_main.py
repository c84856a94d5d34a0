"""The command line: help, every kind of bad input, and what becomes of errors."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from nemo_sdg.cli import main as main_module
from nemo_sdg.cli.main import COMMANDS, app
from nemo_sdg.errors import EndpointDown, RecipeError
from nemo_sdg.pipelines.recipe import load_recipe
from nemo_sdg.tasks.registry import all_tasks

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def plain(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.delenv("NEMO_SDG_TRACEBACK", raising=False)
    monkeypatch.delenv("NEMO_SDG_API_KEY", raising=False)
    monkeypatch.setattr(main_module.Place, "folder", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs.jsonl").write_text('{"id": "a", "text": "One. Two."}\n')


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def refused(*arguments: str, code: int = 2) -> str:
    """The one message of a command that must fail so."""
    result = call(*arguments)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    told = [line for line in result.stderr.splitlines(True) if not line.startswith("note: ")]
    assert told[0].startswith("error: ")
    assert result.stderr.count("error: ") == 1
    assert "Traceback" not in result.output and "\x1b" not in result.output
    return "".join(told).removeprefix("error: ")


def run_it(*options: str) -> tuple[str, ...]:
    return ("run", *options, "--input", "docs.jsonl", "--output", "out")


# --- help -----------------------------------------------------------------------------------------


def test_help_names_every_command_and_loads_none() -> None:
    code = (
        "import sys\n"
        "from nemo_sdg.cli.main import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('pydantic', 'pandas', 'dask', 'transformers', 'rich') "
        "if m in sys.modules])\n"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - started < 2.5, "0.5 s on a quiet machine"
    assert done.stdout.splitlines()[-1] == "[]"
    for name, (_, words) in COMMANDS.items():
        assert name in done.stdout and words in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    result = call(name, "--help")
    assert result.exit_code == 0
    command = app.get_command(click.Context(app), name)
    assert command is not None
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help
            assert parameter.opts[-1] in result.stdout


def test_the_options_of_run_are_those_promised() -> None:
    promised = (
        "--input --output --endpoint --model --workers --concurrency --limit --sample "
        "--num-samples --format --shape --missing --seed --text-field --id-field --quality-field "
        "--tokenizer --prompt-file --output-field --task-file --api-key-env --api-key-file "
        "--max-failures --max-outage --device --partition-size --scheduler --stream --price-in "
        "--price-out --yes"
    )
    told = call("run", "--help").stdout
    assert [name for name in promised.split() if f"  {name}" not in told] == []


def test_python_m_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nemo_sdg", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("nemo-sdg, version ")


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("rum",), "No such command 'rum'"),
        (("run", "distill", "--imput", "x"), "Did you mean"),
        (("run", "distill", "--input", "docs.jsonl"), "Missing option '--output'"),
        (run_it("distill", "--limit", "many"), "'many' is not a valid integer"),
        (run_it("distill", "--format", "csv"), "'csv' is not one of"),
        (run_it("distill", "more.jsonl"), "put that in quotes"),
        (run_it("distill"), "--endpoint offline"),
        (
            run_it("distil", "--endpoint", "offline"),
            "TASK: there is no task 'distil'; did you mean",
        ),
        (
            run_it("distill,nope", "--endpoint", "offline"),
            "no task 'nope': `nemo-sdg tasks`",
        ),
        (run_it("--endpoint", "offline"), "name a task or a recipe"),
        (run_it("none.yaml"), "there is no recipe none.yaml"),
        (run_it("distill", "--endpoint", "offlin"), "offlin"),
        (run_it("distill", "--endpoint", "http://h:1/v1"), "--model: no model is named"),
        (run_it("distill", "--endpoint", "offline", "--limit", "0"), "--limit: must be at least 1"),
        (run_it("distill", "--endpoint", "offline", "--max-failures", "2"), "--max-failures"),
        (run_it("distill", "--endpoint", "offline", "--task-file", "no.py"), "no task file"),
        (run_it("--prompt-file", "p.txt"), "needs --output-field"),
        (run_it("distill", "--output-field", "x"), "goes with --prompt-file"),
        (run_it("--prompt-file", "p.txt", "--output-field", "s"), "there is no file p.txt"),
        (("run", "distill", "--output", "out", "--endpoint", "offline"), "there is no input"),
        (
            ("run", "distill", "--input", "no.jsonl", "--output", "out", "--endpoint", "offline"),
            "no.jsonl",
        ),
        (run_it("distill", "--endpoint", "offline", "--text-field", "body"), "body"),
        (run_it("multilingual_qa", "--endpoint", "offline"), "needs no input"),
        (
            run_it("distill", "--endpoint", "http://127.0.0.1:9/v1", "--model", "m"),
            "nothing answers",
        ),
        (("preview", "distill", "--input", "docs.jsonl"), "--endpoint offline"),
        (("tasks", "distil"), "did you mean 'distill'"),
        (("init", "distil"), "did you mean 'distill'"),
        (("check", "--endpoint", "nowhere"), "is no address"),
        (("check", "--endpoint", "http://127.0.0.1:9/v1"), "nothing answers"),
        (("check",), "Missing option '--endpoint'"),
        (("serve-offline", "--port", "99999"), "not in the range"),
    ],
)
def test_bad_input_is_one_message_with_exit_code_2(arguments: tuple[str, ...], wanted: str) -> None:
    assert wanted in refused(*arguments)


def test_prompt_file_and_a_task_do_not_go_together(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("Sum up {document}")
    (tmp_path / "q.txt").write_text("Say hello")
    both = run_it("distill", "--prompt-file", "p.txt", "--output-field", "s")
    assert "not both" in refused(*both)
    assert "placeholder" in refused(*run_it("--prompt-file", "q.txt", "--output-field", "s"))
    with_column = run_it("--prompt-file", "p.txt", "--output-field", "text")
    assert "is the text_field already" in refused(*with_column)


@pytest.mark.row("I1")
def test_a_typo_in_a_recipe_names_line_and_allowed_names_and_asks_nothing(
    scripted: Callable[..., Any], tmp_path: Path
) -> None:
    server = scripted(models=["m"])
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"tasks: distill\ninput: docs.jsonl\nendpoint: {server.url}\nmodel: m\nlimt: 3\n"
    )
    told = refused("run", "r.yaml", "--output", "out")
    assert told.startswith("r.yaml:5: limt: unknown key 'limt'; did you mean 'limit'?")
    assert "Known here: tasks, input, model" in told
    assert server.log.entries == [] and not (tmp_path / "out").exists()


@pytest.mark.row("M15")
def test_a_key_that_is_not_set_stops_before_anything_is_sent(scripted: Callable[..., Any]) -> None:
    server = scripted(models=["m"])
    options = ("--endpoint", server.url, "--model", "m", "--api-key-env", "NO_SUCH_KEY")
    assert "NO_SUCH_KEY" in refused(*run_it("distill", *options))
    assert server.log.entries == []


# --- what becomes of errors -----------------------------------------------------------------------


@pytest.fixture
def fails(monkeypatch: Any) -> Callable[[BaseException], None]:
    """Make `nemo-sdg tasks` raise."""

    def arrange(error: BaseException) -> None:
        def raised() -> None:
            raise error

        monkeypatch.setattr("nemo_sdg.tasks.registry.all_tasks", raised)

    return arrange


@pytest.mark.parametrize(
    ("error", "code"), [(RecipeError("no such thing"), 2), (EndpointDown("asleep"), 3)]
)
def test_a_known_error_is_its_message_and_its_code(
    fails: Callable[..., None], error: Exception, code: int
) -> None:
    fails(error)
    assert refused("tasks", code=code) == f"{error}\n"


def test_an_interrupt_is_130(fails: Callable[..., None]) -> None:
    fails(KeyboardInterrupt())
    result = call("tasks")
    assert result.exit_code == 130
    assert "same command goes on" in result.stderr and "Traceback" not in result.output


def test_a_defect_is_one_line_and_its_place_is_kept_without_texts(
    fails: Callable[..., None], tmp_path: Path, monkeypatch: Any
) -> None:
    fails(KeyError("a secret sentence of a document"))
    told = refused("tasks", code=1)
    assert "unexpected KeyError at" in told and "report" in told and told.count("\n") == 1
    assert "secret" not in told
    monkeypatch.setattr(main_module.Place, "folder", tmp_path)
    log = tmp_path / "error.log"
    assert str(log) in refused("tasks", code=1)
    assert "tasks_command.py" in log.read_text() and "KeyError" in log.read_text()
    assert "secret" not in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_traceback_shows_when_asked_for(fails: Callable[..., None], monkeypatch: Any) -> None:
    fails(KeyError("x"))
    monkeypatch.setenv("NEMO_SDG_TRACEBACK", "1")
    result = call("tasks")
    assert result.exit_code == 1


# --- tasks, init, check ---------------------------------------------------------------------------


def test_tasks_lists_all_and_shows_one() -> None:
    listed = call("tasks").stdout
    assert [name for name in all_tasks() if name not in listed] == []
    shown = call("tasks", "diverse_qa").stdout
    for wanted in ("diverse_qa (list[string])", "{document}", "question, answer, type", "1000"):
        assert wanted in shown
    assert "Here are the questions and answers based on the provided text:" in shown


def test_init_writes_a_recipe_that_loads_and_overwrites_nothing(tmp_path: Path) -> None:
    assert call("init", "distill").stdout.startswith("# A recipe for distill.")
    assert call("init", "distill", "-o", "r.yaml").exit_code == 0
    assert load_recipe(tmp_path / "r.yaml").tasks[0].name == "distill"
    assert "is there already" in refused("init", "distill", "-o", "r.yaml")
    assert "cannot be written" in refused("init", "distill", "-o", "no/r.yaml")


def test_a_task_of_a_file_is_listed_and_begun_with(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from nemo_sdg.tasks.task import Task\n"
        "t = Task(name='cli_own', output='o', prompt='Of {document}', doc='My own words.')\n"
    )
    assert "My own words." in call("tasks", "--task-file", "mine.py").stdout
    assert call("init", "cli_own", "--task-file", "mine.py", "-o", "r.yaml").exit_code == 0
    assert [t.name for t in load_recipe(tmp_path / "r.yaml").resolved_tasks()] == ["cli_own"]


@pytest.mark.row("N7")
def test_check_shows_models_key_window_answer_and_features(
    scripted: Callable[..., Any], monkeypatch: Any
) -> None:
    server = scripted(models={"m": 4096}, api_key="sk-test-secret", rules=[("river", "Water.")])
    monkeypatch.setenv("MY_KEY", "sk-test-secret")
    result = call("check", "--endpoint", server.url, "--api-key-env", "MY_KEY")
    assert result.exit_code == 0
    table = dict(line.split(":", 1) for line in result.stdout.splitlines())
    found = {name: value.strip() for name, value in table.items()}
    assert found["models"] == found["asked"] == "m"
    assert found["key"] == "accepted" and found["context window"] == "4,096 tokens"
    assert found["answer"] == "Water." and found["seed"] == found["streaming"] == "yes"
    assert "sk-test-secret" not in result.output
    assert "refuses" in refused("check", "--endpoint", server.url)


def test_serve_offline_serves_until_it_is_told_to_end() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "nemo_sdg", "serve-offline", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = line.split()[0]
        assert "no language model" in line
        told = call("check", "--endpoint", url)
        assert "offline-extractive" in told.stdout, told.output
        port = url.split(":")[2].split("/")[0]
        assert "cannot listen" in refused("serve-offline", "--port", port)
    finally:
        process.terminate()
        assert process.wait(10) in (0, -15)
        process.stdout.close()
