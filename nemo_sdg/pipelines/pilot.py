"""A pilot: some rows are asked for real, spread over the input, so that a plan is no guess.

Their answers are filed where the run looks for them: they are part of it, and paid once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nemo_sdg.data.backend import concat
from nemo_sdg.pipelines.chain import Chain
from nemo_sdg.pipelines.count import Counted, counting_here, sizes
from nemo_sdg.pipelines.job import Part
from nemo_sdg.pipelines.predict import spread
from nemo_sdg.stages.base import Record


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the rows of one task came to that a pilot asked: one number a row, in all arrays.

    Attributes:
        there: of the partitions that these rows stand in, as the run will ask about them; see
            `corrected`.
        counted: of the same, as they were counted beforehand.
        size: tokens of the row's first requests, counted before anything was asked.
        first: how many these are.
        requests, input_tokens, output_tokens, seconds: of all its questions, second tries too.
        latencies_s: of every request.
        filed: requests whose answers stood in the ledger already.
        newly: input and output tokens of the others: what the pilot itself cost.
    """

    there: Counted
    counted: Counted
    size: Any
    first: Any
    requests: Any
    input_tokens: Any
    output_tokens: Any
    seconds: Any
    latencies_s: tuple[float, ...]
    filed: int
    newly: tuple[int, int]

    @property
    def rows(self) -> int:
        """How many rows were asked."""
        return len(self.size)


def ask(chain: Chain, parts: Sequence[Part], counts: Sequence[Counted], *, wanted: int) -> Asked:
    """Ask about `wanted` rows of a task, one from each of equal stretches of all its rows.

    Args:
        chain: of the task, with the tokenizer that the run will use.
        parts: all of the task's, in order.
        counts: of each of them.
        wanted: rows to ask.
    """
    counting = counting_here(chain)
    frames, found, first = [], [], []
    all_there = all_counted = Counted()
    for part, places, counted in _chosen(parts, counts, wanted, chain.seed):
        prepared = chain.prepare(part.frame.compute())
        measured = sizes(counting, prepared)
        there = np.unique(measured.row)
        all_counted += counted
        all_there += Counted(
            rows=len(there),
            requests=len(measured.row),
            input_tokens=int(measured.input_tokens.sum()),
        )
        if not len(there):
            continue
        # A stand-in may have cut the texts of this part into more pieces, or fewer.
        mine = np.unique([there[place * len(there) // counted.rows] for place in places])
        frames.append(prepared.iloc[mine.tolist()])
        tokens = np.bincount(measured.row, measured.input_tokens, minlength=len(prepared))
        found.append(tokens[mine])
        first.append(np.bincount(measured.row, minlength=len(prepared))[mine])
    both = (all_there, all_counted)
    if not frames:
        return _measured(both, np.zeros(0), np.zeros(0), Record(), [])
    # All at once: the rows share the endpoint as those of the run do.
    asked = concat(frames).reset_index(drop=True)
    record = Record(task=chain.task.name, id_field=chain.id_field)
    chain.generate.apply(asked, record)
    of_rows = record.places(asked)
    return _measured(both, np.concatenate(found), np.concatenate(first), record, of_rows)


def corrected(counted: Counted, asked: Asked) -> Counted:
    """Return what was counted on all partitions as the pilot's partitions turned out to be.

    Nothing changes where the run's own tokenizer counted. A stand-in cuts long documents into
    other segments: rows, requests and tokens then hold as far as the partitions are alike.
    """
    ratios = {
        name: getattr(asked.there, name) / before
        for name in ("rows", "requests", "input_tokens")
        if (before := getattr(asked.counted, name))
    }
    return replace(
        counted, **{name: round(getattr(counted, name) * ratio) for name, ratio in ratios.items()}
    )


def _chosen(
    parts: Sequence[Part], counts: Sequence[Counted], wanted: int, seed: int
) -> list[tuple[Part, list[int], Counted]]:
    """Return the parts that chosen rows stand in, with the places of these and the part's count."""
    rows = [one.rows for one in counts]
    ends = np.cumsum(np.asarray(rows, dtype="int64"))
    chosen = spread(int(ends[-1]) if len(ends) else 0, wanted, seed)
    places: dict[int, list[int]] = {}
    for number in chosen:
        part = int(np.searchsorted(ends, number, side="right"))
        places.setdefault(part, []).append(number - int(ends[part] - rows[part]))
    return [(parts[part], mine, counts[part]) for part, mine in places.items()]


def _measured(
    both: tuple[Counted, Counted], size: Any, first: Any, record: Record, places: Sequence[Any]
) -> Asked:
    row_of = {place: row for row, place in enumerate(places)}
    sums = np.zeros((4, len(size)))
    latencies, filed, newly = [], 0, np.zeros(2, dtype="int64")
    seen: set[tuple[Any, ...]] = set()
    for call in record.provenance:
        place = call["id"], call["segment_id"]
        one = (*place, call["prompt_hash"], call["seed"], call["sampling_hash"])
        if one in seen:
            continue  # a further sample of the same request: its tokens stand with the first
        seen.add(one)
        tokens = call["input_tokens"], call["output_tokens"]
        sums[:, row_of[place]] += (1, *tokens, call["latency_s"])
        latencies.append(call["latency_s"])
        filed += call["was_filed"]
        newly += np.multiply(tokens, not call["was_filed"])
    requests, input_tokens, output_tokens, seconds = sums
    there, counted = both
    return Asked(
        there=there,
        counted=counted,
        size=size,
        first=first,
        requests=requests,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        seconds=seconds,
        latencies_s=tuple(latencies),
        filed=filed,
        newly=(int(newly[0]), int(newly[1])),
    )
