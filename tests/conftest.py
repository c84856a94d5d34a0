"""What several test files share: endpoints, the bundled tokenizer, the example articles.

Engines are child processes that outlive a test on purpose; they are closed when its module ends.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

HUNG_AFTER_S = 300.0
"""No test takes so long. pytest-timeout ends one by an exception, once, which a process that hangs
in a clean-up or holds the interpreter lock does not hear."""

ROOT = Path(__file__).parent.parent
_STDERR = pytest.StashKey[int]()
ARTICLES = ROOT / "examples" / "data" / "articles-en.jsonl"


@pytest.fixture(scope="session")
def bundled_tokenizer() -> Any:
    """The small tokenizer that is shipped with the package."""
    from nemo_sdg.text.tokens import load_tokenizer

    return load_tokenizer("bundled")


@pytest.fixture(scope="session")
def offline_endpoint() -> Iterator[Any]:
    """The built-in endpoint, with the rule of every registered task."""
    from nemo_sdg.llm.endpoint import Endpoint
    from nemo_sdg.llm.offline import OFFLINE_MODEL, Rule, serve_offline
    from nemo_sdg.tasks.registry import all_tasks

    rules = [
        Rule(name=name, pattern=task.template.pattern(), answer=task.offline)
        for name, task in all_tasks().items()
        if getattr(task, "offline", None) is not None
    ]
    with serve_offline(rules) as server:
        yield Endpoint(url=server.url, model=OFFLINE_MODEL, concurrency=16)


@pytest.fixture(scope="module")
def scripted() -> Iterator[Callable[..., Any]]:
    """Start scripted endpoints: `scripted(rules=..., faults=...)`; they end with the module."""
    from nemo_sdg.llm.scripted import ScriptedEndpoint

    with ExitStack() as running:
        yield lambda **options: running.enter_context(ScriptedEndpoint(**options))


@pytest.fixture(scope="session")
def articles() -> Any:
    """The English example articles, one row each: id, title, language, text, bucketed_results."""
    import pandas as pd

    return pd.read_json(ARTICLES, lines=True)


@pytest.fixture(scope="module", autouse=True)
def _engines_end() -> Iterator[None]:
    yield
    worker = sys.modules.get("nemo_sdg.llm.worker")
    if worker is not None:
        worker.close_engines()


@pytest.fixture(scope="module", autouse=True)
def _own_tasks_end() -> Iterator[None]:
    """Forget the tasks that a module's tests registered: later modules ask for all there are."""
    from nemo_sdg.tasks import registry

    tasks, of_files = registry.all_tasks(), dict(registry._from_file)
    yield
    for known, before in ((registry._tasks, tasks), (registry._from_file, of_files)):
        for name in set(known) - set(before):
            del known[name]


def pytest_configure(config: pytest.Config) -> None:
    """Keep the real standard error: pytest puts a file in its place."""
    config.stash[_STDERR] = os.dup(2)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """End the whole run, and print where every thread is, if a test hangs for good."""
    marker = item.get_closest_marker("timeout")
    # A test that says how long it may take is ended by pytest-timeout first.
    hung_after_s = HUNG_AFTER_S + (marker.args[0] if marker and marker.args else 0)
    faulthandler.dump_traceback_later(hung_after_s, exit=True, file=item.config.stash[_STDERR])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """List what was skipped and why, below everything else."""
    yield
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None:
        return
    skipped = terminal.stats.get("skipped", [])
    if skipped:
        terminal.write_line(f"skipped ({len(skipped)}):")
        same = Counter((_function(report.nodeid), _reason(report)) for report in skipped)
        for (name, reason), count in sorted(same.items()):
            times = f" ({count} cases)" if count > 1 else ""
            terminal.write_line(f"  {name}{times}: {reason}")
    left_out = terminal.stats.get("deselected", [])
    marks = session.config.getoption("markexpr")
    if left_out and marks:
        terminal.write_line(f"left out by -m {marks!r} ({len(left_out)}):")
        for name in dict.fromkeys(_function(item.nodeid) for item in left_out):
            terminal.write_line(f"  {name}")


def _function(nodeid: str) -> str:
    return nodeid.partition("[")[0]


def _reason(report: Any) -> str:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return str(reason).removeprefix("Skipped: ")
