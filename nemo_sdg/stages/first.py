"""What a stage would ask first, without asking it: for counting before anything is spent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nemo_sdg.llm.drive import Crowd, Stamp
from nemo_sdg.llm.request import Request
from nemo_sdg.stages.generate import Generate


def first_requests(stage: Generate, frame: Any) -> Iterator[tuple[int, Request]]:
    """Yield (place of the row, request) for all that is asked before any answer is there.

    Of a flow this is the least it asks; of a `Task` all but second tries. A row with a null asks
    nothing. Seeds are left out: they decide answers, not sizes.
    """
    crowd, stamp = Crowd(), Stamp(stage.endpoint.model, ())
    for number, (values, sampling) in enumerate(stage._values(frame)):
        if not any(value is None for value in values.values()):
            for _, request in crowd.start(number, stage.task.flow(values, sampling), stamp):
                yield number, request
