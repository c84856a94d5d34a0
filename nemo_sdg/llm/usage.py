"""Tokens of a request and its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ESTIMATED = "is_estimated"
"""Stands in the `usage` of a reply whose tokens are ours."""


# Not frozen: one is made for every answer, and frozen fields take twice as long.
@dataclass(kw_only=True, slots=True, unsafe_hash=True)
class Usage:
    """Tokens as the server counted them. `reasoning` is part of `output`, `cached` of `input`.

    `is_estimated` where the server could not tell, since we closed the connection before it had.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    is_estimated: bool = False

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            is_estimated=self.is_estimated or other.is_estimated,
        )

    @classmethod
    def from_body(cls, usage: Mapping[str, Any] | None) -> Usage:
        """Read the `usage` object of a reply; whatever is missing or null counts as 0."""
        if not usage:
            return cls()
        spent = usage.get("completion_tokens_details")
        given = usage.get("prompt_tokens_details")
        return cls(
            input_tokens=int(usage.get("prompt_tokens") or 0),
            output_tokens=int(usage.get("completion_tokens") or 0),
            reasoning_tokens=int(spent.get("reasoning_tokens") or 0) if spent else 0,
            cached_tokens=int(given.get("cached_tokens") or 0) if given else 0,
            is_estimated=ESTIMATED in usage,
        )


NO_USAGE = Usage()
