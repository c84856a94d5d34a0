"""Processor time of a worker's task threads, by the steps of a part.

    client.run(install)      # in every worker; later:
    client.run(collected)    # worker -> step -> seconds

A step counts without those inside it.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar


class Steps:
    """Thread time of each step in a worker, without the steps inside it.

    Lives in a worker, once `install` ran there.
    """

    spent: ClassVar[Counter[str]] = Counter()
    _inside = threading.local()

    @classmethod
    def timed(cls, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            outer = getattr(cls._inside, "children", 0.0)
            cls._inside.children = 0.0
            begin = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.thread_time() - begin
                cls.spent[step] += took - cls._inside.children
                cls._inside.children = outer + took

        return call


def install() -> None:
    """Have the steps of this process timed."""
    from nemo_sdg.data.io import Loader
    from nemo_sdg.llm.session import Session
    from nemo_sdg.llm.worker import EngineHandle
    from nemo_sdg.pipelines import work as part_work
    from nemo_sdg.pipelines.chain import Chain
    from nemo_sdg.pipelines.folder import RunFolder
    from nemo_sdg.stages import generate
    from nemo_sdg.stages.reshape import Join, JoinElements, Prepend, Sample, Segment
    from nemo_sdg.stages.select import Modify, _Selecting
    from nemo_sdg.text.tokens import Tokenizer

    def time_in(owner: Any, name: str, step: str) -> None:
        setattr(owner, name, Steps.timed(step, getattr(owner, name)))

    time_in(part_work, "make_part", "the rest of a part")
    time_in(Loader, "__call__", "read")
    for name in ("count", "count_column", "count_lines", "cut", "starts"):
        if hasattr(Tokenizer, name):
            time_in(Tokenizer, name, "tokenizer")
    time_in(Chain, "run", "books")
    time_in(Chain, "_kept", "the rest of a part")
    time_in(generate, "merged", "merge answers")
    for name, step in (("_started", "prompts"), ("_exchange", "parse"), ("_note", "books")):
        time_in(generate.Generate, name, step)
    time_in(Session, "submit", "client")
    time_in(Session, "wait", "client")
    time_in(EngineHandle, "_read", "client")
    time_in(RunFolder, "write_part", "write")
    time_in(Segment, "apply", "split and pack")
    time_in(_Selecting, "apply", "choose and filter")
    time_in(Modify, "apply", "clean")
    for stage in (Join, JoinElements, Sample, Prepend):
        time_in(stage, "apply", "join and sample")


def collected() -> dict[str, float]:
    """Return what was timed in this process."""
    return dict(Steps.spent)
