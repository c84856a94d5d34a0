"""Documents as partitioned frames: reading, row ids, writing.

`DocumentDataset` is imported on first use, so that `import nemo_sdg.data` stays cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemo_sdg.data.dataset import DocumentDataset

__all__ = ["DocumentDataset"]


def __getattr__(name: str) -> Any:
    if name == "DocumentDataset":
        from nemo_sdg.data.dataset import DocumentDataset

        return DocumentDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
