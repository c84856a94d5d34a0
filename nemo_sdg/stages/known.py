"""What is known of single rows before a partition is made: which to spare, and which ask anew.

A run folder keeps it (`pipelines/known_rows.py`), so that a part comes out the same whenever and
wherever it is made again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nemo_sdg.errors import RowError
from nemo_sdg.llm.drive import Stamp
from nemo_sdg.llm.usage import Usage

Place = tuple[str | None, int | None]
"""Id and segment of a row; without a segment, the document (a row that is not split)."""


class KnownFailure(RowError):
    """A failure that stands in `dead_letters/` since an earlier run."""

    def __init__(self, letter: Mapping[str, Any]) -> None:
        self.code = letter["reason"]
        super().__init__(letter["detail"])
        self.letter = letter


@dataclass(frozen=True, kw_only=True)
class Again:
    """How a row is asked instead of as its task says: by `nemo-sdg retry`.

    Attributes:
        number: of the retry; it goes into the seeds, so that the same question is drawn anew.
        model: asked instead; empty: the task's.
        sampling: fields that differ, such as temperature.
        price_in, price_out: of the endpoint that was asked; None: unknown.
    """

    number: int
    model: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    price_in: float | None = None
    price_out: float | None = None

    def stamp(self, stamp: Stamp) -> Stamp:
        """Return the stamp of a row for this retry."""
        row = (*stamp.row, "again", self.number)
        return replace(stamp, model=self.model or stamp.model, row=row)

    def values(self, sampling: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row's own sampling with what differs; a model named for the retry wins."""
        changed = {**sampling, **self.sampling}
        return changed | {"model": self.model} if self.model else changed

    def cost(self, usage: Usage) -> float | None:
        """Return the price of a call, None where a price is not known."""
        if self.price_in is None or self.price_out is None:
            return None
        return (usage.input_tokens * self.price_in + usage.output_tokens * self.price_out) / 1e6


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of the rows of a task.

    Attributes:
        poisonous: rows that are not touched, since every process died that did.
        again: rows that were answered by a retry, and how they were asked.
        letters: rows of `dead_letters/` as they stood, for those that no filed answer tells of.
        spent: rows of `provenance/` that were paid for and belong to no answer of today's.
    """

    poisonous: frozenset[Place] = frozenset()
    again: Mapping[Place, Again] = field(default_factory=dict)
    letters: Mapping[Place, Mapping[str, Any]] = field(default_factory=dict)
    spent: Mapping[Place, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def documents(self) -> frozenset[str | None]:
        """Ids of whole documents that are not touched."""
        return frozenset(row_id for row_id, segment in self.poisonous if segment is None)

    def spend(
        self, places: list[Place], provenance: list[dict[str, Any]], counts: Counter[str]
    ) -> None:
        """Add what was paid for these rows in vain to the bookkeeping of their partition."""
        if not self.spent:
            return
        for place in places:
            rows = self.spent.get(place, [])
            provenance.extend(dict(row) for row in rows)
            requests = {
                (r["model_asked"], r["prompt_hash"], r["sampling_hash"], r["seed"]) for r in rows
            }
            counts["requests"] += len(requests)
            counts["from_ledger"] += len(requests)
            for name in ("input_tokens", "output_tokens", "reasoning_tokens", "cached_tokens"):
                counts[name] += sum(row[name] for row in rows)


NOTHING_KNOWN = Known()
