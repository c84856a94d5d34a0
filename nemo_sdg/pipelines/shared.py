"""Values that all parts of a run have in common, unpickled once in each process."""

from __future__ import annotations

import functools
from typing import Any

import cloudpickle


class Shared:
    """A value on its way to workers: every task brings its bytes, the first unpickles them.

    What is computed of it once, such as the compiled prompt of a chain, is there for the parts that
    follow. It must not be changed.
    """

    def __init__(self, value: Any) -> None:
        self._written: bytes = cloudpickle.dumps(value)

    @property
    def value(self) -> Any:
        """The value, one object in a process."""
        return _read(self._written)


@functools.lru_cache(maxsize=32)
def _read(written: bytes) -> Any:
    return cloudpickle.loads(written)


def forget() -> None:
    """Let go of all values in this process; a run that is still at work makes its own anew."""
    _read.cache_clear()
