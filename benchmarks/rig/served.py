"""What a scripted endpoint's log says about a run: how busy its slots were, and for how long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nemo_sdg.llm.traffic import Entry, Log

LATENCY = {"median_s": 0.25, "sigma": 0.8}
"""Of the lognormal servers; its mean is 0.344 s."""


def asked(log: Log) -> Log:
    """Return the requests that cost something."""
    return Log(entry for entry in log.entries if entry.path.endswith("/completions"))


def first_arrival(log: Log) -> float:
    return min(entry.arrival_s for entry in log.entries)


def last_arrival(log: Log) -> float:
    return max(entry.arrival_s for entry in log.entries)


def last_end(log: Log) -> float:
    return max(_end(entry) for entry in log.entries)


def span_s(log: Log) -> float:
    """Return the seconds from the first arrival to the last end."""
    return last_end(log) - first_arrival(log)


def longest_s(log: Log) -> float:
    """Return the longest time that a request took."""
    return max(_end(entry) - entry.arrival_s for entry in log.entries)


def slot_seconds(log: Log) -> float:
    """Return the sum of the times that all requests took."""
    return sum(_end(entry) - entry.arrival_s for entry in log.entries)


def tail_s(log: Log) -> float:
    """Return the seconds from the last arrival to the last end."""
    return last_end(log) - last_arrival(log)


def until_last(log: Log, is_one: Callable[[Entry], bool]) -> Log:
    """Return the requests that came until the last of a kind did."""
    end = max(entry.arrival_s for entry in log.entries if is_one(entry))
    return Log(entry for entry in log.entries if entry.arrival_s <= end)


def rate(log: Log, start_s: float, stop_s: float) -> float:
    """Return the complete answers a second between two times after the first arrival."""
    begin = first_arrival(log)
    right = sum(
        entry.status == 200 and start_s <= _end(entry) - begin < stop_s for entry in log.entries
    )
    return right / (stop_s - start_s)


def refused_share(log: Log, start_s: float, stop_s: float) -> float:
    """Return the share of 429s among what came between two times after the first arrival."""
    begin = first_arrival(log)
    statuses: Sequence[Any] = [
        entry.status for entry in log.entries if start_s <= entry.arrival_s - begin < stop_s
    ]
    return statuses.count(429) / max(1, len(statuses))


def _end(entry: Entry) -> float:
    return entry.arrival_s if entry.end_s is None else entry.end_s
