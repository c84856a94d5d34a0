"""What a job will ask for, counted on its own requests; nothing is sent.

    estimate(job)                 # for the one line before a run: about 4 MB are looked at
    counted(chain, frame)         # one partition of one task, exactly
    sizes(chain, prepared)        # row by row

Every request is made as the run makes it, rendered by the tokenizer's chat template and counted, so
that the sum is what a server with this tokenizer counts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np

from nemo_sdg.data.frames import schema_of, to_table
from nemo_sdg.errors import TokenizerError
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.request import Request
from nemo_sdg.pipelines.chain import Chain
from nemo_sdg.pipelines.job import SMALLEST_BLOCK, Job
from nemo_sdg.pipelines.tokenize_route import NAME as TOKENIZE_ROUTE
from nemo_sdg.stages.first import first_requests
from nemo_sdg.tasks.steps import PrependSource, SampleItems
from nemo_sdg.tasks.task import FlowTask, Task
from nemo_sdg.text.tokens import load_tokenizer

ESTIMATE_BYTES = 4 << 20

GUESSED_SHARE = 0.5
"""Of its output limit, what an answer is guessed to take where no figure is published; and of the
expected length, the least."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Sums over partitions. What depends on answers is a guess, made request by request.

    Attributes:
        parts: partitions.
        documents: rows of the input, or planned ones.
        rows: those that are asked about: documents, or segments of long ones.
        requests: without second tries; of a flow those before its first answer.
        output_low, output_expected: tokens of the answers, guessed.
        output_most: by the output limits.
        unlimited: requests without an output limit; then `output_most` says nothing.
        stored_bytes: columns of the rows that are asked about, as Arrow holds them.
    """

    parts: int = 0
    documents: int = 0
    rows: int = 0
    requests: int = 0
    input_tokens: int = 0
    output_low: float = 0.0
    output_expected: float = 0.0
    output_most: int = 0
    unlimited: int = 0
    stored_bytes: int = 0

    def __add__(self, other: Self) -> Self:
        names = (field.name for field in fields(self))
        return replace(self, **{n: getattr(self, n) + getattr(other, n) for n in names})


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run will ask for. Exact where every partition was looked at, else scaled up."""

    rows: int
    requests: int
    input_tokens: int
    output_tokens_at_most: int | None
    is_exact: bool

    def cost_at_most(self, endpoint: Endpoint) -> float | None:
        """Money for all input and the longest answers allowed; None where a price is unknown."""
        if self.output_tokens_at_most is None:
            return None
        return cost(endpoint, self.input_tokens, self.output_tokens_at_most)


def cost(endpoint: Endpoint, input_tokens: float, output_tokens: float) -> float | None:
    """Return the price of so many tokens; None where a price is unknown."""
    if endpoint.price_in is None or endpoint.price_out is None:
        return None
    return (input_tokens * endpoint.price_in + output_tokens * endpoint.price_out) / 1e6


def estimate(job: Job) -> Estimate:
    """Count what will be asked: on all partitions of a small input, on a sample of a large one.

    Sends no request: where the server counts the tokens, the bundled tokenizer stands in and
    nothing is exact. Reads and tokenizes about 4 MB at most.
    """
    from dask.base import compute
    from dask.delayed import delayed

    sums = np.zeros(4)
    is_exact, unlimited = True, 0
    most = max(1, ESTIMATE_BYTES // (job.block_bytes or SMALLEST_BLOCK))
    for chain in job.chains:
        parts = [part for part in job.parts if part.chain is chain]
        sample = parts[:: -(-len(parts) // most)]
        counting = counting_here(chain)
        lazy = [delayed(counted)(counting, part.frame) for part in sample]
        for one in compute(*lazy, scheduler="synchronous"):
            each = [one.documents, one.requests, one.input_tokens, one.output_most]
            sums += np.array(each) * (len(parts) / len(sample))
            unlimited += one.unlimited
        is_exact = is_exact and counting is chain and len(sample) == len(parts)
        is_exact = is_exact and not asks_by_answers(chain)
    rows, requests, input_tokens, output_tokens = (round(number) for number in sums)
    return Estimate(
        rows=rows,
        requests=requests,
        input_tokens=input_tokens,
        output_tokens_at_most=None if unlimited else output_tokens,
        is_exact=is_exact,
    )


def counting_here(chain: Chain) -> Chain:
    """Return a chain that counts on this machine: the same one, or one with a stand-in."""
    if chain.tokenizer.engine != TOKENIZE_ROUTE:
        return chain
    return replace(chain, tokenizer=load_tokenizer("bundled"))


def asks_by_answers(chain: Chain) -> bool:
    """Tell whether answers decide what is asked next: then requests are counted as a least."""
    return isinstance(chain.task, FlowTask)


# --- one partition --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Requests one by one.

    Attributes:
        row: the place of the row that each belongs to.
        input_tokens: of the whole rendered prompt.
        samples: how many it asks for.
        limit: output tokens of all its samples; 0 where there is no limit.
    """

    row: Any
    input_tokens: Any
    samples: Any
    limit: Any


def sizes(chain: Chain, prepared: Any) -> Sizes:
    """Return the sizes of all first requests about rows that `chain.prepare` made."""
    asked = list(first_requests(chain.generate, prepared))
    rendered = [_rendered(chain, request) for _, request in asked]
    samples = np.array([request.sampling.n for _, request in asked], dtype="int64")
    limits = [request.sampling.max_output_tokens or 0 for _, request in asked]
    return Sizes(
        row=np.array([row for row, _ in asked], dtype="int64"),
        input_tokens=np.asarray(chain.tokenizer.count(rendered), dtype="int64"),
        samples=samples,
        limit=np.array(limits, dtype="int64") * samples,
    )


def _rendered(chain: Chain, request: Request) -> str:
    if request.kind == "chat":
        # A flow may send what the template refuses: the server decides about that, not the count.
        with contextlib.suppress(TokenizerError):
            return chain.tokenizer.render(request.messages)
    return request.prompt()


def counted(chain: Chain, frame: Any) -> Counted:
    """Count one partition of one task."""
    prepared = chain.prepare(frame)
    found = sizes(chain, prepared)
    expected = guessed_tokens(chain, found)
    return Counted(
        parts=1,
        documents=len(frame),
        rows=len(np.unique(found.row)),
        requests=len(found.row),
        input_tokens=int(found.input_tokens.sum()),
        output_low=float(expected.sum()) * GUESSED_SHARE,
        output_expected=float(expected.sum()),
        output_most=int(found.limit.sum()),
        unlimited=int((found.limit == 0).sum()),
        stored_bytes=to_table(prepared, schema_of(prepared)).nbytes,
    )


def guessed_tokens(chain: Chain, found: Sizes) -> Any:
    """Guess the length of every answer: a ratio to its text, or half of its limit; see `ground`."""
    text = np.maximum(found.input_tokens - chain.overhead_tokens, 0) * found.samples
    ratio = written_ratio(chain.task)
    if ratio is not None:
        expected = ratio * text
    else:
        expected = GUESSED_SHARE * np.where(found.limit > 0, found.limit, text)
    return np.where(found.limit > 0, np.minimum(expected, found.limit), expected)


def written_ratio(task: Task | FlowTask) -> float | None:
    """Return the published tokens of an answer for each of its text; None where there is none.

    A ratio that was measured on outputs with their source in front, or with some items left out,
    does not tell what the model writes.
    """
    if not isinstance(task, Task):
        return None
    is_measured = not any(isinstance(step, PrependSource | SampleItems) for step in task.clean)
    return task.published_ratio if is_measured else None


def ground(task: Task | FlowTask) -> str:
    """Return in words what `guessed_tokens` stands on."""
    ratio = written_ratio(task)
    if ratio is not None:
        return f"{ratio:g} tokens for each of the text, as published"
    if isinstance(task, Task) and task.full_sampling.max_output_tokens:
        return f"half of its limit of {task.full_sampling.max_output_tokens:,}"
    return "half of its limits; where there is none, half of the text"


def by_frame(job: Job) -> list[tuple[Sequence[Chain], Any]]:
    """Return (chains, partition) for every partition, so that each is read once for all tasks."""
    shared: dict[int, tuple[list[Chain], Any]] = {}
    for part in job.parts:
        shared.setdefault(id(part.frame), ([], part.frame))[0].append(part.chain)
    return list(shared.values())
