"""Real text through all five tasks: manual pages, a line of 2 MB, Chinese, nothing at all, NUL."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import combinations
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]

LONG_DOCUMENT_TOKENS = 300
LINE_CHARACTERS = 2_000_000
OUTPUTS = {
    "wikipedia_rephrase": "rephrased",
    "diverse_qa": "diverse_qa",
    "distill": "distill",
    "extract_knowledge": "extract_knowledge",
    "knowledge_list": "knowledge_list",
}
TASKS = tuple(OUTPUTS)
_OPTIONS = ["--input", "docs.jsonl", "--output", "out", "--endpoint", "offline", "--workers", "2"]
CHINESE = """\
茶树原产于中国西南部的山地，最早的野生茶树至今还生长在云南的森林里。唐代的陆羽在公元七八零年前后写成了《茶经》，\
书中记录了采茶、制茶和煮茶的方法，也谈到各地泉水的好坏。
宋代的人喜欢把茶叶磨成细粉，用竹筅在碗里打出白色的泡沫。明代初年朝廷下令停止制作团茶，散茶从此流行起来，\
人们开始用热水直接冲泡整片的茶叶。
绿茶在采摘之后很快加热，这样可以阻止叶子里的酶继续作用，所以茶汤保持清淡的颜色。红茶则要经过萎凋、揉捻和发酵，\
叶子变成深褐色，味道也更加浓厚。乌龙茶介于两者之间，发酵的程度大约在百分之二十到七十之间。
十七世纪，荷兰的商船把茶叶运到欧洲，起初只有富裕的家庭喝得起。一百年以后，英国每年进口的茶叶已经超过五百万公斤，\
茶税成了国家的重要收入。一七七三年，波士顿的居民把三百四十二箱茶叶倒进海港，抗议英国的税收。
今天全世界有五十多个国家种植茶叶，每年的总产量大约为六百万吨。中国和印度是最大的两个产地，肯尼亚和斯里兰卡\
出口的茶叶也很多。茶树喜欢温暖湿润的气候，在海拔一千米以上的山坡上长得比较慢，不过香气更好。
"""


def documents() -> dict[str, str]:
    found = {f"topic-{name}": text for name, text in sorted(topics.items())}
    sentences = [s for text in topics.values() for s in " ".join(text.split()).split(". ") if s]
    choose, line, size = random.Random(7), [], 0
    while size < LINE_CHARACTERS:
        line.append(choose.choice(sentences) + ". ")
        size += len(line[-1])
    found["one-line"] = "".join(line)[:LINE_CHARACTERS]
    found["chinese"] = CHINESE
    found["empty"] = ""
    looped = topics["while"].replace("loop", "lo\x00op")
    found["nul"] = f"A page with NUL characters.\x00\x00\n\n{looped}\x00{topics['try'][:3000]}"
    return found


@dataclass(frozen=True)
class Finished:
    folder: Path
    report: dict[str, Any]
    rows: dict[str, Any]
    sources: dict[str, str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    from nemo_sdg.data.dataset import DocumentDataset

    base = tmp_path_factory.mktemp("real")
    sources = documents()
    with (base / "docs.jsonl").open("w", encoding="utf-8") as file:
        for name, text in sources.items():
            file.write(json.dumps({"id": name, "text": text}, ensure_ascii=False) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "nemo_sdg", "run", "nemotron-cc", *_OPTIONS],
        cwd=base,
        env=os.environ | {"HOME": str(base)},
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    folder = base / "out"
    yield Finished(
        folder=folder,
        report=json.loads((folder / "run.json").read_text()),
        rows={t: DocumentDataset.read(str(folder / "data" / t)).to_pandas() for t in TASKS},
        sources=sources,
    )


def _of(counts: dict[str, int], prefix: str) -> dict[str, int]:
    return {name: n for name, n in counts.items() if name.startswith(prefix)}


def _table(folder: Path) -> Any:
    from nemo_sdg.data.dataset import DocumentDataset

    return DocumentDataset.read(str(folder)).to_pandas()


@pytest.mark.parametrize("task", TASKS)
def test_documents_and_segments_add_up(finished: Finished, task: str) -> None:
    counts = finished.report["counts"][task]
    ends = [f"documents.{end}" for end in ("filtered", "complete", "partial", "empty")]
    assert sum(counts.get(end, 0) for end in ends) == len(finished.sources)
    lost = _of(counts, "filtered.") | _of(counts, "dead.")
    assert counts["segments"] == counts["kept"] + sum(lost.values())
    assert counts["rows"] == len(finished.rows[task])


@pytest.mark.parametrize("name", ["dropped", "dead_letters"])
def test_what_was_lost_stands_in_the_folder_as_often_as_it_was_counted(
    finished: Finished, name: str
) -> None:
    table = _table(finished.folder / name)
    for task, counts in finished.report["counts"].items():
        if name == "dead_letters":
            counted = _of(counts, "dead.")
        else:
            counted = _of(counts, "filtered.") | _of(counts, "documents.filtered.")
        assert len(table[table["task"] == task]) == sum(counted.values())


@pytest.mark.parametrize("task", TASKS)
def test_long_documents_yield_an_answer(
    finished: Finished, task: str, bundled_tokenizer: Any
) -> None:
    tokens = bundled_tokenizer.count(list(finished.sources.values()))
    names = zip(finished.sources, tokens, strict=True)
    long = {name for name, n in names if n >= LONG_DOCUMENT_TOKENS}
    assert len(long) > 50
    rows = finished.rows[task]
    answered = set(rows.loc[rows[OUTPUTS[task]].str.strip() != "", "id"])
    assert len(long & answered) >= 0.9 * len(long), sorted(long - answered)
    assert {"one-line", "chinese", "nul"} <= answered
    assert "empty" not in answered


@pytest.mark.parametrize("task", TASKS)
def test_two_documents_have_two_answers(finished: Finished, task: str) -> None:
    rows = finished.rows[task]
    whole = rows.groupby("id", sort=True)[OUTPUTS[task]].agg("\n\n".join)
    by_answer: dict[str, set[str]] = {}
    for name, answer in whole.items():
        by_answer.setdefault(answer, set()).add(finished.sources[name])
    assert not [texts for texts in by_answer.values() if len(texts) > 1]


@pytest.mark.parametrize("task", TASKS)
def test_two_segments_with_one_answer_have_one_source(finished: Finished, task: str) -> None:
    """Some topics hold others: segments cut out of the same pages may come to the same facts."""
    rows = finished.rows[task]
    for _, same in rows.groupby(OUTPUTS[task]):
        for a, b in combinations(dict.fromkeys(same["text"].str.split().map(tuple)), 2):
            assert SequenceMatcher(None, a, b, autojunk=False).ratio() > 0.6, (a[:20], b[:20])


@pytest.mark.parametrize("task", TASKS)
def test_no_reason_takes_more_than_a_fiftieth(finished: Finished, task: str) -> None:
    """A reason that grows above this is explained, or mended, before this limit is raised."""
    counts = finished.report["counts"][task]
    lost = _of(counts, "filtered.") | _of(counts, "dead.")
    assert not {name: n for name, n in lost.items() if n > 0.02 * counts["segments"]}
    documents_lost = _of(counts, "documents.filtered.")
    assert documents_lost == {"documents.filtered.min_document_tokens": 1}  # the empty one


@pytest.mark.parametrize("task", TASKS)
def test_every_answer_is_of_its_own_source(finished: Finished, task: str) -> None:
    """Words of an extractive answer stand in its own segment; a mixed-up row would show here."""
    rows = finished.rows[task]
    assert len(rows)
    for text, answer in zip(rows["text"], rows[OUTPUTS[task]], strict=True):
        words = answer.split()[:400]
        source = set(text.split())
        if len(source) > 20:
            assert sum(word in source for word in words) >= 0.4 * len(words), answer[:200]


def test_a_document_of_one_line_is_whole_in_its_segments(finished: Finished) -> None:
    rows = finished.rows["distill"]
    own = rows[rows["id"] == "one-line"].sort_values("segment_id")
    assert "".join(own["text"]) == finished.sources["one-line"]
    assert own["num_segments"].eq(len(own)).all()
