"""Do tasks and the columns of the input fit? Looked at before anything is asked.

check_columns(chains, meta, quality_field="quality")     # meta: the input's empty frame
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from nemo_sdg.errors import ConfigurationError, DataError
from nemo_sdg.pipelines.chain import Chain
from nemo_sdg.stages.base import JOINED_FIELD, SEGMENT_FIELD
from nemo_sdg.stages.reshape import CONTINUES_FIELD, NUM_SEGMENTS_FIELD, TOKENS_FIELD
from nemo_sdg.tasks.task import Task

SEGMENT_COLUMNS = (SEGMENT_FIELD, NUM_SEGMENTS_FIELD, TOKENS_FIELD, CONTINUES_FIELD)
_BESIDE_OUTPUT = ("error", "call", "items", "token_count", "ratio")


def check_columns(chains: Iterable[Chain], meta: Any, *, quality_field: str | None = None) -> None:
    """Hold every task's columns against those of the input.

    Raises:
        DataError: the column of quality is not there, or holds no numbers.
        PromptError: a placeholder has no column.
        ConfigurationError: a task would overwrite a column of the input.
    """
    if quality_field is not None:
        _check_quality(meta, quality_field)
    for chain in chains:
        _check_read(chain, meta)
        _check_made(chain, meta)
        chain.meta(meta)


def _check_quality(meta: Any, field: str) -> None:
    numbers = [str(name) for name in meta.columns if meta[name].dtype.kind in "iufb"]
    if field in numbers:
        return
    told = (
        f"holds {meta[field].dtype}, not numbers"
        if field in meta.columns
        else f"is no column of the input; there are {', '.join(map(str, meta.columns))}"
    )
    remedy = f"columns of numbers: {', '.join(numbers)}" if numbers else "no column holds numbers"
    raise DataError(
        f"the quality field {field!r} {told} ({remedy}): name the column of quality buckets, 0 to "
        "19, with quality_field (--quality-field), or leave it out"
    )


def _check_read(chain: Chain, meta: Any) -> None:
    """Look for the columns that prompt and sampling are filled from; name the user's own."""
    task, there = chain.task, [str(name) for name in meta.columns]
    made = set(SEGMENT_COLUMNS) if chain.segment_tokens is not None else set()
    if isinstance(task, Task):
        for template in filter(None, (task.system_template, task.template)):
            # A prompt may name what the chain makes; a message lists the user's own only.
            usable = {"document", *there, *made.intersection(template.variables)}
            template.check_closed(there, where=f"task {task.name}")
            template.check(usable, where=f"task {task.name}")
    else:
        _require(f"task {task.name}", {*task.variables} - {"document", *there, *made}, there)
    _require("from_columns", {*chain.generate.from_columns.values()} - {*there, *made}, there)


def _require(where: str, lacking: set[str], there: Sequence[str]) -> None:
    if lacking:
        raise DataError(
            f"{where} reads {_listed(sorted(lacking))}, and the input has no such column; there "
            f"are {', '.join(there)}"
        )


def _check_made(chain: Chain, meta: Any) -> None:
    """Look whether a column that the chain makes is the user's own; nothing is overwritten."""
    task = chain.task
    beside = [f"{task.output}_{name}" for name in _BESIDE_OUTPUT]
    own = [*task.columns, *beside]
    if chain.shape == "rows" and isinstance(task, Task) and task.rows is not None:
        own += task.rows.columns
    if chain.joins:
        own.append(f"{task.output}_complete")
    of_chain = [JOINED_FIELD, *(SEGMENT_COLUMNS if chain.segment_tokens is not None else ())]
    there = {str(name) for name in meta.columns}
    taken = [name for name in dict.fromkeys((*own, *of_chain)) if name in there]
    if not taken:
        return
    many = len(taken) > 1
    remedies = [f"rename or drop {'them' if many else 'it'} in the input"]
    if {task.output, *beside} & {*taken}:
        remedies.insert(
            0,
            f"give the task another output (--output-field; in a recipe `name: {task.name}` with "
            "`output: ANOTHER`)",
        )
    earlier = " They are what an earlier run made?" if {*of_chain} & {*taken} else ""
    raise ConfigurationError(
        f"{_listed(taken)} {'are columns' if many else 'is a column'} of the input already, and "
        f"would be overwritten by what task {task.name} makes: {', or '.join(remedies)}.{earlier}"
    )


def _listed(names: Sequence[str]) -> str:
    quoted = [repr(name) for name in names]
    return " and ".join(filter(None, (", ".join(quoted[:-1]), quoted[-1])))
