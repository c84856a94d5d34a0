"""A streamed reply that ends early: the rule of its sampling, applied to its samples as they come.

    early = Early(rule, num_samples=1, prompt_tokens=400)
    reader = StreamReader(heard, early)     # asks it about every piece
    reader.is_stopped                       # close the connection: the rest is of no use

A reply that came whole, of a server that does not stream, is cut the same way (`cut`).
"""

from __future__ import annotations

from typing import Any

from nemo_sdg.llm.request import split_reasoning
from nemo_sdg.llm.stop_when import Stop, StopWhen
from nemo_sdg.llm.usage import ESTIMATED

BYTES_A_TOKEN = 4
_LOOK_EVERY = 64
"""A text is looked at again when it is longer by this part of itself: looking at all of it for
every token would take time that grows with its square."""


class Early:
    """Watches one reply; not for a second one.

    Args:
        rule: that ends its samples.
        num_samples: that were asked for.
        prompt_tokens: what the prompt may have cost, for a reply whose end is not awaited.
    """

    def __init__(self, rule: StopWhen, *, num_samples: int, prompt_tokens: int) -> None:
        self._rule, self._num_samples, self._prompt_tokens = rule, num_samples, prompt_tokens
        self._looked_at: dict[int, int] = {}
        self._cut: set[int] = set()
        self._ended: set[int] = set()
        self._num_pieces = self._num_bytes = 0

    @property
    def is_over(self) -> bool:
        """Whether no sample goes on, and the rule has ended one: nothing is worth waiting for."""
        return bool(self._cut) and len(self._cut | self._ended) >= self._num_samples

    def is_cut(self, index: int) -> bool:
        """Whether the rule has ended this sample: what still comes of it is not wanted."""
        return index in self._cut

    def received(self, piece: str) -> None:
        """Count a piece of any sample, be it wanted or not."""
        self._num_pieces += 1
        self._num_bytes += len(piece.encode("utf-8", "replace"))

    def look(self, index: int, choice: dict[str, Any], *, is_whole: bool) -> bool:
        """Cut a sample that the rule ends; say whether its text may be shown as it is now.

        Args:
            index: of the sample.
            choice: as far as it has come; text and finish reason change where it ends here.
            is_whole: the server has ended it.
        """
        content = choice["message"].get("content")
        if is_whole:
            self._ended.add(index)
        if not isinstance(content, str):
            return False
        if not is_whole:
            looked_at = self._looked_at.get(index, 0)
            if (len(content) - looked_at) * _LOOK_EVERY < looked_at:
                return False
            self._looked_at[index] = len(content)
        cut = _cut_text(self._rule, content, is_whole=is_whole)
        if cut is not None:
            choice["message"]["content"], choice["finish_reason"] = cut
            if not is_whole:
                self._cut.add(index)
        return True

    def cut(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return a reply that came whole as if it had been stopped."""
        choices = body.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            holder, name = choice, "text"
            if isinstance(choice, dict) and isinstance(choice.get("message"), dict):
                holder, name = choice["message"], "content"
            if isinstance(holder, dict) and isinstance(text := holder.get(name), str):
                cut = _cut_text(self._rule, text, is_whole=True)
                if cut is not None:
                    holder[name], choice["finish_reason"] = cut
        return body

    def usage(self) -> dict[str, Any]:
        """Return what the reply may have cost: the server did not come to tell.

        A piece is a token with most servers; where pieces are longer, four bytes are one.
        """
        made = max(self._num_pieces, self._num_bytes // BYTES_A_TOKEN)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": made,
            "total_tokens": self._prompt_tokens + made,
            ESTIMATED: True,
        }


def _cut_text(rule: StopWhen, content: str, *, is_whole: bool) -> tuple[str, str] | None:
    """Return the content of a sample up to where the rule ends it, and the finish reason."""
    answer, _ = split_reasoning(content)
    stop: Stop | None = rule.stop(answer, is_whole=is_whole) if answer else None
    if stop is None:
        return None
    return content[: len(content) - len(answer) + stop.at], stop.reason
