"""Is the endpoint usable, and are its answers worth their price? Pure state machines.

Time is handed in, seconds on any monotonic clock; nothing here sleeps or sends.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from nemo_sdg.errors import (
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

    It is down after `failures_to_suspect` failures in a row (refused or broken connections,
    time-outs, 5xx) without an answer between them, once a probe has failed too. While it is down
    nothing is sent but probes, rows wait and no try of theirs counts. After `max_outage_s`
    without an answer `expired` is true. A 429 is no failure; 429s without any answer for
    `max_outage_s` are an outage too.
    """

    def __init__(self, *, max_outage_s: float = 600.0, failures_to_suspect: int = 5) -> None:
        self.max_outage_s = max_outage_s
        self.failures_to_suspect = failures_to_suspect
        self.failures = 0
        self.trouble_since: float | None = None
        self.is_down = False
        self.is_suspect = False
        self.last_error: RequestError | None = None
        self._probes = 0

    def answered(self) -> None:
        """A complete answer came, of any content."""
        self.failures = 0
        self._probes = 0
        self.trouble_since = None
        self.is_down = self.is_suspect = False

    def failed(self, error: RequestError, now: float) -> None:
        """A try failed."""
        if isinstance(error, RateLimited):
            self.trouble_since = now if self.trouble_since is None else self.trouble_since
            self.last_error = error
        elif isinstance(error, _TELLING):
            self.trouble_since = now if self.trouble_since is None else self.trouble_since
            self.last_error = error
            self.failures += 1
            self.is_suspect = self.failures >= self.failures_to_suspect

    def probed(self, *, alive: bool) -> None:
        """A probe ended. Alive: rows are tried again, and their failures are their own."""
        self._probes += 1
        self.is_down = not alive
        if alive:
            self._probes = 0
            self.failures = 0
            self.is_suspect = False

    def next_probe_s(self) -> float:
        """Seconds to wait before the next probe: 0 at first, then 1, 2, 4 ... at most 15."""
        return 0.0 if self._probes == 0 else min(15.0, 2.0 ** (self._probes - 1))

    def expired(self, now: float) -> bool:
        """True when the endpoint has been unusable for longer than allowed."""
        return self.trouble_since is not None and now - self.trouble_since > self.max_outage_s


@dataclass(frozen=True, kw_only=True, slots=True)
class FailureRule:
    """Stop when more than `max_share` of the rows fail for one reason, from `min_rows` on."""

    max_share: float = 0.2
    min_rows: int = 50


class FailureGuard:
    """Counts how the rows of each task end; a wrong prompt is not paid for a million times."""

    def __init__(self, rule: FailureRule = FailureRule()) -> None:
        self.rule = rule
        self._rows: Counter[str] = Counter()
        self._failures: dict[str, Counter[str]] = {}

    def record(self, task: str, reason: str | None) -> None:
        """Count a row; `reason` is its error code, None for a row with a value.

        Raises:
            TooManyFailures: the rule is broken by this row.
        """
        self._rows[task] += 1
        if reason is None:
            return
        reasons = self._failures.setdefault(task, Counter())
        reasons[reason] += 1
        rows = self._rows[task]
        if rows >= self.rule.min_rows and reasons[reason] > self.rule.max_share * rows:
            raise TooManyFailures(
                f"{reasons[reason]} of {rows} rows of {task} failed with {reason!r}, more than "
                f"{self.rule.max_share:.0%}. Stopped so that no more is spent; all answers are "
                "filed. Look at dead_letters/, mend the prompt, parser or endpoint and run the "
                "same command again, or allow more with --max-failures."
            )
