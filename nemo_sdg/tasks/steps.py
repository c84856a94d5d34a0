"""Steps of a task's `clean` chain that are more than a function of one column.

A chain may hold, in any order:

- a function from a column to a column (`nemo_sdg.text.clean`), applied to the output column, or to
  the elements where the output is a list;
- a filter (`nemo_sdg.text.filters`), which drops rows and says why;
- one of the values below. They only declare; `nemo_sdg.stages.reshape` carries them out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinSegments:
    """Put the segments of a document back together: one row a document, in segment order."""

    separator: str = "\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleItems:
    """Shuffle a list with the row's seed and keep the first k.

    k is uniform in 1 .. max(1, floor(max_items * tokens of the source / tokens_per_item)), the
    length rule of Nemotron-CC; 150 tokens an item is its figure. With `tokens_per_item=None`, k is
    uniform in 1 .. max_items.
    """

    max_items: int = 1
    tokens_per_item: int | None = 150


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinItems:
    """Make one text of a list. The list itself stays at hand for `--shape rows`."""

    separator: str = "\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class PrependSource:
    """Put the segment's own text, and the separator, in front of the output."""

    separator: str = "\n\n"


join_segments = JoinSegments()
join_lines = JoinItems(separator="\n")
join_paragraphs = JoinItems(separator="\n\n")
prepend_source = PrependSource()

STEPS = JoinSegments | SampleItems | JoinItems | PrependSource
