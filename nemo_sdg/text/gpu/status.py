"""Why a row is left to another engine: what kernels write, and the reason that reports show."""

from __future__ import annotations

HOLDS_ADDED, UNSETTLED_ROW, LONG_WORD, QUEUE_FULL = 1, 2, 4, 8

REASONS = {
    HOLDS_ADDED: "added_token",
    UNSETTLED_ROW: "unsettled",
    LONG_WORD: "long_word",
    QUEUE_FULL: "queue_full",
}
