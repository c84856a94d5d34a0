"""The built-in endpoint as a process of its own, with the rules that the tasks declare."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager

import orjson

from nemo_sdg.llm.offline import OFFLINE_MODEL, OfflineServer, Rule
from nemo_sdg.llm.server import start_process, stop_at_end_of_input
from nemo_sdg.pipelines.recipe import OFFLINE
from nemo_sdg.tasks.registry import all_tasks, load_task_file
from nemo_sdg.tasks.task import Task

__all__ = ["OFFLINE", "OFFLINE_MODEL", "offline_endpoint", "rules_of_tasks"]


def rules_of_tasks() -> list[Rule]:
    """Return the rules of all known tasks that declare one."""
    return [
        Rule(name=task.name, pattern=task.template.pattern(), answer=task.offline)
        for task in all_tasks().values()
        if isinstance(task, Task) and task.offline is not None
    ]


def offline_endpoint(task_file: str | None = None) -> AbstractContextManager[str]:
    """Run the built-in endpoint beside this process; the context's value is its address.

    A process of its own, so that its work is not taken from the client's share of the interpreter.
    """
    return start_process("nemo_sdg.pipelines.offline", {"task_file": task_file})


def main() -> None:
    """Serve until standard input ends; its first line is the configuration."""
    config = orjson.loads(sys.stdin.buffer.readline())
    if config["task_file"]:
        load_task_file(config["task_file"])
    server = OfflineServer(rules_of_tasks())
    stop_at_end_of_input(server)
    server.serve_forever(on_ready=_say)


def _say(url: str) -> None:
    sys.stdout.write(url + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
