"""A segment is counted when it is packed, and by no later step of its chain again."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from nemo_sdg.data.backend import to_values
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.pipelines.chain import Chain
from nemo_sdg.stages.base import Record
from nemo_sdg.stages.merge import Row, merged
from nemo_sdg.tasks.registry import get_task
from nemo_sdg.text.engines import CountingEngine
from nemo_sdg.text.tokens import Tokenizer

LINE = "The bridge number {} over the river was built of sandstone in the year {} and stands."


def chain_and_counted(name: str) -> tuple[Chain, Counter[str]]:
    counted: Counter[str] = Counter()

    def count(texts: list[str]) -> list[int]:
        counted.update(texts)
        return [len(text.split()) + 1 for text in texts]

    tokenizer = Tokenizer(
        CountingEngine(count, name="words"),
        name="words", fingerprint="", chat=None, estimated=False, origin=("remote", None),
    )  # fmt: skip
    endpoint = Endpoint(url="http://127.0.0.1:9/v1", model="none")
    return Chain(task=get_task(name), endpoint=endpoint, tokenizer=tokenizer), counted


def documents() -> pd.DataFrame:
    texts = [
        "\n".join(LINE.format(bridge, year) for year in range(lines))
        for bridge, lines in enumerate((90, 140, 3, 45))
    ]
    texts[3] += "\na few words"
    return pd.DataFrame({"id": [f"d{i}" for i in range(4)], "text": pd.Series(texts, dtype="str")})


def test_segments_are_counted_once():
    chain, counted = chain_and_counted("diverse_qa")
    record = Record(task="diverse_qa")
    asked = chain.prepare(documents(), record)
    texts = to_values(asked["text"])
    whole = set(to_values(documents()["text"]))
    assert len(texts) > 3
    assert {counted[text] for text in texts if text not in whole} == {1}
    # What was dropped was dropped for the count that packing found.
    for row in record.dropped:
        if row["filter"] == "min_segment_tokens":
            assert row["score"] == len(row["text"].split()) + 1 < 30

    before = counted.copy()
    pairs = ["Question: What?\nAnswer: It is.", "Question: Who?\nAnswer: They."]
    frame = merged(asked, [Row(value=pairs, call="0") for _ in texts], chain.task)
    kept = chain._kept(frame, asked, Record(task="diverse_qa"))
    assert len(kept) > 3
    assert not any(counted[text] > before[text] for text in texts)
