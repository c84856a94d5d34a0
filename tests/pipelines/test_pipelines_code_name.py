"""A fingerprint of code is the same in every process, and another for other code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemo_sdg.pipelines.code_name import code_name
from nemo_sdg.tasks.parse import after_prefix, plain_text
from nemo_sdg.tasks.registry import all_tasks, load_task_file
from nemo_sdg.tasks.task import Task

CODE = """
import functools, operator, re
from dataclasses import dataclass

LIMIT = 9
MARKS = {"a", "b", "c", "d"}
PATTERN = re.compile("x+" * 150)

def helper(text): return text[:LIMIT]
def cut(text, n): return helper(text)[:n]
def marked(text): return PATTERN.sub("", text) if text in MARKS else text
def made(word):
    def parse(text): return text.replace(word, "")
    return parse

class Plain:
    def __init__(self, n): self.n = n
    def __call__(self, text): return text[: self.n]
    def method(self, text): return text

@dataclass(frozen=True)
class Held:
    function: object
    def __call__(self, text): return self.function(text)

@functools.lru_cache
def cached(text): return text

PARSERS = [
    functools.partial(cut, n=9), functools.partial(Plain(3).method), Plain(3), Plain(3).method,
    Held(cut), Held(Plain(2)), cached, marked, made("word"),
    lambda text: text + "!",
    operator.methodcaller("strip"), str.strip, "abc".join, len, {"k": {Plain}},
]
"""
NAMES = "import json, sys; from nemo_sdg.pipelines.code_name import code_name\n" + (
    "from parsers import PARSERS; print(json.dumps([code_name(p) for p in PARSERS]))"
)


def names_of(folder: Path, code: str, seed: str = "0") -> list[str]:
    (folder / "parsers.py").write_text(code)
    paths = [str(folder), *sys.path]
    environment = os.environ | {
        "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"
    }  # fmt: skip
    out = subprocess.run(
        [sys.executable, "-c", NAMES], env=environment, capture_output=True, text=True, check=True
    )
    found: list[str] = json.loads(out.stdout)
    return found


def test_code_has_one_name_in_every_process_and_another_when_it_changes(tmp_path: Path) -> None:
    before = names_of(tmp_path, CODE, "1")
    assert names_of(tmp_path, CODE, "2") == before
    assert not any("0x" in name for name in before) and len(set(before)) == len(before)
    edits = {
        "n=9": "n=8",
        "LIMIT = 9": "LIMIT = 8",
        'text[: self.n]': 'text[self.n :]',
        '"d"}': '"e"}',
        '"x+" * 150)': '"x+" * 150 + "y")',
        'made("word")': 'made("other")',
        'text + "!"': 'text + "?"',
        "def cached(text): return text": "def cached(text): return text + '.'",
    }  # fmt: skip
    changed = [
        {i for i, (a, b) in enumerate(zip(before, names_of(tmp_path, code), strict=True)) if a != b}
        for code in (CODE.replace(old, new) for old, new in edits.items())
    ]
    plain = {1, 2, 3, 5, 14}
    assert changed == [{0}, {0, 4}, plain, {7}, {7}, {8}, {9}, {6}]


def test_what_the_package_brings_goes_by_name_and_value() -> None:
    def check(name: Callable[[Any], str]) -> None:
        assert name(plain_text) == "nemo_sdg.tasks.parse.plain_text"
        assert name(after_prefix("A:")) == name(after_prefix("A:")) != name(after_prefix("B:"))
        for task in all_tasks().values():
            steps = [*task.clean, *([task.parse, task.check] if isinstance(task, Task) else [])]
            assert not any("0x" in name(step) for step in steps)

    check(code_name)
    with pytest.raises(AssertionError):
        check(repr)


def test_a_task_with_a_partial_is_the_same_when_loaded_again(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "import functools\nfrom nemo_sdg.tasks.task import Task\n"
        "def cut(text, n): return text[:n]\n"
        "t = Task(name='own-partial', output='o', prompt='Sum {document}', "
        "parse=functools.partial(cut, n=9), doc='d')\n"
    )

    def check(name: Callable[[Any], str]) -> None:
        tasks = [load_task_file(file)[0] for _ in range(2)]
        kept = [task.parse for task in tasks if isinstance(task, Task)]
        assert len({name(parse) for parse in kept}) == 1

    check(code_name)
    with pytest.raises(AssertionError):
        check(repr)
