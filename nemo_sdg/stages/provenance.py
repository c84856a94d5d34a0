"""What is known about an answer: the rows of `provenance/`, and what the answer was good for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_sdg.errors import RowError
from nemo_sdg.llm.request import Reply, Request
from nemo_sdg.llm.request_form import Filled
from nemo_sdg.stages.base import ASKED_AGAIN, KEPT
from nemo_sdg.tasks.task import FlowTask, Task


def outcome_of(task: Task | FlowTask, error: RowError | None, call: Any, reply: Reply) -> str:
    """Say what an answer was good for, before any filter has seen its row.

    Args:
        task: what was asked.
        error: why the row has no value.
        call: the key of the row's last answer, a list where it has several samples.
        reply: the answer.
    """
    if error is not None:
        return f"dead.{error.code}"
    if isinstance(task, Task) and not task.halvings:
        key = reply.keys[0]
        is_kept = key in call if isinstance(call, list) else key == call
    else:  # several answers make the value; which of them do is the flow's affair
        is_kept = not reply.choices or any(isinstance(text, str) for text in reply.samples())
    return KEPT if is_kept else ASKED_AGAIN


def provenance_of(
    place: tuple[str | None, int | None],
    task: str,
    request: Request | Filled,
    reply: Reply,
    *,
    cost: float | None,
    outcome: str,
) -> list[dict[str, Any]]:
    """Return one row a sample; tokens and cost stand with the first."""
    usage = reply.usage
    rows = [
        {
            "call": key,
            "id": place[0],
            "segment_id": place[1],
            "task": task,
            "model_asked": request.model,
            "model_served": reply.model,
            "prompt_hash": request.prompt_hash(),
            "sampling_hash": request.sampling.fingerprint(),
            "seed": request.seed,
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
            "cached_tokens": usage.cached_tokens,
            "is_estimated": usage.is_estimated,
            "finish_reason": choice.finish_reason,
            "endpoint": reply.endpoint,
            "attempts": reply.attempts,
            "latency_s": reply.latency_s,
            "was_filed": reply.was_filed,
            "cost": cost,
            "outcome": outcome,
        }
        # Some servers send more choices than were asked for: the others have no key.
        for key, choice in zip(reply.keys, reply.choices, strict=False)
    ]
    for row in rows[1:]:
        row.update(_PAID_WITH_THE_FIRST)
    return rows


_PAID_WITH_THE_FIRST: Mapping[str, Any] = {
    "input_tokens": 0,
    "output_tokens": 0,
    "reasoning_tokens": 0,
    "cached_tokens": 0,
    "cost": 0,
}
