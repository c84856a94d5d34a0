"""Is the endpoint usable, and are its answers worth their price? Pure state machines.

Time is handed in, seconds on any monotonic clock; nothing here sleeps or sends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from nemo_sdg.errors import (
    BadRequest,
    ConnectionFailed,
    RateLimited,
    RequestError,
    RequestTimeout,
    ServerFailure,
    TooManyFailures,
)

_TELLING = (ConnectionFailed, RequestTimeout, ServerFailure)


class Health:
    """Tells an endpoint that is down from rows that fail.

    After `failures_to_suspect` failures in a row (refused or broken connections, time-outs, 5xx)
    without an answer between them it is suspect: nothing is sent but a probe. A probe that is
    answered clears it, and the rows' failures are their own. A probe that fails means it is down:
    rows wait and no try of theirs counts, until a probe is answered. A 429 is no failure, the
    endpoint lives and asks for patience. Unusable for longer than `max_outage_s`, be it down or
    answering nothing but 429, it is `expired`.

    A probe proves little: a gateway may answer it while all that is behind it fails. So a probe
    puts the endpoint on trial: only a few requests go out until one is answered; when all of
    them fail it is suspect again, and after a longer pause twice as many are tried.
    """

    def __init__(self, *, max_outage_s: float = 600.0, failures_to_suspect: int = 5) -> None:
        self.max_outage_s = max_outage_s
        self.failures_to_suspect = failures_to_suspect
        self.is_suspect = False
        self.last_error: RequestError | None = None
        self._failures = 0
        self._first_failure: float | None = None
        self._failed_probes = 0
        self._trials = 0
        self._refusing_since: float | None = None

    @property
    def is_down(self) -> bool:
        """True from the first probe that failed to the first sign of life."""
        return self._failed_probes > 0

    def answered(self) -> None:
        """A complete answer came, of any content."""
        self._clear()
        self._trials = 0
        self._refusing_since = None

    def begins_again(self, now: float) -> None:
        """Something is asked after a time in which nothing was: that time was no outage."""
        self._refusing_since = None
        if self._first_failure is not None:
            self._first_failure = now

    def room(self, slots: int) -> int:
        """Return how many requests may be in flight, at most `slots`."""
        if self.is_suspect:
            return 0
        return slots if self._trials == 0 else min(slots, self._wave)

    def failed(self, error: RequestError, now: float) -> None:
        """A try failed."""
        if isinstance(error, RateLimited):
            self.last_error = error
            if self._refusing_since is None:
                self._refusing_since = now
        elif isinstance(error, _TELLING):
            self.last_error = error
            if self._first_failure is None:
                self._first_failure = now
            self._failures += 1
            self.is_suspect = self._failures >= self._wave
        elif isinstance(error, BadRequest):
            self.answered()  # it lives: it read the request and declined it

    def probed(self, *, alive: bool) -> None:
        """A probe ended."""
        if alive:
            self._clear()
            self._trials += 1
        else:
            self._failed_probes += 1

    def next_probe_s(self) -> float:
        """Seconds to wait before the next probe: 0 at first, then 1, 2, 4 ... at most 15.

        While probes are answered and requests are not: 0, then 1/4, 1/2, 1 ... at most 4.
        """
        if self._failed_probes:
            return min(15.0, 2.0 ** min(self._failed_probes - 1, 30))
        return min(4.0, 0.25 * 2.0 ** min(self._trials - 1, 30)) if self._trials else 0.0

    def expired(self, now: float) -> bool:
        """True when the endpoint has been unusable for longer than allowed."""
        since = self._first_failure if self.is_down else self._refusing_since
        return since is not None and now - since > self.max_outage_s

    @property
    def _wave(self) -> int:
        """Failures until it is suspect: more with each trial, or rows that fail took for ever."""
        return self.failures_to_suspect << min(max(self._trials - 1, 0), 6)

    def _clear(self) -> None:
        if not (self._failures or self._failed_probes or self.is_suspect):
            return
        self.is_suspect = False
        self._failures = self._failed_probes = 0
        self._first_failure = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FailureRule:
    """Stop when more than `max_share` of the rows fail for one reason, from `min_rows` on."""

    max_share: float = 0.2
    min_rows: int = 50


class FailureGuard:
    """Counts how the rows of each task end; a wrong prompt is not paid for a million times.

    Attributes:
        num_rows: rows that have ended, of all tasks.
        num_failures: rows that ended without a value.
        is_broken: the rule was broken since the last `forget`.
    """

    def __init__(self, rule: FailureRule = FailureRule()) -> None:
        self.rule = rule
        self.num_rows = self.num_failures = 0
        self.is_broken = False
        self._rows: Counter[str] = Counter()
        self._failures: dict[str, Counter[str]] = {}

    def forget(self) -> None:
        """Judge by what comes from here on: another computation begins. The totals stay."""
        self.is_broken = False
        self._rows.clear()
        self._failures.clear()

    def record_all(self, task: str, reasons: Sequence[str | None]) -> None:
        """Count rows that ended, one after the other; see `record`.

        Raises:
            TooManyFailures: the rule is broken by one of them.
        """
        if any(reasons):
            for reason in reasons:
                self.record(task, reason)
        else:
            self.num_rows += len(reasons)
            self._rows[task] += len(reasons)

    def record(self, task: str, reason: str | None) -> None:
        """Count a row; `reason` is its error code, None for a row with a value.

        Raises:
            TooManyFailures: the rule is broken by this row.
        """
        self.num_rows += 1
        self._rows[task] += 1
        if reason is None:
            return
        self.num_failures += 1
        reasons = self._failures.setdefault(task, Counter())
        reasons[reason] += 1
        rows = self._rows[task]
        if rows >= self.rule.min_rows and reasons[reason] > self.rule.max_share * rows:
            self.is_broken = True
            raise TooManyFailures(
                f"{reasons[reason]} of {rows} rows of {task} failed with {reason!r}, more than "
                f"{self.rule.max_share:.0%}. Stopped so that no more is spent; all answers are "
                "filed. Look at dead_letters/, mend the prompt, parser or endpoint and run the "
                "same command again, or allow more with --max-failures."
            )
