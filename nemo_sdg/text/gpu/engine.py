"""Count columns that lie on a GPU where they lie, and leave to the CPU what the kernels do not do.

Nothing here touches a GPU, or imports numba, before the first such column comes.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nemo_sdg.data.backend import array_module, to_arrow
from nemo_sdg.data.device import from_device, is_text, text_buffers
from nemo_sdg.errors import TokenizerError
from nemo_sdg.text.counted import counted_here
from nemo_sdg.text.engines import Counts, Engine, ExactEngine, Texts
from nemo_sdg.text.fast import is_failure
from nemo_sdg.text.gpu.status import REASONS
from nemo_sdg.text.hard_strings import hard_strings, hard_strings_for

if TYPE_CHECKING:
    from nemo_sdg.text.lines import LineTokens
    from nemo_sdg.text.spans import Spans

_log = logging.getLogger(__name__)

# Whose errors are failures of the card, its driver or its libraries, and not ours.
_LIBRARIES = {"numba", "cupy", "cupy_backends", "cuda", "rmm"}


class Off(NamedTuple):
    """Why kernels count nothing: the reason that reports show, and a sentence."""

    reason: str
    words: str


class GpuEngine:
    """Counts cuDF columns with kernels, everything else with the engine for the CPU.

    Where the tokenizer cannot be compiled, or the kernels differ from the reference on one of the
    strings of `hard_strings`, or fail, the CPU counts everything, and `notes` and the run's report
    say why. Where the GPU has no memory left, it counts that column. Safe for threads.

    Reasons why the CPU counts a row are those of `status.REASONS`, and `tokenizer`, `missing`,
    `self_check`, `failed`, `no_memory`, `no_text` for whole columns.
    """

    def __init__(self, cpu: Engine, reference: ExactEngine | None, content: str | None) -> None:
        """Take what is needed to begin later.

        Args:
            cpu: counts what does not lie on a GPU, and what the kernels leave.
            reference: what the kernels are held against; None where `content` is.
            content: the tokenizer.json of both, None where there is none.
        """
        self._cpu = cpu
        self._reference = reference
        self._content = content
        self._counter: Any = None
        self._off: Off | None = None
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """What counts: the library on the CPU, and the kernels where they are in use."""
        return f"{self._cpu.name}, GPU kernels" if self._counter is not None else self._cpu.name

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about it."""
        return (*self._cpu.notes, *([self._off.words] if self._off else []))

    def count(self, texts: Texts) -> Counts:
        """Count the tokens of every text, on the CPU."""
        return self._cpu.count(texts)

    def count_lines(self, lines: Spans) -> tuple[Counts, LineTokens | None]:
        """Count lines, on the CPU."""
        return self._cpu.count_lines(lines)

    def starts(self, text: str) -> Counts:
        """Give the first character of every token."""
        return self._cpu.starts(text)

    def count_column(self, series: Any) -> Any:
        """Count the tokens of a cuDF text column: int64 column with its index; null counts 0.

        The text stays where it is, but for rows that the kernels leave to the CPU.
        """
        try:
            counter = self._open()
            if counter is not None and is_text(series):
                return from_device(self._on_device(counter, series), like=series)
            reason = self._off.reason if self._off else "no_text"
        except MemoryError:  # the next column may fit
            reason = "no_memory"
            note = "the GPU had no memory left to count a column: the processor counted it"
            _log.warning("%s (%d rows)", note, len(series))
            counted_here().note(note)
        except BaseException as error:
            if not _is_failure(error):
                raise
            reason = "failed"
            self._switch_off(reason, f"they failed ({type(error).__name__}: {_first_line(error)})")
        # Out of the handler: what the error holds on to is device memory.
        return self._on_cpu(series, reason)

    def _on_device(self, counter: Any, series: Any) -> Any:
        with text_buffers(series) as (chars, offsets):
            counts, status = counter.count(chars, offsets)
            sizes = offsets[1:] - offsets[:-1]
        xp = array_module(counts)
        is_null = series.isna().values
        counts[is_null] = status[is_null] = 0
        left = xp.flatnonzero(status)
        if len(left):
            texts = to_arrow(series.take(left))
            counts[left] = xp.asarray(self._cpu.count(texts))
        self._note(xp, status, sizes)
        return counts

    def _note(self, xp: Any, status: Any, sizes: Any) -> None:
        if not len(status):
            return
        rows = xp.bincount(status).tolist()
        num_bytes = xp.bincount(status, weights=sizes).tolist()
        counted = counted_here()
        counted.add_gpu(rows[0], int(num_bytes[0]))
        for code, reason in REASONS.items():
            if code < len(rows) and rows[code]:
                counted.add_cpu(reason, rows[code], int(num_bytes[code]))

    def _on_cpu(self, series: Any, reason: str) -> Any:
        texts = to_arrow(series)
        counted = counted_here()
        counted.add_texts(reason, texts)
        if self._off is not None:
            counted.note(self._off.words)
        return from_device(array_module(series).asarray(self._cpu.count(texts)), like=series)

    def _open(self) -> Any:
        """Give the counter, which the first column makes; None where kernels are switched off."""
        with self._lock:
            if self._counter is None and self._off is None:
                self._off = self._refused()
            return self._counter

    def _refused(self) -> Off | None:
        if self._content is None or self._reference is None:
            return _off("tokenizer", "this tokenizer is not byte-level BPE from a tokenizer.json")
        try:
            counter = open_counter(self._content)
        except ImportError as error:
            return _off("missing", f"numba-cuda or cupy cannot be imported ({_first_line(error)})")
        except TokenizerError as error:
            return _off("tokenizer", f"they do not do what this tokenizer asks for ({error})")
        strings = hard_strings() + hard_strings_for(self._reference.tokenizer)
        wrong = differences(counter, self._reference, strings)
        if wrong:
            return _off(
                "self_check",
                f"they count {len(wrong)} of {len(strings)} test strings otherwise than tokenizers",
            )
        self._counter = counter
        return None

    def _switch_off(self, reason: str, why: str) -> None:
        with self._lock:
            self._counter = None
            if self._off is None:
                self._off = _off(reason, why)


def open_counter(content: str) -> Any:
    """Compile a tokenizer.json and put its tables on the device.

    Raises:
        TokenizerError: it holds something that the kernels do not do.
        ImportError: numba-cuda or cupy is not installed.
    """
    from nemo_sdg.text.gpu.device import DeviceCounter
    from nemo_sdg.text.gpu.tables import compile_tokenizer

    return DeviceCounter(compile_tokenizer(content))


def differences(counter: Any, reference: ExactEngine, strings: list[str]) -> list[str]:
    """Give the strings whose counts on the device are not those of the reference."""
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


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]


def _off(reason: str, why: str) -> Off:
    words = f"GPU kernels do not count tokens: {why}; the processor counts them"
    _log.warning("%s", words)
    return Off(reason, words)
