"""The words of a report: numbers as text, how a run ended, and what to do next."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemo_sdg.pipelines.metrics import TaskMetrics
from nemo_sdg.stages.generate import NO_INPUT

HINTS = {
    "length": "the answer reached the output limit: raise max_output_tokens, or take smaller texts",
    "empty": "the answer was blank",
    "refused": "the model declined, or a content filter cut in",
    "context_exceeded": "prompt and output limit do not fit the model's window",
    "bad_request": "the server does not take the request: nemo-sdg check tells what it takes",
    "connection": "the connection was refused, or broke",
    "timeout": "no answer within timeout_s",
    "rate_limited": "the server asked for a pause",
    "server_error": "the server failed (5xx)",
    "malformed_reply": "the reply was not what the protocol says",
    "no_input": NO_INPUT,
    "task_crashed": "parser or flow of the task raised an error: see detail in dead_letters/",
    "cancelled": "the run ended before the answer came",
    "overtaken": "sent twice to end the run sooner, and the other one was answered first",
}
"""Reasons that mean the same for every task; those of parsers speak for themselves."""

_UNIT = re.compile(r"(?<=\d) (?=%|(?:ms|s|min|h|k|M|G)\b)| (?=−\d)|(?<=\bp\d\d) (?=\d)")


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a run ended. `kind` is good, fair, bad or open."""

    kind: str
    words: str
    detail: str = ""
    next: str = ""


def ending(end: Mapping[str, Any], parts: Mapping[str, tuple[int, int | None]]) -> Ending:
    """Say how a run ended and what to do now.

    Args:
        end: run.json.
        parts: task -> (finished parts, all parts).
    """
    status, code = end.get("status"), end.get("exit_code")
    if status == "complete" and code == 0:
        return Ending(kind="good", words="Complete", next="The rows are in data/.")
    if status == "complete":
        return Ending(
            kind="fair",
            words="Complete, with gaps",
            detail="More than 5 % of the segments of a task have no answer.",
            next="The rows are in data/. The reasons stand below, each row in dead_letters/.",
        )
    share = _finished(parts)
    again = "Run the same command again: it goes on from here, and no filed answer is asked again."
    if status == "running":
        words = "Not ended"
        detail = f"The run is under way, or it was killed. {share}"
        return Ending(kind="open", words=words, detail=detail.strip(), next=again)
    told = str(end.get("detail", "")).strip()
    detail = f"{told}{'' if told.endswith(('.', '!', '?')) else '.'} {share}".strip()
    if status == "stopped":
        words = "Interrupted" if code == 130 else f"Stopped: {_spoken(end.get('reason', ''))}"
        return Ending(kind="fair", words=words, detail=detail, next=again)
    if code == 2:
        mend = "Mend what the message names and run the same command again."
        return Ending(kind="bad", words="Not run: wrong input", detail=detail, next=mend)
    return Ending(
        kind="bad",
        words=f"Failed: {end.get('reason', 'unknown')}",
        detail=detail,
        next="This is a defect of nemo-sdg: please report it with error.log. Answers are filed.",
    )


def unfinished(parts: Mapping[str, tuple[int, int | None]], total: TaskMetrics) -> str:
    """Say what the counts of rows leave out, "" where all parts are finished."""
    if all(found == planned for found, planned in parts.values()):
        return ""
    used = [total.kept, total.wasted]
    paid = total.tokens["input_tokens"] + total.tokens["output_tokens"]
    filed = paid - sum(one.input_tokens + one.output_tokens for one in used)
    told = f" Answers of {filed:,} more tokens are filed for when it goes on." if filed > 0 else ""
    return f"{_finished(parts)}{told}".strip()


def _finished(parts: Mapping[str, tuple[int, int | None]]) -> str:
    planned = [number for _, number in parts.values() if number is not None]
    if len(planned) < len(parts) or not parts:
        return ""
    found = sum(number for number, _ in parts.values())
    return f"{found:,} of {sum(planned):,} parts are finished."


def _spoken(reason: str) -> str:
    """Return the name of an error type as words."""
    apart = "".join(f" {c.lower()}" if c.isupper() else c for c in reason).strip()
    return apart or "before its end"


def count(number: float) -> str:
    """Write a number with thousands apart."""
    return f"{number:,.0f}"


def short(number: float) -> str:
    """Write a number in about four characters, for an axis or a tile."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(number) >= size:
            return f"{number / (1e3 if unit == ' k' else size):.3g}{unit}"
    return f"{number:,.0f}" if number == int(number) else f"{number:.3g}"


def seconds(number: float) -> str:
    """Write a duration."""
    if number < 1:
        return f"{number * 1000:.3g} ms"
    if number < 60:
        return f"{number:.3g} s"
    minutes, rest = divmod(round(number), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def many(number: float, one: str, more: str = "") -> str:
    """Write a number of things: 1 answer, 2 answers."""
    return f"{count(number)} {one if number == 1 else more or f'{one}s'}"


def whole(text: str) -> str:
    """Keep a number and its unit, or its sign, on one line."""
    return _UNIT.sub("\u00a0", text)


def money(cost: float | None) -> str:
    """Write a cost; one that is not known is no number."""
    if cost is None:
        return "unknown"
    return f"{cost:,.2f}" if cost >= 1 or cost == 0 else f"{cost:.3g}"


def share(part: float, whole: float) -> str:
    """Write a share in percent."""
    if not whole:
        return "0 %"
    percent = 100 * part / whole
    if percent in (0, 100) or 10 <= percent <= 99:
        return f"{percent:.0f} %"
    # What is nearly nothing, or nearly everything, must not look as if it were.
    return f"{min(max(percent, 0.1), 99.9):.1f} %" if percent < 100 else f"{percent:.1f} %"


def reason(name: str) -> str:
    """Put a reason of waste into words."""
    kind, _, rest = name.partition(".")
    named = {"dead": "dead letter", "filtered": "dropped by", "failed": "failed:"}
    if kind == "asked_again":
        return "of no use, asked again"
    return f"{named.get(kind, kind)} {rest}"
