"""One source, compiled three ways.

A `function` is machine code on the CPU (numba), part of a kernel on a GPU (numba-cuda compiles it
anew for the card where a kernel calls it), and plain Python in numba-cuda's simulator, which
`NUMBA_ENABLE_CUDASIM=1` in the environment chooses before numba is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

_F = TypeVar("_F", bound=Callable[..., Any])

SIMULATED = bool(numba.config.ENABLE_CUDASIM)


def function(body: _F) -> _F:
    """Compile a function for the CPU, where a kernel may call it too; the result is cached."""
    if SIMULATED:
        return body
    compiled: _F = numba.njit(cache=True, nogil=True)(body)
    return compiled
