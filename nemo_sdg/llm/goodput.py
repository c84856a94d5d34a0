"""Goodput from requests that ended: tokens over shares of the endpoint's time.

A request's share is the integral of dt / (requests in flight) over its life; the shares of all
requests of a busy second sum up to one second. Why it is measured so: `nemo_sdg.llm.control`.
"""

from __future__ import annotations

import math

GAIN = 0.05
"""A higher number in flight must bring this much more goodput, relative, to be worth it."""


class Tally:
    """Requests that ended: their tokens and their shares of the endpoint's time, in seconds."""

    __slots__ = ("_shares2", "_tokens2", "_tokens_shares", "num", "shares", "tokens")

    def __init__(self) -> None:
        self.num = 0.0
        self.tokens = self.shares = self._tokens2 = self._shares2 = self._tokens_shares = 0.0

    def add(self, tokens: float, share: float) -> None:
        """Count a request."""
        self.num += 1
        self.tokens += tokens
        self.shares += share
        self._tokens2 += tokens * tokens
        self._shares2 += share * share
        self._tokens_shares += tokens * share

    def merge(self, other: Tally, weight: float = 1.0) -> None:
        """Add all requests of another tally; with a weight below 1 they count for less."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + weight * getattr(other, name))

    @property
    def goodput(self) -> float:
        """Tokens per second."""
        return self.tokens / self.shares if self.shares > 0 else 0.0

    @property
    def error(self) -> float:
        """Standard error of the goodput, relative (of a ratio of two sums)."""
        if self.tokens <= 0 or self.shares <= 0:
            return math.inf
        spread = (
            self._tokens2 / self.tokens**2
            - 2 * self._tokens_shares / (self.tokens * self.shares)
            + self._shares2 / self.shares**2
        )
        return math.sqrt(max(0.0, spread))

    def gain_over(self, other: Tally) -> float:
        """Logarithm of this goodput over the other's; 0 where one is not known."""
        if not self.goodput or not other.goodput:
            return 0.0
        return math.log(self.goodput / other.goodput)


class Curve:
    """Goodput by requests in flight, in half octaves, as a ramp finds it."""

    def __init__(self) -> None:
        self._tallies: dict[int, Tally] = {}

    def add(self, in_flight: float, tokens: float, share: float) -> None:
        """Count a request under the number in flight that it saw."""
        self._tallies.setdefault(_half_octave(in_flight), Tally()).add(tokens, share)

    def start_from(self, in_flight: float, tally: Tally) -> None:
        """Take what was measured at the number in flight where the ramp begins."""
        if tally.num:
            self._tallies[_half_octave(in_flight)] = tally

    @property
    def is_flat(self) -> bool:
        """True when the last octave surely brought no more goodput."""
        top = max(self._tallies)
        upper, lower = Tally(), Tally()
        for place, tally in self._tallies.items():
            if place >= top - 1:
                upper.merge(tally)
            elif place >= top - 3:
                lower.merge(tally)
        error = math.hypot(upper.error, lower.error)
        if upper.num < 8 or lower.num < 8 or error > 0.25:
            return False
        return upper.gain_over(lower) + error < 2 * GAIN

    @property
    def knee(self) -> float:
        """The smallest number in flight that is worth it, at the upper end of its half octave."""
        known = {place: tally for place, tally in self._tallies.items() if tally.num >= 4}
        best = max(tally.goodput for tally in known.values())
        place = min(p for p, tally in known.items() if tally.goodput >= (1 - GAIN) * best)
        # Too high costs latency, too low costs goodput.
        return math.exp2((place + 1) / 2)


class Comparison:
    """Goodput here against goodput at rest, and how sure the difference is.

    Requests whose tokens are not told count as the mean of those told, or else as 1.
    """

    def __init__(self) -> None:
        self.here, self.rest = Tally(), Tally()
        self._mean_tokens: float | None = None

    def worth(self, tokens: int | None) -> float:
        """Return what an answer counts; the first that is told voids those counted as 1."""
        if not tokens:
            return self._mean_tokens or 1.0
        if self._mean_tokens is None:
            self._mean_tokens = float(tokens)
            self.here, self.rest = Tally(), Tally()
        self._mean_tokens += 0.02 * (tokens - self._mean_tokens)
        return float(tokens)

    @property
    def is_told(self) -> bool:
        """True once an answer told its tokens."""
        return self._mean_tokens is not None

    @property
    def gain(self) -> float:
        """Logarithm of goodput here over goodput at rest."""
        return self.here.gain_over(self.rest)

    @property
    def error(self) -> float:
        """Standard error of the gain."""
        error = math.hypot(self.here.error, self.rest.error)
        if not self.is_told and self.here.num and self.rest.num:
            # Lengths that are not told do not cancel where requests wait in line.
            error = max(error, math.sqrt(1 / self.here.num + 1 / self.rest.num))
        return error

    def has_shifted(self, least_num: int) -> bool:
        """Say, at rest again, whether the endpoint is surely not as fast as it was."""
        if not self.rest.num or self.here.num < least_num:
            return False
        return abs(self.gain) > max(0.1, 3 * self.error)

    def settle(self, *, keep: float) -> None:
        """Take what was measured here as the rest; of the old one a part is kept."""
        if self.rest.num and keep:
            self.here.merge(self.rest, keep)
        self.rest = self.here


def _half_octave(in_flight: float) -> int:
    return math.floor(2 * math.log2(max(1.0, in_flight)) + 1e-9)
