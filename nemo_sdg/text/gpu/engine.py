"""Count columns that lie on a GPU where they lie, and leave to the CPU what the kernels do not do.

Nothing here touches a GPU, or imports numba, before the first such column comes.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from nemo_sdg.data.backend import array_module, to_arrow
from nemo_sdg.data.device import from_device, text_buffers
from nemo_sdg.errors import TokenizerError
from nemo_sdg.text.engines import Counts, Engine, ExactEngine, Texts
from nemo_sdg.text.fast import is_failure
from nemo_sdg.text.hard_strings import hard_strings, hard_strings_for

_log = logging.getLogger(__name__)
_LIBRARIES = {"numba", "cupy", "cupy_backends", "cuda", "rmm"}


class GpuEngine:
    """Counts cuDF columns with kernels, everything else with the engine for the CPU.

    Where the tokenizer cannot be compiled, or the kernels differ from the reference on one of the
    strings of `hard_strings`, or fail, the CPU counts everything and `notes` say why. Safe for
    threads.

    Attributes:
        rows: rows of the columns that were counted by kernels.
        rows_on_cpu: those among them that the CPU counted: they hold an added token, are not in the
            normal form that the tokenizer asks for, or hold a word of over 1,024 bytes.
    """

    def __init__(self, cpu: Engine, reference: ExactEngine, content: str) -> None:
        """Take what is needed to begin later.

        Args:
            cpu: counts what does not lie on a GPU, and what the kernels leave.
            reference: what the kernels are held against.
            content: the tokenizer.json of both.
        """
        self._cpu = cpu
        self._reference = reference
        self._content = content
        self._counter: Any = None
        self._off = ""
        self._lock = threading.Lock()
        self.rows = 0
        self.rows_on_cpu = 0

    @property
    def name(self) -> str:
        """What counts: the library on the CPU, and the kernels where they are in use."""
        return f"{self._cpu.name}, GPU kernels" if self._counter is not None else self._cpu.name

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about it."""
        return (*self._cpu.notes, *([self._off] if self._off else []))

    def count(self, texts: Texts) -> Counts:
        """Count the tokens of every text, on the CPU."""
        return self._cpu.count(texts)

    def starts(self, text: str) -> Counts:
        """Give the first character of every token."""
        return self._cpu.starts(text)

    def count_column(self, series: Any) -> Any:
        """Count the tokens of a cuDF text column: int64 column with its index; null counts 0.

        The text stays where it is, but for rows that the kernels leave to the CPU.
        """
        try:
            counter = self._open()
            if counter is not None:
                return from_device(self._on_device(counter, series), like=series)
        except MemoryError:  # the next column may fit
            _log.warning("the GPU has no memory left to count %d rows: the CPU does", len(series))
        except BaseException as error:
            if not _is_failure(error):
                raise
            self._switch_off(f"they failed ({type(error).__name__}: {error})")
        xp = array_module(series)
        return from_device(xp.asarray(self._cpu.count(to_arrow(series))), like=series)

    def _on_device(self, counter: Any, series: Any) -> Any:
        counts, status = counter.count(*text_buffers(series))
        counts[series.isna().values] = 0
        xp = array_module(counts)
        left = xp.flatnonzero(status)
        if len(left):
            counts[left] = xp.asarray(self._cpu.count(to_arrow(series.take(left))))
        with self._lock:
            self.rows += len(counts)
            self.rows_on_cpu += len(left)
        return counts

    def _open(self) -> Any:
        with self._lock:
            if self._counter is None and not self._off:
                try:
                    counter = open_counter(self._content)
                    wrong = differences(counter, self._reference)
                except (ImportError, TokenizerError) as error:
                    self._off = _refusal(str(error))
                else:
                    if wrong:
                        self._off = _refusal(f"they cut {len(wrong)} test strings otherwise")
                    else:
                        self._counter = counter
            return self._counter

    def _switch_off(self, why: str) -> None:
        with self._lock:
            self._counter = None
            self._off = self._off or _refusal(why)


def open_counter(content: str) -> Any:
    """Compile a tokenizer.json and put its tables on the device.

    Raises:
        TokenizerError: it holds something that the kernels do not do.
        ImportError: numba-cuda or cupy is not installed.
    """
    from nemo_sdg.text.gpu.device import DeviceCounter
    from nemo_sdg.text.gpu.tables import compile_tokenizer

    return DeviceCounter(compile_tokenizer(content))


def differences(counter: Any, reference: ExactEngine) -> list[str]:
    """Give the hard strings whose counts on the device are not those of the reference."""
    strings = hard_strings() + hard_strings_for(reference.tokenizer)
    counts, status = counter.count_host(*host_buffers(strings))
    wanted = reference.count(strings)
    return [strings[row] for row in np.flatnonzero((counts != wanted) & (status == 0))]


def host_buffers(strings: list[str]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Give the bytes of texts one after the other, and where each begins and the last one ends."""
    parts = [text.encode() for text in strings]
    offsets = np.zeros(len(parts) + 1, np.int32)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    return np.frombuffer(b"".join(parts), np.uint8).copy(), offsets


def _is_failure(error: BaseException) -> bool:
    library = type(error).__module__.partition(".")[0]
    return is_failure(error) or (isinstance(error, Exception) and library in _LIBRARIES)


def _refusal(why: str) -> str:
    note = f"GPU kernels do not count: {why}; the text is counted on the CPU"
    _log.warning("%s", note)
    return note
