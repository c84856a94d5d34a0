"""One call of `nemo-sdg retry`: which dead letters are asked again, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nemo_sdg import errors
from nemo_sdg.errors import PoisonousRow, RequestError
from nemo_sdg.pipelines.known_rows import RETRIES
from nemo_sdg.stages.generate import NoInput
from nemo_sdg.stages.known import Again, Place

UNANSWERED = frozenset(
    kind.code
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, RequestError)
)
"""Reasons for which there is no answer: the same question may be asked under the same key."""

Letter = Mapping[str, Any]
"""A row of `dead_letters/`."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """One call of `nemo-sdg retry`: what is asked otherwise, and for which dead letters.

    Attributes:
        number: from 1; a call that goes on with an interrupted one has its number.
        reasons: codes of the dead letters that are asked; none: all.
            `poisonous` and `no_input` never are.
        price_in, price_out: of the endpoint that is asked.
    """

    number: int
    model: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    price_in: float | None = None
    price_out: float | None = None

    @property
    def folder(self) -> str:
        """Where it is kept in the run folder."""
        return f"{RETRIES}/round-{self.number:03d}"

    @property
    def asked_otherwise(self) -> Again:
        """How its rows are asked."""
        return Again(
            number=self.number,
            model=self.model,
            sampling=dict(self.sampling),
            price_in=self.price_in,
            price_out=self.price_out,
        )

    def wanted(self, letters: Mapping[Place, Letter]) -> dict[Place, Letter]:
        """Return the dead letters that are asked.

        A poisonous row would take its process along, and one without a text has no question.
        """
        return {
            place: letter
            for place, letter in letters.items()
            if letter["reason"] not in (PoisonousRow.code, NoInput.code)
            and (not self.reasons or letter["reason"] in self.reasons)
        }

    def again(self, letter: Letter) -> Again | None:
        """Return how a row is asked; None: as it was, under its own key, since none answered."""
        is_same = not self.model and not self.sampling
        return None if is_same and letter["reason"] in UNANSWERED else self.asked_otherwise
