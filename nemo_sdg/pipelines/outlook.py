"""What counts and a pilot say about a run: requests, tokens, money, time, disk space.

A guess stands as a band from low to high and says what it stands on. What a pilot measured stands
as a band that holds with `predict.CONFIDENCE`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.engine_config import EngineConfig
from nemo_sdg.pipelines.chain import Chain
from nemo_sdg.pipelines.count import Counted, asks_by_answers, cost, counting_here, ground
from nemo_sdg.pipelines.job import Job
from nemo_sdg.pipelines.pilot import Asked, corrected
from nemo_sdg.pipelines.predict import Band, Total, span_s, together, total

ANSWER_BYTES, PROVENANCE_BYTES, PART_BYTES, BYTES_PER_TOKEN = 550, 60, 15_000, 4.5
"""Disk space of an answer beside its text, of a row of provenance, of a part's files by themselves
(schemas, summaries), and of a token. Measured on the demo with some room; see `Disk`."""


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes that a run will take, about, nothing compressed.

    Attributes:
        data: the columns of the rows as Arrow holds them, and the answers.
        ledger: every answer, with the fields around it that servers send.
        provenance: a row of numbers and hashes an answer.
        parts: what every part takes by itself, in all folders together.
    """

    data: int = 0
    ledger: int = 0
    provenance: int = 0
    parts: int = 0

    @property
    def all(self) -> int:
        """The sum."""
        return self.data + self.ledger + self.provenance + self.parts

    def __add__(self, other: Disk) -> Disk:
        return Disk(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )


@dataclass(frozen=True, kw_only=True)
class TaskPlan:
    """One task, or all of them.

    Attributes:
        documents: rows of the input, or planned ones; of all tasks together those of each.
        rows: what is asked about: documents, or segments of long ones.
        requests: all but second tries; after a pilot with these.
        is_least: a flow asks more, by its answers.
        input_tokens: of these requests.
        output_tokens: a guess, or measured by a pilot.
        cost: None where a price is not given.
        disk: see `Disk`.
        ground: what the guess stands on; "" after a pilot.
    """

    documents: int
    rows: int
    requests: int
    is_least: bool
    input_tokens: int
    output_tokens: Band
    cost: Band | None
    disk: Disk
    ground: str = ""


@dataclass(frozen=True, kw_only=True)
class Pilot:
    """What was asked to know better.

    Attributes:
        rows: of all tasks together.
        requests: for these rows; `filed` of them had been answered before.
        input_tokens, output_tokens, cost: what the others took.
        ledger: where the answers are.
    """

    rows: int
    requests: int
    filed: int
    input_tokens: int
    output_tokens: int
    cost: float | None
    ledger: str


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What `plan` found.

    Attributes:
        tasks: by name, in order.
        total: all tasks together.
        seconds: from the first request to the last answer with `concurrency` requests at a time
            and the rates that are given; None without a pilot. A server that slows down when it is
            busier than the pilot made it takes longer.
        concurrency: over all endpoints but a fallback; the most that is tried where it is not
            fixed.
        tokenizer: what counted, and whether it only stands in for the model's own.
        pilot: None where nothing was asked.
        free_bytes: on the disk of the output; None without one.
    """

    tasks: Mapping[str, TaskPlan]
    total: TaskPlan
    seconds: Band | None
    concurrency: int
    tokenizer: str
    is_estimate: bool
    model: str
    host: str
    pilot: Pilot | None = None
    free_bytes: int | None = None


def summed(parts: Sequence[Counted]) -> Counted:
    """Return the sum of the parts of a task."""
    whole = Counted()
    for part in parts:
        whole += part
    return whole


def outlook(
    job: Job,
    endpoint: Endpoint,
    found: Mapping[str, Sequence[Counted]],
    asked: Mapping[str, Asked],
    output: str | Path | None,
) -> RunPlan:
    """Return the plan of a job.

    Args:
        job: what was counted.
        endpoint: has prices and the number of requests at a time.
        found: task -> one count a part.
        asked: task -> what its pilot came to; empty where nothing was asked.
        output: a folder on the disk that the run will fill.
    """
    sums = {name: summed(parts) for name, parts in found.items()}
    measured = {name: _Measured(sums[name], asked[name], endpoint) for name in asked}
    tasks = {
        chain.task.name: (
            measured[chain.task.name].plan()
            if measured
            else _guessed(chain, sums[chain.task.name], endpoint)
        )
        for chain in job.chains
    }
    tokenizer = counting_here(job.chains[0]).tokenizer
    config = job.chains[0].generate.config()
    return RunPlan(
        tasks=tasks,
        total=_together(list(tasks.values()), list(measured.values())),
        seconds=_seconds(list(measured.values()), config) if measured else None,
        concurrency=config.slots,
        tokenizer=tokenizer.name,
        is_estimate=tokenizer.estimated or tokenizer is not job.tokenizer,
        model=endpoint.model,
        host=endpoint.host,
        pilot=_pilot(list(asked.values()), endpoint, job.ledger) if asked else None,
        free_bytes=None if output is None else _free_bytes(output),
    )


def _guessed(chain: Chain, sums: Counted, endpoint: Endpoint) -> TaskPlan:
    is_least = asks_by_answers(chain)
    is_bounded = not sums.unlimited and not is_least
    tokens = Band(
        sums.output_low, sums.output_expected, float(sums.output_most) if is_bounded else None
    )
    prices = [
        None if out is None else cost(endpoint, sums.input_tokens, out)
        for out in (tokens.low, tokens.expected, tokens.high)
    ]
    return TaskPlan(
        documents=sums.documents,
        rows=sums.rows,
        requests=sums.requests,
        is_least=is_least,
        input_tokens=sums.input_tokens,
        output_tokens=tokens,
        cost=None if prices[1] is None else Band(prices[0], prices[1], prices[2]),
        disk=_disk(sums, sums.requests, tokens.expected),
        ground=ground(chain.task),
    )


class _Measured:
    """The totals of one task that follow from the rows of it that were asked."""

    def __init__(self, sums: Counted, asked: Asked, endpoint: Endpoint) -> None:
        sums = corrected(sums, asked)
        self.sums, self.asked = sums, asked
        self.requests = total(
            asked.first, asked.requests, num_rows=sums.rows, sum_sizes=sums.requests
        )
        self.input_tokens = self._total(asked.input_tokens)
        self.output_tokens = self._total(asked.output_tokens)
        self.seconds = self._total(asked.seconds)
        prices = cost(endpoint, asked.input_tokens, asked.output_tokens)
        self.cost = None if prices is None else self._total(prices)

    def _total(self, made: Any) -> Total:
        rows, size = self.sums.rows, self.asked.size
        return total(size, made, num_rows=rows, sum_sizes=self.sums.input_tokens)

    def plan(self) -> TaskPlan:
        """Return it as the plan of the task."""
        requests = round(self.requests.value)
        return TaskPlan(
            documents=self.sums.documents,
            rows=self.sums.rows,
            requests=requests,
            is_least=False,
            input_tokens=round(self.input_tokens.value),
            output_tokens=self.output_tokens.band(),
            cost=None if self.cost is None else self.cost.band(),
            disk=_disk(self.sums, requests, self.output_tokens.value),
        )


def _together(plans: Sequence[TaskPlan], measured: Sequence[_Measured]) -> TaskPlan:
    disk = Disk()
    for one in plans:
        disk += one.disk
    costs = [one.cost for one in plans if one.cost is not None]
    if measured:
        tokens = together([one.output_tokens for one in measured]).band()
        money = together([one.cost for one in measured if one.cost is not None]).band()
    else:
        tokens, money = _added([one.output_tokens for one in plans]), _added(costs)
    return TaskPlan(
        documents=sum(one.documents for one in plans),
        rows=sum(one.rows for one in plans),
        requests=sum(one.requests for one in plans),
        is_least=any(one.is_least for one in plans),
        input_tokens=sum(one.input_tokens for one in plans),
        output_tokens=tokens,
        cost=money if costs else None,
        disk=disk,
    )


def _added(bands: Sequence[Band]) -> Band:
    """Return the sum of guesses: they may all be off to the same side."""
    lows, highs = [band.low for band in bands], [band.high for band in bands]
    return Band(
        None if None in lows else sum(low or 0.0 for low in lows),
        sum(band.expected for band in bands),
        None if None in highs else sum(high or 0.0 for high in highs),
    )


def _seconds(measured: Sequence[_Measured], config: EngineConfig) -> Band | None:
    """Return how long all requests take; None where nothing was answered."""
    latencies = [latency for one in measured for latency in one.asked.latencies_s]
    if not latencies:
        return None
    requests = round(sum(one.requests.value for one in measured))
    tokens = sum(one.input_tokens.value + one.output_tokens.value for one in measured)
    longest = max(float(one.asked.seconds.max()) for one in measured if one.asked.rows)
    least = max(longest, _paced_s(requests, tokens, (config.endpoint, *config.replicas)))
    spent = together([one.seconds for one in measured]).band()

    def span(seconds: float | None) -> float | None:
        if seconds is None:
            return None
        return span_s(latencies, seconds / requests, requests, config.slots, least)

    return Band(span(spent.low), span(spent.expected) or 0.0, span(spent.high))


def _paced_s(requests: float, tokens: float, endpoints: Sequence[Endpoint]) -> float:
    """Return the seconds that the rates of all endpoints take; 0 where one has none."""
    least = 0.0
    for amount, rates in (
        (requests, [each.requests_per_minute for each in endpoints]),
        (tokens, [each.tokens_per_minute for each in endpoints]),
    ):
        if None not in rates:
            least = max(least, 60 * amount / sum(rate or 0.0 for rate in rates))
    return least


def _pilot(asked: Sequence[Asked], endpoint: Endpoint, ledger: str) -> Pilot:
    input_tokens, output_tokens = (sum(one.newly[i] for one in asked) for i in (0, 1))
    return Pilot(
        rows=sum(one.rows for one in asked),
        requests=round(sum(float(one.requests.sum()) for one in asked)),
        filed=sum(one.filed for one in asked),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cost=cost(endpoint, input_tokens, output_tokens),
        ledger=ledger,
    )


def _disk(sums: Counted, requests: int, output_tokens: float) -> Disk:
    answers = output_tokens * BYTES_PER_TOKEN
    return Disk(
        data=round(sums.stored_bytes + answers),
        ledger=round(requests * ANSWER_BYTES + answers),
        provenance=requests * PROVENANCE_BYTES,
        parts=sums.parts * PART_BYTES,
    )


def _free_bytes(output: str | Path) -> int | None:
    path = Path(output).expanduser().resolve()
    there = next(filter(os.path.exists, (path, *path.parents)))
    with contextlib.suppress(OSError):
        return shutil.disk_usage(there).free
    return None
