"""Where tokens of a run's GPU columns were counted: in part summaries, run.json and report.html."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nemo_sdg.pipelines.charts import Bar, Chart, Piece, Table
from nemo_sdg.pipelines.report_words import count, share, short
from nemo_sdg.text.counted import Counted

KEY = "counting"

_WORDS = {
    "added_token": "what may be an added token stands in the row",
    "unsettled": "the tokenizer's normal form may change the row",
    "long_word": "a word of more than 1,024 bytes",
    "queue_full": "more words to merge than the kernels keep",
    "cut": "a line over the budget, which was cut",
    "tokenizer": "the kernels do not do what this tokenizer asks for",
    "missing": "numba-cuda or cupy is missing",
    "self_check": "the kernels differed from tokenizers on the test strings",
    "failed": "the kernels failed",
    "no_memory": "the GPU had no memory left",
    "no_text": "the column is no plain text",
}


def noted(counted: Counted) -> dict[str, Any]:
    """Return what a summary says about it; nothing where no column lay on a GPU."""
    plain = counted.plain()
    return {KEY: plain} if plain else {}


def in_all(summaries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up the parts, as `noted` gives it."""
    total = Counted()
    for summary in summaries:
        if KEY in summary:
            total.add(summary[KEY])
    return noted(total)


def tell_notes(summary: Mapping[str, Any], told: set[str], note: Callable[[str], None]) -> None:
    """Say what a part noted, but for what was `told` before."""
    fresh = [one for one in summary.get(KEY, {}).get("notes", []) if one not in told]
    told.update(fresh)
    for sentence in fresh:
        note(sentence)


def counting_chart(plain: Mapping[str, Any]) -> Chart | None:
    """Return what was counted where and why, None where no column lay on a GPU.

    Args:
        plain: what `in_all` gives.
    """
    if not plain:
        return None
    found = plain[KEY]
    places = {"on the GPU": found["gpu"]}
    places |= {f"processor: {_WORDS.get(why, why)}": n for why, n in found["cpu"].items()}
    rows = sum(one["rows"] for one in places.values())
    num_bytes = sum(one["bytes"] for one in places.values())
    most = max(one["bytes"] for one in places.values()) or 1
    kinds = ["one"] + ["four"] * len(found["cpu"])
    return Chart(
        title="Where tokens were counted",
        bars=[
            Bar(
                label=label,
                value=_size(one["bytes"]),
                pieces=[Piece(share=100 * one["bytes"] / most, kind=kind)],
                note=f"{count(one['rows'])} texts, {share(one['bytes'], num_bytes)} of the bytes",
            )
            for (label, one), kind in zip(places.items(), kinds, strict=True)
        ],
        keys=[("one", "on the GPU"), ("four", "on the processor")],
        table=Table(
            head=["where", "texts", "bytes"],
            rows=[
                *(
                    [label, count(one["rows"]), count(one["bytes"])]
                    for label, one in places.items()
                ),
                ["in all", count(rows), count(num_bytes)],
            ],
        ),
        note=" ".join(
            [
                "Documents, lines and segments, of the finished parts.",
                *map(_sentence, found["notes"]),
            ]
        ),
    )


def _size(num_bytes: int) -> str:
    words = short(num_bytes)
    return f"{words}B" if " " in words else f"{words} B"


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."
