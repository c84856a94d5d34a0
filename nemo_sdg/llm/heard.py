"""What is heard of a streamed answer while it comes.

    heard = Heard(on_text)
    reader = StreamReader(heard)        # tells it every piece
    heard.first_at                      # when the first token came, None before it

It is heard by who measures how soon answers begin, and by who shows them as they come.
"""

from __future__ import annotations

import time
from collections.abc import Callable

OnText = Callable[[str], object]
"""Called with the text of an answer so far, that of its first sample."""


class Heard:
    """Notes when the first token of an answer came, and passes its text on.

    Args:
        on_text: called with the text so far, whenever there is more of it.
        clock: seconds; that of whoever notes when the request was sent.

    Attributes:
        last_text: what `on_text` was told last, None before that.
    """

    __slots__ = ("_clock", "_on_text", "first_at", "last_text")

    def __init__(
        self, on_text: OnText | None = None, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._clock, self._on_text = clock, on_text
        self.first_at: float | None = None
        self.last_text: str | None = None

    def piece(self) -> None:
        """A piece of any sample came: of its text, its reasoning, a refusal or a tool call."""
        if self.first_at is None:
            self.first_at = self._clock()

    def text(self, so_far: str) -> None:
        """The first sample has more text, which is all this now."""
        if self._on_text is not None and so_far != self.last_text:
            self.last_text = so_far
            self._on_text(so_far)

    def first_s(self, started: float) -> float | None:
        """Return the seconds from `started` to the first token, None where none was streamed."""
        return None if self.first_at is None else self.first_at - started


def per_token_s(latency_s: float, first_token_s: float | None, output_tokens: int) -> float | None:
    """Return the mean seconds of a token after the first, None where that cannot be told."""
    if first_token_s is None or output_tokens < 2:
        return None
    return max(0.0, latency_s - first_token_s) / (output_tokens - 1)
