"""From a few rows that were asked to all of them: totals with their confidence, and the time.

    places = spread(num_rows, 20, seed)                   # which rows to ask
    tokens = total(sizes_asked, tokens_out, num_rows=..., sum_sizes=...)
    seconds = span_s(latencies, tokens_mean, requests, concurrency)

Pure: no clock, no network. Rows are drawn one from each of N equal stretches of the input. What an
answer costs follows the size of its prompt, and the sizes of all prompts are known exactly: so a
line through the asked rows is laid, and read at the mean size of all (the regression estimator of
survey sampling). Its error comes from the scatter about the line, not from that of the sizes.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from nemo_sdg.llm.request import derive_seed

CONFIDENCE = 0.95
LEAST_FOR_BAND = 3
"""Rows below which nothing can be said about the error."""

LEAST_FOR_LINE = 8
"""Rows below which answers are taken to be proportional to their prompts."""

_Z = 1.959964  # of the normal distribution at CONFIDENCE
_MOST_SCHEDULED = 20_000


@dataclass(frozen=True, slots=True)
class Band:
    """A number that is not known for sure. `low` and `high` are None where nothing bounds it.

    Of a guess they are rough; of a measurement they hold with `CONFIDENCE`.
    """

    low: float | None
    expected: float
    high: float | None

    @property
    def error(self) -> float | None:
        """Half of the band as a share of what is expected; None where it has no end."""
        if self.low is None or self.high is None or not self.expected:
            return None
        return (self.high - self.low) / 2 / self.expected


def spread(num_rows: int, wanted: int, seed: int) -> list[int]:
    """Return the numbers of `wanted` rows, in order: one of each equal stretch of the input.

    Which one is drawn from the seed, so that no pattern in the order of rows can match it. The same
    arguments give the same rows.
    """
    wanted = min(wanted, num_rows)
    edges = [num_rows * i // wanted for i in range(wanted + 1)] if wanted else []
    return [
        start + derive_seed(seed, "pilot", place) % (stop - start)
        for place, (start, stop) in enumerate(pairwise(edges))
    ]


@dataclass(frozen=True, slots=True)
class Total:
    """A sum over all rows, with its standard error (None: too few rows) and degrees of freedom."""

    value: float
    error: float | None
    freedom: int = 0

    def band(self) -> Band:
        """Return the interval that holds the sum with `CONFIDENCE`."""
        if self.error is None:
            return Band(None, self.value, None)
        half = student(self.freedom) * self.error if self.error else 0.0
        return Band(max(0.0, self.value - half), self.value, self.value + half)


def together(totals: Sequence[Total]) -> Total:
    """Return the sum of independent totals."""
    value = sum(one.value for one in totals)
    errors = [one.error for one in totals]
    if not totals or any(error is None for error in errors):
        return Total(value, None)
    error = math.sqrt(sum(error**2 for error in errors if error is not None))
    return Total(value, error, min((one.freedom for one in totals if one.error), default=0))


def total(size: Any, made: Any, *, num_rows: int, sum_sizes: float) -> Total:
    """Return what all rows will make, from what those made that were asked.

    Args:
        size: of the asked rows, one number each, as known beforehand (tokens of the prompt).
        made: what they came to (tokens of the answer, seconds, money).
        num_rows: how many rows there are.
        sum_sizes: of all rows.
    """
    x, y = np.asarray(size, dtype="float64"), np.asarray(made, dtype="float64")
    n = len(x)
    if n == 0:
        return Total(0.0, None if num_rows else 0.0)
    mean, around = sum_sizes / num_rows, float(((x - x.mean()) ** 2).sum())
    spent = float(y.sum())
    if n >= num_rows:
        return Total(spent, 0.0)
    has_line = n >= LEAST_FOR_LINE and around > 0
    if has_line:
        slope = float(((x - x.mean()) * y).sum()) / around
    else:
        slope = spent / float(x.sum()) if x.any() else 0.0
    away = mean - float(x.mean())
    value = max(spent, num_rows * (spent / n + slope * away))  # what was asked is part of it
    if n < LEAST_FOR_BAND:
        return Total(value, None)
    freedom = n - 2 if has_line else n - 1
    rest = y - y.mean() - slope * (x - x.mean())
    variance = float((rest**2).sum()) / freedom * (1 / n - 1 / num_rows)
    if has_line:
        variance += float((rest**2).sum()) / freedom * away**2 / around
    return Total(value, num_rows * math.sqrt(variance), freedom)


def student(freedom: int) -> float:
    """Return the two-sided quantile of Student's t at `CONFIDENCE`.

    By its expansion in 1 / freedom (Abramowitz and Stegun, 26.7.5), within 1 % from 5 on; below
    that the exact figures.
    """
    exact = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
    if freedom in exact:
        return exact[freedom]
    z = _Z
    first = (z**3 + z) / (4 * freedom)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return z + first + second


def span_s(
    latencies_s: Sequence[float],
    mean_s: float,
    requests: int,
    concurrency: int,
    least_s: float = 0.0,
) -> float:
    """Return the seconds from the first request to the last answer, all slots kept busy.

    Args:
        latencies_s: as measured; requests are drawn from them.
        mean_s: the mean over all requests, which need not be that of the measured ones.
        requests: how many there will be.
        concurrency: how many at a time.
        least_s: it takes no less, as by questions of one row that wait for each other, or a rate.
    """
    if not requests or not latencies_s:
        return 0.0
    scale = mean_s / (sum(latencies_s) / len(latencies_s) or 1.0)
    drawn = random.Random(0).choices(latencies_s, k=min(requests, _MOST_SCHEDULED))
    free = [0.0] * min(concurrency, len(drawn))
    for latency_s in drawn:
        heapq.heapreplace(free, free[0] + latency_s * scale)
    rest_s = (requests - len(drawn)) * mean_s / concurrency
    return max(max(free) + rest_s, least_s)
