"""Rates of requests: what the user allows, and what an endpoint takes, found by its refusals.

    limit = RateLimit(requests_per_minute=6000, tokens_per_minute=1_000_000)
    if limit.wait_s(now, tokens) == 0:               # tokens: estimated, input and output
        reserved = limit.started(now, tokens)        # ... send ...
        limit.ended(reserved, used)                  # the real count, when it is known

Pure: time is handed in, in seconds of any monotonic clock; nothing here sleeps.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from nemo_sdg.errors import ConfigurationError

SLACK_S = 0.01
"""How late a start may be without being lost for good: timers are late by a millisecond or so."""

MARGIN = 0.985
"""Share of an allowed rate that is used: with `SLACK_S` and one request more at either end of a
window no second and no minute has more than allowed, and it takes 1.5 % longer."""

_MINUTE_S = 60.0

# Of a pace: starts between two decisions, at least so long, and by how much it rises.
_WINDOW, _LEAST_WINDOW, _WINDOW_S = 50, 6, 0.5
_FIRST_STEP, _LAST_STEP = 0.01, 0.25
_LEAST_PER_S = 0.2
_LAST_PATIENCE = 4


class _Spacing:
    """Starts evenly spaced: the time when the next is due moves on with each (GCRA)."""

    def __init__(self, per_s: float) -> None:
        self.per_s = per_s
        self._due_s = -math.inf

    def wait_s(self, now: float) -> float:
        return max(0.0, self._due_s - now)

    def take(self, now: float, amount: float) -> None:
        self._due_s = max(self._due_s, now - SLACK_S) + amount / self.per_s

    def give_back(self, amount: float) -> None:
        self._due_s -= amount / self.per_s


@dataclass(slots=True)
class Reserved:
    """What a request took from a `RateLimit` when it started."""

    started_s: float
    tokens: float


class RateLimit:
    """Space requests evenly so that no minute, wherever it begins, has more than allowed.

    A request with more tokens than a minute allows is sent when a minute is empty.

    Args:
        requests_per_minute: None: any number.
        tokens_per_minute: input and output together, as endpoints count them; None: any number.

    Raises:
        ConfigurationError: a limit is not above 0.
    """

    def __init__(
        self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None
    ) -> None:
        for limit in (requests_per_minute, tokens_per_minute):
            if limit is not None and not limit > 0:
                raise ConfigurationError(f"a limit per minute must be above 0, not {limit}")
        self._requests = _spacing(requests_per_minute)
        self._spread = _spacing(tokens_per_minute)
        self._tokens_per_minute = tokens_per_minute
        self._share = 1.0
        # The tokens of the last minute: single requests can be a good part of it.
        self._last: deque[Reserved] = deque()
        self._last_tokens = 0.0

    @property
    def share(self) -> float:
        """The part of both limits that is ours, above 0 and at most 1; set it when it changes."""
        return self._share

    @share.setter
    def share(self, share: float) -> None:
        for spacing in filter(None, (self._requests, self._spread)):
            spacing.per_s *= share / self._share
        if self._tokens_per_minute is not None:
            self._tokens_per_minute *= share / self._share
        self._share = share

    def wait_s(self, now: float, tokens: float = 0.0) -> float:
        """Return the seconds until a request may be sent, 0 where it may be sent now."""
        requests_s = self._requests.wait_s(now) if self._requests else 0.0
        if self._spread is None or self._tokens_per_minute is None or not tokens:
            return requests_s
        return max(requests_s, self._spread.wait_s(now), self._room_s(now, tokens))

    def started(self, now: float, tokens: float = 0.0) -> Reserved:
        """A request was sent; `tokens` is the estimate of what it will use and is reserved."""
        reserved = Reserved(now, tokens)
        if self._requests:
            self._requests.take(now, 1.0)
        if self._spread:
            self._forget(now)
            self._spread.take(now, tokens)
            self._last.append(reserved)
            self._last_tokens += tokens
        return reserved

    def ended(self, reserved: Reserved, used: float) -> None:
        """Correct an estimate; `used` is 0 for a request that was refused."""
        if self._spread is None:
            return
        self._spread.give_back(reserved.tokens - used)
        if self._last and reserved.started_s >= self._last[0].started_s:
            self._last_tokens += used - reserved.tokens
            reserved.tokens = used

    def _forget(self, now: float) -> None:
        while self._last and self._last[0].started_s <= now - _MINUTE_S:
            self._last_tokens -= self._last.popleft().tokens
        if not self._last:
            self._last_tokens = 0.0  # no rounding error outlives its minute

    def _room_s(self, now: float, tokens: float) -> float:
        """Seconds until the last minute has room for so many tokens."""
        assert self._tokens_per_minute is not None
        self._forget(now)
        excess = self._last_tokens + tokens - self._tokens_per_minute
        room_s = 0.0
        for old in self._last:
            if excess <= 0:
                break
            excess -= old.tokens
            room_s = old.started_s + _MINUTE_S - now
        return room_s


def _spacing(per_minute: float | None) -> _Spacing | None:
    return None if per_minute is None else _Spacing(MARGIN * per_minute / _MINUTE_S)


class Pace:
    """The requests per second that an endpoint with a rate limit takes, found by its refusals.

    As long as it refuses, what it accepts is its limit, to a request: that is where it begins.
    While nothing is refused the rate rises in steps that double, from one per cent on. Two refusals
    in a window take the step back, and the next one waits for some windows, more every time.
    """

    def __init__(self) -> None:
        self.per_s: float | None = None
        self._steps_back = 0
        self._windows: deque[tuple[int, int]] = deque(maxlen=20)
        self._spacing = _Spacing(1.0)
        self._clean = 0.0
        self._step = _FIRST_STEP
        self._rest, self._patience = 0, 1
        self._since_s, self._num, self._refused = 0.0, 0, 0

    def begin(self, now: float, per_s: float) -> None:
        """Hold starts to a rate from now on."""
        self._steps_back = 0
        self._windows.clear()
        self._clean, self._step = per_s, _FIRST_STEP
        self._rest = self._patience = 1
        self._set(now, per_s)

    def end(self) -> None:
        """Hold nothing back any more."""
        self.per_s = None

    @property
    def is_in_vain(self) -> bool:
        """True when the refusals go on at every rate."""
        num = sum(window[0] for window in self._windows)
        refused = sum(window[1] for window in self._windows)
        is_known = len(self._windows) == self._windows.maxlen
        return self._steps_back > 5 or (is_known and refused > 0.03 * num)

    def wait_s(self, now: float) -> float:
        """Return the seconds until the next start is due."""
        return 0.0 if self.per_s is None else self._spacing.wait_s(now)

    def started(self, now: float) -> None:
        """A request was sent."""
        if self.per_s is None:
            return
        self._spacing.take(now, 1.0)
        self._num += 1
        window = max(_LEAST_WINDOW, _WINDOW_S * self.per_s, min(_WINDOW, 2.0 * self.per_s))
        if self._num < window:
            return
        if self._refused:
            self._clean = min(self._clean, 0.99 * self.per_s)
            self._set(now, 0.99 * self.per_s)
            return
        self._steps_back = 0
        self._clean = self.per_s
        is_used = self._num > 0.85 * self.per_s * (now - self._since_s)
        if self._rest > 0 or not is_used:
            self._rest = max(0, self._rest - is_used)
            self._set(now, self.per_s)
            return
        # A step that is small against the window would take for ever at a low rate.
        step, last_step = max(self._step, 0.5 / window), max(_LAST_STEP, 3 / window)
        self._set(now, self.per_s * (1 + step))
        self._step = min(last_step, 2 * step)
        if self._step == last_step:
            self._patience = 1

    def refused(self, now: float) -> None:
        """A request was refused."""
        if self.per_s is None:
            return
        self._refused += 1
        if self._refused < 2 or self._num < 5:
            return
        rate = self._clean
        if self.per_s <= self._clean:
            accepted = (self._num - self._refused) / max(now - self._since_s, 1e-3)
            rate = max(0.5 * self.per_s, min(accepted, 0.98 * self.per_s))
        self._clean = rate
        self._steps_back += 1
        self._step = _FIRST_STEP
        self._rest = self._patience
        self._patience = min(_LAST_PATIENCE, 2 * self._patience)
        self._set(now, rate)

    def _set(self, now: float, per_s: float) -> None:
        if self._num:
            self._windows.append((self._num, self._refused))
        self.per_s = self._spacing.per_s = max(_LEAST_PER_S, per_s)
        self._since_s, self._num, self._refused = now, 0, 0
