"""Requests counted from the log of tries: how many, how they ended, how long they took.

Latencies are counted in a histogram with bins of 1 %, so a percentile is within 0.5 % of the exact
one, memory does not grow with the requests, and histograms can be added.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from nemo_sdg.llm.tries import read_tries

TOKEN_COUNTS = ("input_tokens", "output_tokens", "reasoning_tokens", "cached_tokens")

_BIN = math.log(1.01)
_FIRST_BIN, _LAST_BIN = math.floor(math.log(1e-4) / _BIN), math.ceil(math.log(1e5) / _BIN)
_MOST_SPANS = 10_000


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Answers and what they cost: a share of a task's, such as those that one filter dropped."""

    answers: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            answers=self.answers + other.answers,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cost=added(self.cost, other.cost),
        )


def added(one: float | None, other: float | None) -> float | None:
    """Add costs; a sum with one that is not known is not known."""
    return None if one is None or other is None else one + other


class Tally:
    """Adds up the requests of a task, batch by batch."""

    def __init__(self) -> None:
        self.codes: Counter[str] = Counter()
        self.retries: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.failed: dict[str, Spent] = {}
        self.cost: float | None = 0.0
        self.estimated = self.copies = 0
        self.latencies = np.zeros(_LAST_BIN - _FIRST_BIN + 1, dtype=np.int64)
        self.first_tokens, self.per_tokens = (np.zeros_like(self.latencies) for _ in range(2))
        self.spans = np.empty((0, 2))

    def add(self, batch: Any) -> None:
        """Take in lines of the log, all of this task."""
        import pyarrow as pa
        import pyarrow.compute as pc

        told: Any = pc.add(batch["input_tokens"], batch["output_tokens"])
        is_paid: Any = pc.greater(told, pa.scalar(0))
        summed = ("repeated", "is_paid", "cost", "estimated", "copy", *TOKEN_COUNTS)
        sums = (
            batch.append_column("is_paid", is_paid)
            .group_by("code")
            .aggregate([("at", "count"), ("cost", "count"), *((name, "sum") for name in summed)])
        )
        for row in sums.to_pylist():
            code = row["code"]
            self.codes[code] += row["at_count"]
            self.retries[code] += row["repeated_sum"]
            self.estimated += row["estimated_sum"] or 0
            self.copies += row["copy_sum"] or 0
            for name in TOKEN_COUNTS:
                self.tokens[name] += row[f"{name}_sum"]
            cost = row["cost_sum"] if row["cost_count"] == row["at_count"] else None
            self.cost = added(self.cost, cost)
            if code and row["is_paid_sum"]:
                self.failed[code] = self.failed.get(code, Spent()) + Spent(
                    answers=row["is_paid_sum"],
                    input_tokens=row["input_tokens_sum"],
                    output_tokens=row["output_tokens_sum"],
                    cost=cost,
                )
        at, latency_s = (batch[name].to_numpy() for name in ("at", "latency_s"))
        answered = latency_s[batch["code"].to_numpy(zero_copy_only=False) == ""]
        _count(self.latencies, answered)
        self._add_streamed(batch)
        self._span(np.column_stack([at - latency_s, at]))

    def _add_streamed(self, batch: Any) -> None:
        """Count first tokens, and the mean time of those after, of answers that were streamed."""
        if batch["first_token_s"].null_count == len(batch):
            return
        first_s = batch["first_token_s"].to_numpy()
        is_told = ~np.isnan(first_s) & (batch["code"].to_numpy(zero_copy_only=False) == "")
        first_s = first_s[is_told]
        rest_s = batch["latency_s"].to_numpy()[is_told] - first_s
        rest = batch["output_tokens"].to_numpy()[is_told] - 1
        _count(self.first_tokens, first_s)
        _count(self.per_tokens, rest_s[rest > 0] / rest[rest > 0])

    def merge(self, other: Tally) -> None:
        """Take in the requests of another task."""
        self.codes.update(other.codes)
        self.retries.update(other.retries)
        self.estimated += other.estimated
        self.copies += other.copies
        self.tokens.update(other.tokens)
        for code, spent in other.failed.items():
            self.failed[code] = self.failed.get(code, Spent()) + spent
        self.cost = added(self.cost, other.cost)
        self.latencies += other.latencies
        self.first_tokens += other.first_tokens
        self.per_tokens += other.per_tokens
        self._span(other.spans)

    def _span(self, spans: Any) -> None:
        self.spans = union(np.concatenate([self.spans, spans]))


def tallied(tries: str) -> dict[str, Tally]:
    """Return task -> its requests, from the folder of the log."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found: dict[str, Tally] = {}
    for batch in read_tries(tries):
        table = pa.Table.from_batches([batch])
        tasks: list[Any] = pc.unique(table["task"]).to_pylist()
        for task in tasks:
            found.setdefault(task, Tally()).add(table.filter(pc.equal(table["task"], task)))
    return found


def _count(histogram: Any, seconds: Any) -> None:
    bins = np.ceil(np.log(np.maximum(seconds, 1e-9)) / _BIN).astype(np.int64)
    np.add.at(histogram, np.clip(bins, _FIRST_BIN, _LAST_BIN) - _FIRST_BIN, 1)


def union(spans: Any) -> Any:
    """Return disjoint spans in order; of more than `_MOST_SPANS` the shortest gaps are closed."""
    if not len(spans):
        return spans
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    ends = np.maximum.accumulate(spans[:, 1])
    gaps = spans[1:, 0] - ends[:-1]
    least = 0.0
    if np.count_nonzero(gaps > 0) > _MOST_SPANS:
        least = float(np.partition(gaps, -_MOST_SPANS)[-_MOST_SPANS])
    first = np.concatenate([[0], np.flatnonzero(gaps > least) + 1])
    last = np.append(first[1:], len(spans)) - 1
    return np.column_stack([spans[first, 0], ends[last]])


def percentile(latencies: Any, share: float) -> float:
    """Return the latency that this share of the requests did not exceed, within 0.5 %."""
    rank = max(1, math.ceil(share * int(latencies.sum())))
    place = int(np.searchsorted(np.cumsum(latencies), rank))
    return round(2 * math.exp((place + _FIRST_BIN) * _BIN) / (1 + math.exp(_BIN)), 6)


def latency_bins(latencies: Any, *, each: int = 1) -> Iterator[tuple[float, float, int]]:
    """Yield (from seconds, to seconds, requests), `each` bins put together, from first to last."""
    there = np.flatnonzero(latencies)
    if not len(there):
        return
    for start in range(int(there[0]), int(there[-1]) + 1, each):
        low, high = ((start + _FIRST_BIN + n) * _BIN for n in (-1, each - 1))
        yield math.exp(low), math.exp(high), int(latencies[start : start + each].sum())
