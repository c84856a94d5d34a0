"""The documents are true: their code runs, what they name exists, what the code prints is current.

Blocks of README.md run in order in one folder that holds a small `articles.jsonl`: every Python
block, and every shell block below a `<!-- run -->`. A server stands in for the address that the
README names. One local cluster of two processes serves all of them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import nemo_sdg
from nemo_sdg.cli.main import COMMANDS, app
from nemo_sdg.llm.scripted import ScriptedEndpoint
from nemo_sdg.tasks import registry

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
DOCUMENTED_URL, DOCUMENTED_MODEL = "http://localhost:8000/v1", "llama-3.1-8b"
CONDENSED = "Paraphrased Text:\n" + "The heart of the matter is told in fewer words. " * 10

pytestmark = pytest.mark.cluster


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str) -> Iterator[tuple[str, str, bool]]:
    """Yield (language, code, whether `<!-- run -->` stands above) of every fenced block."""
    pattern = r"^(<!-- run -->\n)?```(\w*)\n(.*?)^```$"
    for mark, language, code in re.findall(pattern, text, re.DOTALL | re.MULTILINE):
        yield language, code, bool(mark)


def commands(code: str) -> Iterator[str]:
    """Yield the commands of a shell block; one with lines in place (`<<'END'`) is whole."""
    lines = iter(code.replace("\\\n", " ").splitlines())
    for line in lines:
        if match := re.search(r"<<'(\w+)'$", line):
            rest = []
            for inner in lines:
                rest.append(inner)
                if inner == match.group(1):
                    break
            line = "\n".join([line, *rest])
        if line.strip() and not line.startswith("#"):
            yield line


@pytest.fixture(scope="module")
def one_cluster() -> Iterator[Any]:
    """A stand-in for `LocalCluster`: the same two worker processes every time."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        dashboard_address=None,
        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
        silence_logs=50,
    ) as cluster:

        class Shared:
            def __init__(self, **_: Any) -> None:
                self.scheduler_address = cluster.scheduler_address

            def __enter__(self) -> Any:
                return cluster

            def __exit__(self, *_: object) -> None:
                pass

        yield Shared


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_cluster: Any) -> Path:
    """A folder to work in, with `articles.jsonl`: three short articles."""
    lines = (ROOT / "examples" / "data" / "articles-en.jsonl").read_text("utf-8").splitlines()
    articles = sorted((json.loads(line) for line in lines), key=lambda a: len(a["text"]))
    usual = [a for a in articles if 1200 < len(a["text"]) < 2000][:3]
    assert len(usual) == 3
    (tmp_path / "articles.jsonl").write_text("".join(json.dumps(a) + "\n" for a in usual))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("distributed.LocalCluster", one_cluster)
    registry.all_tasks()
    for table in ("_tasks", "_from_file"):  # what a page registers goes when its test is over
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))
    return tmp_path


@pytest.fixture
def server() -> Iterator[ScriptedEndpoint]:
    """The server that the README means."""
    with ScriptedEndpoint(
        models=[DOCUMENTED_MODEL], rules=[("Condense the text below", CONDENSED)]
    ) as endpoint:
        yield endpoint


def run_command(command: str) -> str:
    """Run one command of a shell block; `nemo-sdg` in this process, which is quicker."""
    words = shlex.split(command) if command.startswith("nemo-sdg ") else []
    if not words:
        done = subprocess.run(
            ["bash", "-eu", "-c", command], capture_output=True, text=True, check=False
        )
        code, output = done.returncode, done.stdout + done.stderr
    else:
        result = CliRunner().invoke(app, words[1:])
        code, output = result.exit_code, result.output
    assert code == 0, f"{command}\n{output}"
    return output


def run_python(code: str, folder: Path) -> None:
    """Run a Python block as a script; one whose first line names a file is saved under it."""
    if match := re.match(r"# (\w+\.py)\n", code):
        (folder / match.group(1)).write_text(code)
    exec(compile(code, "block of README.md", "exec"), {"__name__": "__main__"})


@pytest.mark.row("N7")
def test_every_block_of_the_readme_runs(place: Path, server: ScriptedEndpoint) -> None:
    outputs: dict[str, list[str]] = {}
    python_blocks = 0
    for language, code, is_marked in blocks(page("README.md")):
        code = code.replace(DOCUMENTED_URL, server.url)
        if language == "python":
            run_python(code, place)
            python_blocks += 1
        elif is_marked:
            for command in commands(code):
                outputs.setdefault(command, []).append(run_command(command))
    assert python_blocks >= 3 and len(outputs) >= 9
    first, second = outputs[next(c for c in outputs if "--output out " in c)]
    assert "complete after" in first and "nothing was asked" in second

    for name in ("out", "real", "summaries", "digests", "distilled-run"):
        report = json.loads((place / name / "run.json").read_text())
        assert report["status"] == "complete"
        (counts,) = report["counts"].values()
        assert counts["documents.complete"] == 3, (name, counts)
    columns = set(nemo_sdg.DocumentDataset.read_parquet("distilled").columns)
    assert {"id", "title", "text", "distill", "distill_error", "distill_call"} <= columns
    there = {f"{p.name}/" if p.is_dir() else p.name for p in (place / "out").iterdir()}
    section = page("README.md").partition("## The run folder")[2].partition("\n## ")[0]
    table, _, columns_table = section.partition("**Columns of")
    told = set(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE))
    names = set(re.findall(r"`([a-z_<>]+)`", columns_table.replace("<output>", "distill")))
    made = set(nemo_sdg.DocumentDataset.read(str(place / "out" / "data")).columns)
    assert made - {"id", "title", "language", "bucketed_results"} <= names
    # What one run needs to find its way back is its own affair.
    assert told <= there and there - told <= {"state.json"}


def test_the_summary_was_not_paid_for_twice(place: Path) -> None:
    """Preview with `--output`, then the run: the sentence of the README, by the server's log."""
    (place / "prompt.txt").write_text("Say what this text is about.\n\n{document}\n")
    with ScriptedEndpoint(models=[DOCUMENTED_MODEL]) as server:
        options = (
            f"--prompt-file prompt.txt --output-field summary --input articles.jsonl "
            f"--endpoint {server.url} --model {DOCUMENTED_MODEL} --output summaries"
        )
        run_command(f"nemo-sdg preview {options}")
        run_command(f"nemo-sdg run {options}")
        bodies = [entry.body or {} for entry in server.log.entries]
    asked = [json.dumps(body["messages"]) for body in bodies if "messages" in body]
    assert len(asked) == len(set(asked)) == 3


# --- examples -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["quickstart", "own_task", "flow"])
def test_every_example_runs(
    name: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 8
    assert not re.search(r"\bnan\b|None", "\n".join(lines))


@pytest.mark.row("N8")
def test_the_multilingual_quickstart_is_short_and_runs_as_a_script(tmp_path: Path) -> None:
    path = ROOT / "examples" / "multilingual_quickstart.py"
    assert len(path.read_text().splitlines()) < 30
    # A process of its own: its workers import it, as they would a user's script.
    done = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    for language in ("English", "French", "German", "Italian", "Spanish"):
        assert done.stdout.count(f"[{language}] ") == 4, "exactly a fifth each"
    assert "Traceback" not in done.stderr


def test_all_examples_are_run_here() -> None:
    run_here = {"quickstart", "own_task", "flow", "multilingual_quickstart"}
    others = {"train_tokenizer"}  # tests/examples/test_example_data.py
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == run_here | others


# --- what the documents name ----------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_names_exists(name: str) -> None:
    text = page(name)
    quoted = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M))
    shell = [code for language, code, _ in blocks(text) if language == "bash"]
    in_blocks = [line for code in shell for line in code.splitlines()]
    folders = r"(?:nemo_sdg|tests|examples|ci|benchmarks|docs|llm|tasks|text|stages|pipelines|data)"
    for word in quoted:
        if re.fullmatch(rf"{folders}/[\w./-]+", word) and word not in NOT_THERE:
            places = (ROOT / word, ROOT / "nemo_sdg" / word)
            assert any(p.exists() for p in places), f"{name} names {word}"
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / target).exists(), f"{name} links to {target}"
    told = [*quoted, *in_blocks]
    options = {o for line in told for o in re.findall(r"(?<![\w-])--[a-z][a-z-]+", line)}
    known = {option for command in COMMANDS for option in options_of(command)}
    assert options <= known | OTHER_OPTIONS, f"{name} names an option that is not there"
    for line in told:
        if match := re.match(r"nemo-sdg ([a-z-]+)", line):
            assert match.group(1) in COMMANDS
        if match := re.match(r"make ([a-z-]+)", line):
            assert re.search(rf"^{match.group(1)}:", page("Makefile"), re.MULTILINE)


NOT_THERE = frozenset({"tests/golden/glossary.json"})  # what CONTRIBUTING has one write
OTHER_OPTIONS = frozenset({"--check", "--junit", "--run"})  # of the scripts in ci/


def options_of(command: str) -> set[str]:
    result = CliRunner().invoke(app, [command, "--help"], terminal_width=100)
    return set(re.findall(r"--[a-z-]+", result.output))


def test_a_wrong_name_in_a_page_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("`nemo_sdg/llm/nowhere.py`", "`nemo-sdg dance`", "`--no-such`", "[x](gone.md)"):
        monkeypatch.setattr(sys.modules[__name__], "page", lambda _, wrong=wrong: wrong)
        with pytest.raises(AssertionError):
            test_what_a_page_names_exists("README.md")


def test_the_exit_codes_of_the_readme_are_those_of_the_code() -> None:
    from nemo_sdg import errors
    from nemo_sdg.cli.main import INTERRUPTED

    table = page("README.md").partition("## Exit codes")[2].partition("\n## ")[0]
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    kinds = [k for k in vars(errors).values() if isinstance(k, type)]
    used = {k.exit_code for k in kinds if issubclass(k, errors.NemoSdgError)}
    assert told == used | {0, 4, INTERRUPTED}


# --- pages written by the code --------------------------------------------------------------------


@pytest.fixture(scope="module")
def docs() -> Any:
    spec = importlib.util.spec_from_file_location("docs_script", ROOT / "ci" / "docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_in_docs_are_what_the_code_says(docs: Any, tmp_path: Path) -> None:
    assert docs.stale() == [], "run `make docs` and commit the result"
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    changed = tmp_path / "docs" / "recipe.md"
    changed.write_text(changed.read_text().replace("Ask for streamed", "Beg for streamed"))
    assert any("Beg for streamed" in line for line in docs.stale(tmp_path / "docs"))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_in_docs_is_the_help(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], prog_name="nemo-sdg", terminal_width=100)
    assert result.output.rstrip() in page("docs/commands.md")


def test_every_task_and_field_has_its_place_in_docs() -> None:
    from nemo_sdg.pipelines.recipe import Recipe

    for name, task in registry.all_tasks().items():
        assert f"## {name}\n\n{task.doc}" in page("docs/tasks.md")
    for name in Recipe.model_fields:
        assert f"| `{name}` |" in page("docs/recipe.md")


# --- CONTRIBUTING: a task is one value and one golden file ----------------------------------------


def test_a_task_is_added_as_contributing_says(tmp_path: Path) -> None:
    section = page("CONTRIBUTING.md").partition("## A task")[2].partition("\n## ")[0]
    by_language = {language: code for language, code, _ in blocks(section)}
    name = re.search(r'name="(\w+)"', by_language["python"])
    assert name is not None
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "nemo_sdg", tmp_path / "nemo_sdg", ignore=skipped)
    shutil.copytree(ROOT / "tests" / "golden", tmp_path / "tests" / "golden")
    for file in ("pyproject.toml", "tests/conftest.py", "tests/test_golden.py"):
        shutil.copy(ROOT / file, tmp_path / file)
    told = re.findall(r"`((?:nemo_sdg|tests)/[\w/.]+\.(?:py|json))`", section)
    assert told[:2] == ["nemo_sdg/tasks/nemotron_cc.py", f"tests/golden/{name.group(1)}.json"]
    family, golden = (tmp_path / path for path in told[:2])

    environment = os.environ | {"PYTHONPATH": str(tmp_path)}

    def run(*command: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path,
            env=environment | more,
            capture_output=True,
            text=True,
        )

    with family.open("a") as file:
        file.write("\n\n" + by_language["python"])
    golden.write_text(by_language["json"])
    made = run("pytest", "tests/test_golden.py", NEMO_SDG_UPDATE_GOLDEN="1")
    assert made.returncode == 0, made.stdout
    held = run("pytest", "tests/test_golden.py")
    assert held.returncode == 0, held.stdout
    written = json.loads(golden.read_text())
    assert written["requests"] and all("value" in c or "reason" in c for c in written["cases"])
    shown = run("nemo_sdg", "tasks", name.group(1))
    assert shown.returncode == 0 and f"{name.group(1)}: " in shown.stdout
