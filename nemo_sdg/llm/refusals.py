"""What refusals mean: when to pause, how many are too many, which are the endpoint's own."""

from __future__ import annotations

import math
from enum import Enum

from nemo_sdg.errors import RateLimited, RequestError, ServerFailure

TOLERATED = 0.01
"""Share of refusals that is no reason to step down."""

RAMP_TOLERATED = 0.06
"""The same while the limit doubles: some refusals are seen before it is known whose they are."""

STORM = 0.12
"""Share of refusals that is answered at once, without waiting for a window to fill."""

OVERLOADED = frozenset({503, 529})

_LONGEST_PAUSE_S = 8.0
_LEAST_STEP = 0.07


def is_refusal(error: RequestError) -> bool:
    """Say whether the endpoint had too much to do: 429, 503, 529."""
    is_overloaded = isinstance(error, ServerFailure) and error.status in OVERLOADED
    return is_overloaded or isinstance(error, RateLimited)


class Hold:
    """The time that an endpoint asked for with `Retry-After`, and whether it is meant for all.

    It is the refused request's own affair as long as others get in: an endpoint with slots takes
    the next request when one ends. When three that were sent in the meantime were refused too, or
    nothing is left in flight, it is a pause for all. Without the header each pause is twice as
    long as the one before, as long as nothing is answered.
    """

    def __init__(self) -> None:
        self.since_s = self._until_s = -math.inf
        self._is_pause = False
        self._in_vain = self._in_row = 0

    def refused(
        self, now: float, started_s: float, retry_after_s: float | None, in_flight: int
    ) -> None:
        """A request was refused, with `in_flight` others left."""
        if now >= self._until_s:
            self.since_s, self._in_vain, self._is_pause = now, 0, False
            self._in_row += 1
        elif started_s >= self.since_s:
            self._in_vain += 1
        pause_s = retry_after_s or min(_LONGEST_PAUSE_S, 0.05 * 2.0 ** min(self._in_row, 16))
        self._until_s = max(self._until_s, now + pause_s)
        self._is_pause = self._is_pause or self._in_vain >= 3 or in_flight == 0

    def answered(self, started_s: float) -> None:
        """A request was answered."""
        self._in_row = 0
        if started_s >= self.since_s:
            self._in_vain = 0

    def wait_s(self, now: float) -> float:
        """Return the seconds until something may be started."""
        return self._until_s - now if self._is_pause and now < self._until_s else 0.0


class Recently:
    """What an endpoint took over the last latency or two, to tell a rate limit from slots.

    Slots refuse when as many are in flight as they hold. A rate refuses with fewer in flight than
    were held a moment ago, while others get in. (Slots that have become fewer do the first, but
    take nothing new meanwhile.)

    Attributes:
        usual: requests in flight, mean of the last latency.
        held: requests in flight when one got in, the most of the last latency.
    """

    def __init__(self) -> None:
        self.usual = self.held = 0.0
        self._num_accepted = self._num_answers = self._num_since = 0
        self._refused_s = math.inf  # the first refusal after a latency without one
        # When the last two latencies began, and how many requests had been let in by then.
        self._marks = ((0.0, 0), (0.0, 0))

    def started(self) -> None:
        """A request was sent; it counts as let in until it is refused."""
        self._num_accepted += 1

    def refused(self, now: float, *, is_first: bool) -> None:
        """A request was refused; `is_first`: none was for the last latency."""
        self._num_accepted -= 1
        if is_first:
            self._refused_s, self._num_since = now, 0

    def answered(
        self, now: float, *, started_s: float, at_start: int, in_flight: int, limit: int
    ) -> None:
        """A request was answered; it had been sent as number `at_start` of those in flight."""
        self._num_since += started_s > self._refused_s
        self.usual += (in_flight + 1 - self.usual) / limit
        more = at_start - self.held
        self.held += max(more, more / limit)
        self._num_answers += 1
        if self._num_answers >= self.usual:
            self._num_answers = 0
            self._marks = (self._marks[1], (now, self._num_accepted))

    def looks_like_rate(self, in_flight: int) -> bool:
        """Say whether a refusal with so many others in flight is one by a rate."""
        return self._num_since >= 4 and in_flight < 0.8 * self.held - 2

    def accepted_per_s(self, now: float) -> float:
        """Return the requests per second that were let in lately."""
        since_s, num_accepted = self._marks[0]
        return max(1, self._num_accepted - num_accepted) / max(now - since_s, 1e-3)


class Verdict(Enum):
    """What a window of outcomes says."""

    STORM = "storm"
    MANY = "many"
    OWN = "own"


class RefusalWindow:
    """Counts outcomes and says when there are too many refusals, or that they are not our doing.

    Two tests: a storm is seen after five refusals, a share above `TOLERATED` within a window of
    two latencies. When the share stays although the limit was lowered by a quarter, the refusals
    are the endpoint's own (`OWN`), and from then on only what exceeds them counts.

    Attributes:
        background: share of refusals that is the endpoint's own.
        lately: share of refusals over the last 30 latencies or so.
    """

    def __init__(self) -> None:
        self.background = self.lately = 0.0
        self.before = 0.0
        self._learned = 0.0
        self._num = self._refused = 0
        self._steps: list[tuple[float, float]] = []

    def begin(self) -> None:
        """Start a new window."""
        self._num = self._refused = 0

    def count(self, *, refused: bool, limit: int, home: float, is_ramp: bool) -> Verdict | None:
        """Count an outcome; a verdict begins a new window.

        Args:
            refused: what the outcome was.
            limit: requests allowed in flight.
            home: the level that a step down would lower; with `OWN`, `before` is what it was when
                the steps began.
            is_ramp: the limit is being doubled.
        """
        self._num += 1
        self._refused += refused
        # A line, not a share: a share of few is exceeded by chance sooner or later.
        if self._refused > 4 + (STORM + 2 * self.background) * self._num:
            self._steps.clear()
            self.begin()
            return Verdict.STORM
        size = max(100, 2 * limit)
        tolerated = RAMP_TOLERATED if is_ramp else TOLERATED
        chance = math.sqrt(tolerated * size) + 2 * math.sqrt(self.background * size)
        allowed = (tolerated + self.background) * size + chance
        share = self._refused / self._num
        if self._refused > allowed and is_ramp:
            self.begin()
            return Verdict.STORM
        if self._refused > allowed and self._num >= 25:
            self._steps.append((share, home))
            first_share, self.before = self._steps[0]
            self.begin()
            if first_share < 2 * share and first_share < STORM and home < 0.75 * self.before:
                self.learn(sum(step[0] for step in self._steps) / len(self._steps))
                return Verdict.OWN
            return Verdict.MANY
        if self._num >= size:
            drift = 0.1 * (share - self.background)
            self.background = max(0.0, min(self._learned, self.background + drift))
            self._steps.clear()
            self.begin()
        return None

    def observe(self, *, refused: bool, limit: int) -> None:
        """Follow the share of refusals over a long time."""
        self.lately += (refused - self.lately) / max(60, 30 * limit)

    @property
    def step_down(self) -> float:
        """The factor by which to step down after `MANY`."""
        share = self._steps[-1][0] if self._steps else 0.0
        return 1 - min(STORM, max(share, _LEAST_STEP))

    def learn(self, share: float) -> None:
        """Take a share of refusals as the endpoint's own."""
        self.background = self._learned = share
        self._steps.clear()
