"""When to ask again: decided here and nowhere else, on types, without a clock.

A transport failure repeats the same request under the same key. Whether an answer that came is of
use is the task's affair (`Task.flow`); SDK retries underneath are off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nemo_sdg.errors import (
    ConnectionFailed,
    MalformedReply,
    RateLimited,
    RequestError,
    RequestTimeout,
    ServerFailure,
    Unauthorized,
    UnknownModel,
)

TRANSIENT = (ConnectionFailed, RequestTimeout, RateLimited, ServerFailure, MalformedReply)
"""Errors after which the same request may well succeed."""

FORBIDDEN = 403

FATAL = (Unauthorized, UnknownModel)
"""Errors that may hit every row alike; `verdict` tells when the run cannot go on."""


def verdict(
    error: RequestError, *, is_own_model: bool, has_answered: bool
) -> Literal["row", "run", "open"]:
    """Tell whose an error is: the row's, the whole run's, or not known before more is.

    A refused key (401, an empty account) ends the run, and so does an unknown model, unless it
    came from the row. Gateways answer 403 for one moderated input as for a wrong key: once
    anything was answered (`has_answered`) it is the row's.
    """
    if isinstance(error, UnknownModel):
        return "run" if is_own_model else "row"
    if not isinstance(error, Unauthorized):
        return "row"
    if error.status != FORBIDDEN:
        return "run"
    return "row" if has_answered else "open"


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """Back-off with full jitter: the n-th wait is drawn from 0 .. min(max, base * 2 ** (n - 1)).

    `Retry-After` is a lower bound of the wait, and is obeyed beyond `max_wait_s` too.
    """

    max_tries: int = 6
    base_wait_s: float = 0.5
    max_wait_s: float = 60.0

    def wait_s(
        self, error: RequestError, tries: int, draw: float, *, refusals: int = 0
    ) -> float | None:
        """Return the seconds to wait before the next try, or None to give the request up.

        Args:
            error: what the last try ended with.
            tries: tries made so far that count, the last one included. A 429 counts for none:
                the endpoint lives and asks for patience; see `limits.Health` for its end.
            draw: a number in 0 .. 1, uniform.
            refusals: 429s so far; they only lengthen the wait.
        """
        if not isinstance(error, TRANSIENT):
            return None
        if tries >= self.max_tries and not isinstance(error, RateLimited):
            return None
        ceiling = min(
            self.max_wait_s, self.base_wait_s * 2.0 ** min(max(tries + refusals - 1, 0), 30)
        )
        asked = error.retry_after_s or 0.0
        # A little jitter above Retry-After keeps waiting requests from returning all at once.
        return asked + min(asked, 1.0) * 0.1 * draw if asked else ceiling * draw


class Tries:
    """The failed tries of one request that is asked outside of an engine.

    A 429 counts for no try, so patience ends by the clock: after `patience_s` of nothing else.
    """

    def __init__(self, policy: RetryPolicy, *, patience_s: float) -> None:
        self._policy, self._patience_s = policy, patience_s
        self._counted = self._refusals = 0
        self._refused_since: float | None = None

    @property
    def failed(self) -> int:
        """Requests sent so far, all in vain."""
        return self._counted + self._refusals

    def wait_s(self, error: RequestError, now: float, draw: float) -> float:
        """Return the seconds to wait before the next try, or raise the error that ends it."""
        if isinstance(error, RateLimited):
            self._refusals += 1
            self._refused_since = now if self._refused_since is None else self._refused_since
            if now + (error.retry_after_s or 0.0) - self._refused_since > self._patience_s:
                raise error
        else:
            self._counted += 1
            self._refused_since = None
        wait_s = self._policy.wait_s(error, self._counted, draw, refusals=self._refusals)
        if wait_s is None:
            raise error
        return wait_s
