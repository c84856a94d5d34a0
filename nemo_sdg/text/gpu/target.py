"""One source, compiled three ways.

A `function` is machine code on the CPU (numba), part of a kernel on a GPU (numba-cuda compiles it
anew for the card where a kernel calls it), and plain Python in numba-cuda's simulator, which
`NUMBA_ENABLE_CUDASIM=1` in the environment chooses before numba is imported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba

_F = TypeVar("_F", bound=Callable[..., Any])

SIMULATED = bool(numba.config.ENABLE_CUDASIM)


def sources(folder: Path) -> str:
    """Return 16 hex digits that stand for all Python files in a folder."""
    written = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    return hashlib.blake2b(written, digest_size=8).hexdigest()


def stamped(body: _F) -> _F:
    """Name a function after the sources it was compiled with, and with it what is cached of it.

    numba looks at the file of a function only: one that it calls may have changed since, and what
    was compiled with the old one would go on counting.
    """
    body.__qualname__ = f"{body.__qualname__}_{_SOURCES}"
    return body


_SOURCES = sources(Path(__file__).parent)


def function(body: _F) -> _F:
    """Compile a function for the CPU, where a kernel may call it too; the result is cached."""
    if SIMULATED:
        return body
    compiled: _F = numba.njit(cache=True, nogil=True)(stamped(body))
    return compiled
