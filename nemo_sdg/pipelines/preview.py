"""A few rows beside their source, before a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_sdg.checks import expect
from nemo_sdg.data.frames import to_rows
from nemo_sdg.pipelines.begin import asking
from nemo_sdg.pipelines.chain import Chain
from nemo_sdg.pipelines.job import planned_rows
from nemo_sdg.pipelines.progress import Quiet
from nemo_sdg.pipelines.recipe import Recipe


def preview(
    recipe: Recipe, *, output: str | Path | None = None, rows: int = 5
) -> list[dict[str, Any]]:
    """Ask about the first rows and return source beside answer; writes no data.

    With `output` the answers are filed in that run's ledger (the recipe's where it names one), so
    that the run does not pay again.

    Returns:
        One dict a row: `task`, `id`, `source` (None for tasks without input), `output`, `error`.
    """
    expect(recipe, Recipe, "preview: recipe")
    # A preview with `limit` sees the rows that the run will see, at their own ids.
    limit = min(rows, recipe.limit or rows)
    with asking(recipe, output, Quiet(), limit=limit, workers=1) as (job, _):
        shown: list[dict[str, Any]] = []
        for chain in job.chains:
            frames = [part.frame.compute() for part in job.parts if part.chain is chain]
            shown += _previewed(chain, frames, recipe, rows)
        return shown


def _previewed(
    chain: Chain, frames: list[Any], recipe: Recipe, rows: int
) -> Iterator[dict[str, Any]]:
    if chain.task.plan is not None:
        frames = [
            planned_rows(chain.task, 0, rows, recipe.num_samples, recipe.seed, recipe.id_field)
        ]
    left = rows
    for frame in frames:
        asked = chain.prepare(frame).head(left)
        left -= len(asked)
        answered = chain.generate.apply(asked)
        for row in to_rows(answered):
            output = {name: row[name] for name in chain.task.columns}
            error = row[f"{chain.task.output}_error"]
            yield {
                "task": chain.task.name,
                "id": row.get(recipe.id_field),
                "source": row.get(recipe.text_field) if chain.reads_documents else None,
                "output": output if len(output) > 1 else output[chain.task.output],
                "error": error,
            }
