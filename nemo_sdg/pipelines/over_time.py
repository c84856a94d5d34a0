"""How a run went over time, from the log of tries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nemo_sdg.llm.tries import CANCELLED, OVERTAKEN, read_tries


@dataclass(frozen=True, kw_only=True)
class OverTime:
    """How a run went, in bins of equal width; long pauses between sessions are cut out.

    Attributes:
        width_s: of a bin.
        answered, failed, output_tokens: per second.
        in_flight: requests under way, the mean of the bin.
        pauses_s: where something was cut out, in seconds from the start.
    """

    width_s: float
    answered: list[float]
    failed: list[float]
    output_tokens: list[float]
    in_flight: list[float]
    pauses_s: list[float]


def over_time(tries: str, spans: Any, num_requests: int) -> OverTime | None:
    """Read the log of requests once more, now that it is known how long it goes on.

    Args:
        tries: folder of the log.
        spans: while requests were under way, see `metrics.Metrics`.
        num_requests: how many there are; few are put into fewer bins.

    Returns:
        None where no request was sent.
    """
    if not len(spans):
        return None
    num_bins = min(120, max(20, num_requests // 10))
    gaps = spans[1:, 0] - spans[:-1, 1]
    is_pause = gaps > max(5.0, 0.05 * float((spans[:, 1] - spans[:, 0]).sum()))
    begins = np.concatenate([spans[:1, 0], spans[1:, 0][is_pause]])
    ends = np.concatenate([spans[:-1, 1][is_pause], spans[-1:, 1]])
    offsets = np.concatenate([[0.0], np.cumsum(ends - begins)])
    width = max(float(offsets[-1]), 1e-3) / num_bins

    def bins_of(moments: Any) -> tuple[Any, Any]:
        session = np.clip(np.searchsorted(begins, moments, side="right") - 1, 0, None)
        seconds = np.clip(moments - begins[session] + offsets[session], 0.0, offsets[-1])
        return seconds, np.clip((seconds / width).astype(np.int64), 0, num_bins - 1)

    sums = {name: np.zeros(num_bins) for name in ("answered", "failed", "output_tokens")}
    # The integral of requests in flight up to an edge: of every request begun the time since, less
    # that of every request ended.
    numbers, moments = np.zeros(num_bins), np.zeros(num_bins)
    for batch in read_tries(tries):
        at, latency_s = batch["at"].to_numpy(), batch["latency_s"].to_numpy()
        code = batch["code"].to_numpy(zero_copy_only=False)
        for times, sign in ((at - latency_s, 1), (at, -1)):
            seconds, places = bins_of(times)
            numbers += sign * np.bincount(places, minlength=num_bins)
            moments += sign * np.bincount(places, weights=seconds, minlength=num_bins)
        sums["answered"] += np.bincount(places[code == ""], minlength=num_bins)
        is_failure = (code != "") & (code != CANCELLED) & (code != OVERTAKEN)
        sums["failed"] += np.bincount(places[is_failure], minlength=num_bins)
        tokens = batch["output_tokens"].to_numpy()
        sums["output_tokens"] += np.bincount(places, weights=tokens, minlength=num_bins)
    edges = width * np.arange(1, num_bins + 1)
    busy = np.diff(edges * np.cumsum(numbers) - np.cumsum(moments), prepend=0.0)
    return OverTime(
        width_s=width,
        in_flight=np.round(np.maximum(busy / width, 0.0), 3).tolist(),
        pauses_s=offsets[1:-1].tolist(),
        **{name: np.round(values / width, 3).tolist() for name, values in sums.items()},
    )
