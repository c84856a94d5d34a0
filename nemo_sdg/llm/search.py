"""The search for the number of requests in flight that brings most goodput: ramp and cruise.

A part of `nemo_sdg.llm.control`, whose text says why it is done so; knows nothing of refusals but
how to go on after them.
"""

from __future__ import annotations

import math
from enum import Enum

from nemo_sdg.llm.goodput import GAIN, Comparison, Curve, Tally

START = 8

LOSS = 0.04
"""A lower level may cost this much goodput and is kept."""

SURE = 0.04
"""Standard error of a comparison that ends the measurement."""

TRY_SHARE, RAMP_SHARE = 0.02, 0.015
"""Share of refusals lately above which no higher level is tried, or none by doubling."""

STEP_UP, STEP_DOWN, LEAP_DOWN = 1.25, 0.85, 0.7

RECOVERY = 0.05
"""What each answer gives back of what single refusals took."""


class Phase(Enum):
    """What the search is about."""

    RAMP = "ramp"
    REST = "rest"
    UP = "up"
    DOWN = "down"


class Search:
    """Holds the level that is allowed and moves it with every answer.

    Attributes:
        level: what is allowed now, before it is rounded to `limit`.
        limit: the level as a number of requests, from 1 to the maximum.
        goal: what this phase wants to allow; single refusals keep the level below it for a while.
        home: where the next phase returns to.
        in_flight: requests in flight; kept by the owner.
        calm: answers since the last refusal.
        outcomes, refusals: of this phase.
        is_gentle: the next higher levels are tried one by one, since refusals bound the last.
        lately: share of refusals lately, without those that are the endpoint's own.
    """

    def __init__(self, maximum: int, start: int) -> None:
        self._maximum = max(1, maximum)
        self.level = self.home = self.goal = float(min(max(1, start), self._maximum))
        self.phase = Phase.RAMP
        self.in_flight = self.outcomes = self.refusals = 0
        self.calm = START
        self.is_gentle = False
        self.lately = 0.0
        self._curve, self._compared = Curve(), Comparison()
        self._in_flight_before = 0
        self._step = 1.0
        self._cycle, self._patience, self._num_closed = 0, 1, 0
        self._down_every, self._down_step = 1, LEAP_DOWN
        self._before = self.home  # home, mean of the last 20 latencies

    @property
    def level(self) -> float:
        """What is allowed now; see `limit`, which is asked far more often."""
        return self._level

    @level.setter
    def level(self, level: float) -> None:
        self._level = level
        self.limit = max(1, min(int(level + 1e-9), self._maximum))

    @property
    def maximum(self) -> int:
        """What the limit never exceeds."""
        return self._maximum

    @maximum.setter
    def maximum(self, maximum: int) -> None:
        self._maximum = max(1, maximum)
        self.level = self._level  # the limit with it
        if max(self.level, self.home) > self._maximum:
            self.home = min(self.home, float(self._maximum))
            self.rest()

    def lower(self, level: float) -> None:
        """Lower the level for now; answers bring it back to the goal."""
        self.level = max(1.0, min(self.level, level))

    def rest(self, *, home: float | None = None, level: float | None = None) -> None:
        """Return home, or to a new home; with `level`, from there by and by."""
        if home is not None:
            if abs(home / self.home - 1) > 0.05:
                self._compared.rest = Tally()
            self.home = max(1.0, home)
        self._enter(Phase.REST, self.home, level=level)

    def step_down(self, home: float) -> None:
        """Make a lower level the new home after refusals."""
        self.is_gentle = True
        self._patience = 1
        self.rest(home=home, level=min(self.level, max(1.0, home)))

    def turn_back(self) -> None:
        """End the try of a higher level because it was refused."""
        self.is_gentle = True
        self._patience = min(4, 2 * self._patience)
        self._down_every = max(self._down_every, 8)  # it is the refusals that bound it
        home = math.sqrt(self.home * max(self.home, self.level))
        self.rest(home=home, level=min(self.level, home))

    def answered(
        self, tokens: int | None, *, share_s: float, latency_s: float, back: float
    ) -> None:
        """An answer came to a request that was sent when as many were in flight as allowed.

        Args:
            tokens: of the answer; None or 0: not told.
            share_s: the request's share of the endpoint's time.
            latency_s: how long it took.
            back: how much of what refusals took is given back.
        """
        was_told = self._compared.is_told
        worth = self._compared.worth(tokens)
        if self._compared.is_told and not was_told:
            self._curve = Curve()
        self.calm += 1
        if self.calm >= max(4, self.limit):
            if self.home < 0.5 * self._before:
                self._before = self.home
                self._ramp()
            self._before += (self.home - self._before) / (20 * self.limit)
        self.outcomes += 1
        if self.phase is Phase.RAMP:
            self._curve.add(latency_s / share_s, worth, share_s)
            self._grow()
            return
        # Before, those end that began at the old level, and of the new ones only the short.
        if self.outcomes > max(self.limit, self._in_flight_before):
            self._compared.here.add(worth, share_s)
        if self.level < self.goal:
            self.level = min(self.goal, self.level + back)
        self._go_on()

    # --- ramp ----------------------------------------------------------------------------------

    def _ramp(self) -> None:
        self._curve = Curve()
        self._curve.start_from(self.home, self._compared.rest)
        self._enter(Phase.RAMP, self.home)

    def _grow(self) -> None:
        if self._curve.is_flat:
            self.home = min(self.level, self._curve.knee)
            self.is_gentle = False
            self.rest()
            return
        if self.calm >= START:
            self.level = self.home = min(float(self._maximum), self.level + 1)
        if self.level >= self._maximum:
            self.rest()

    # --- cruise --------------------------------------------------------------------------------

    def _enter(self, phase: Phase, goal: float, *, level: float | None = None) -> None:
        self.phase = phase
        self.goal = max(1.0, min(goal, float(self._maximum)))
        self.level = self.goal if level is None else level
        self._compared.here = Tally()
        self.outcomes = self.refusals = 0
        self._in_flight_before = self.in_flight

    def _go_on(self) -> None:
        is_round_over = self.outcomes >= max(16, self.limit)
        if self.phase is Phase.REST:
            has_shifted = self._compared.has_shifted(max(16, self.limit))
            if has_shifted or self.outcomes >= self._rest_length():
                self._leave_rest(has_shifted)
        elif self.phase is Phase.UP and self.goal < self._top():
            if is_round_over:
                self._step *= 2
                self._enter(Phase.UP, min(self._top(), self.goal + self._step))
        elif self.phase is Phase.UP and self.is_gentle and self.lately <= RAMP_SHARE:
            if is_round_over:  # so far above what was refused before
                self.home = self.goal
                self._ramp()
        elif self._is_measured():
            self._decide()

    def _rest_length(self) -> int:
        # Some hundred answers for each refusal that a try costs, fewer where they would take long.
        return max(24, min(48, 12 * self.limit), 3 * self.limit) * self._patience

    def _top(self) -> float:
        # Of a few requests at a time only a large step can be told from chance.
        factor = STEP_UP if self.home >= START else 2.0
        return min(float(self._maximum), max(self.home + 1, self.home * factor))

    def _leave_rest(self, has_shifted: bool) -> None:
        """Try a higher level, or now and then a lower one."""
        if has_shifted:  # another endpoint than before, so to speak
            self._cycle, self._patience = 0, 1
            self._down_every, self._down_step = 1, LEAP_DOWN
        self._compared.settle(keep=0.0 if has_shifted else 0.5)
        is_open = self.level >= self.home - 1 and self.lately <= TRY_SHARE
        self._num_closed = 0 if is_open or self._num_closed >= 3 else self._num_closed + 1
        if self._num_closed:
            self.rest(level=self.level)
            return
        self._cycle += 1
        can_rise = self.home < self._maximum
        if self.home >= 2 and self._cycle % (self._down_every + can_rise) == 0:
            self._enter(Phase.DOWN, min(self.home - 1, self.home * self._down_step))
        elif can_rise:
            self._step = 1.0
            self._enter(Phase.UP, self.home + 1 if self.is_gentle else self._top())
        else:
            self.rest()

    def _is_measured(self) -> bool:
        num = self._compared.here.num
        if num < max(16, self.limit):
            return False
        if self.outcomes > 10 * max(10, self.limit):
            return True
        gain, error = self._compared.gain, self._compared.error
        if self.phase is Phase.DOWN:
            return self._is_no_loss(gain, error) or gain + 1.5 * error < -LOSS
        return error <= SURE or num >= max(128, 4 * self.limit)

    def _is_no_loss(self, gain: float, error: float) -> bool:
        # Surely less lost than half of what an endpoint that is not full would lose.
        return gain > -LOSS and gain - 1.5 * error > math.log(self.goal / self.home) / 2

    def _decide(self) -> None:
        """Keep the level that was tried, or return from it."""
        gain, error = self._compared.gain, self._compared.error
        if self.phase is Phase.UP:
            self.is_gentle = False
            if gain > GAIN:
                rise = math.log(self.goal / self.home)
                self._compared.settle(keep=0.0)
                self.home = self.goal
                self._patience = 1
                if gain - error > 0.4 * rise and self.lately <= RAMP_SHARE:
                    self._ramp()
                    return
        elif self._is_no_loss(gain, error):
            self._compared.settle(keep=0.5)
            self.home = self.goal
            self._down_every, self._down_step = 1, max(0.5, self._down_step**2)
            if self.home >= 2:
                self._enter(Phase.DOWN, min(self.home - 1, self.home * self._down_step))
                return
        else:
            self._down_every, self._down_step = min(16, 2 * self._down_every), STEP_DOWN
            self._patience = 1
        self.rest()
