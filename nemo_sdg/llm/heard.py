"""What is heard of a streamed answer while it comes.

heard = Heard()
reader = StreamReader(heard)            # tells it every piece of text
heard.first_at                          # when the first token came, None before it
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Heard:
    """Notes when the first token of an answer came.

    Args:
        clock: seconds; that of whoever notes when the request was sent.
    """

    __slots__ = ("_clock", "first_at")

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.first_at: float | None = None

    def piece(self) -> None:
        """A piece of any sample came: of its text, its reasoning, a refusal or a tool call."""
        if self.first_at is None:
            self.first_at = self._clock()

    def first_s(self, started: float) -> float | None:
        """Return the seconds from `started` to the first token, None where none was streamed."""
        return None if self.first_at is None else self.first_at - started


def per_token_s(latency_s: float, first_token_s: float | None, output_tokens: int) -> float | None:
    """Return the mean seconds of a token after the first, None where that cannot be told."""
    if first_token_s is None or output_tokens < 2:
        return None
    return max(0.0, latency_s - first_token_s) / (output_tokens - 1)
