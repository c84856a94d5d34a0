"""Make one part, on a worker: run the chain, and write where the rows were made."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nemo_sdg.errors import NotFiled
from nemo_sdg.llm.engine_config import in_run
from nemo_sdg.llm.worker import EngineLost
from nemo_sdg.pipelines.attempts import MOST_STARTS, Attempt
from nemo_sdg.pipelines.chain import Chain, PartResult
from nemo_sdg.pipelines.cluster import device_memory, watch_device
from nemo_sdg.pipelines.counting import noted
from nemo_sdg.pipelines.folder import RunFolder
from nemo_sdg.pipelines.known_rows import known_rows, letters_of
from nemo_sdg.pipelines.progress import publish_from_here
from nemo_sdg.pipelines.round import Round
from nemo_sdg.pipelines.watch import DIED, Died
from nemo_sdg.stages.known import Known
from nemo_sdg.text.counted import counting

ENGINE_LOSSES = 2
"""How often a part may lose its engine's process before the run stops."""


@dataclass(frozen=True, kw_only=True)
class Making:
    """What the parts of a run have in common; a plain value that travels to the workers.

    Attributes:
        run: id of the run, that its engines belong to.
        settings: task -> what it asks and how it reads answers; see `identity.settings_of`.
        letters: folder whose dead letters hold for rows without a filed answer, in a replay.
        replays: nothing is asked.
        round: the retry at work, None where there is none.
    """

    folder: RunFolder
    is_only: bool
    run: str
    settings: Mapping[str, str] = field(default_factory=dict)
    letters: RunFolder | None = None
    replays: bool = False
    round: Round | None = None

    def known(self, task: str, *, before_round: int | None = None) -> Known:
        """Read what is known of the rows of a task, from all retries or from earlier ones."""
        letters = letters_of(self.letters, task) if self.letters is not None else {}
        settings = self.settings.get(task, "")
        return known_rows(self.folder, task, settings, letters, before_round=before_round)

    def chain(self, chain: Chain) -> Chain:
        """Return the chain as it runs here: in a replay it reads the ledger and asks nothing."""
        if not self.replays:
            return chain
        return replace(chain, generate_options=chain.generate_options | {"replays": True})


def make_part(
    chain: Chain, frame: Any, number: int, *, fingerprint: str, schema: Any, making: Making
) -> dict[str, Any] | Died:
    """Make one part and return its summary; the task that made the rows writes them.

    A part that was started too often without an end is left to `poison`.
    """
    task = chain.task.name
    found = making.folder.finished(task, number, fingerprint)
    if found is not None:
        return found  # this task ran before, on a worker that was lost after it had finished
    mark = started_mark(making, task, number, fingerprint)
    if mark.times >= MOST_STARTS:
        return DIED
    with mark, in_run(making.run):
        return make_here(
            making.chain(chain),
            frame,
            number,
            fingerprint=fingerprint,
            schema=schema,
            making=making,
        )


def started_mark(making: Making, task: str, number: int, fingerprint: str) -> Attempt:
    """Return the mark that a part is at work."""
    return Attempt(
        folder=making.folder,
        name=f"{task}/started-{number:05d}",
        fingerprint=fingerprint,
        run=making.run,
    )


def make_here(
    chain: Chain, frame: Any, number: int, *, fingerprint: str, schema: Any, making: Making
) -> dict[str, Any]:
    """Run the chain of a part and write what came of it."""
    publish_from_here()
    watch_device(frame)
    started = time.perf_counter()
    with counting() as counted:
        made = made_of(chain, frame, making.known(chain.task.name))
    more = device_memory(frame) | noted(counted)
    return write_part(making, chain, number, fingerprint, schema, made, started, **more)


def write_part(
    making: Making,
    chain: Chain,
    number: int,
    fingerprint: str,
    schema: Any,
    made: PartResult,
    started: float,
    **more: Any,
) -> dict[str, Any]:
    """Write a part, its summary with `more` last; `started` is of `time.perf_counter`."""
    return making.folder.write_part(
        chain.task.name,
        number,
        made.data,
        {
            "dropped": made.record.dropped,
            "dead_letters": made.record.dead,
            "provenance": made.record.provenance,
        },
        schema=schema,
        is_only=making.is_only,
        summary={
            "task": chain.task.name,
            "number": number,
            "fingerprint": whole_or_not(fingerprint, made.counts),
            "counts": dict(made.counts),
            "started": time.time() - (time.perf_counter() - started),
            "ended": time.time(),
            **more,
        },
    )


def whole_or_not(fingerprint: str, *counts: Mapping[str, int]) -> str:
    """Return a fingerprint that no run takes for finished where answers are still to be had."""
    lacks = any(one.get(f"dead.{NotFiled.code}") for one in counts)
    return f"{fingerprint}-lacking" if lacks else fingerprint


def made_of(chain: Chain, frame: Any, known: Known) -> PartResult:
    """Run the chain; when its engine dies, begin anew: what was answered stands in the ledger."""
    for _ in range(ENGINE_LOSSES):
        with contextlib.suppress(EngineLost):
            return chain.run(frame, known)
    return chain.run(frame, known)
