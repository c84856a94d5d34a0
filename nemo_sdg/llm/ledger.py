"""The ledger: every answer that was paid for, on disk, found again by its key.

    ledger = Ledger(folder, writer=True)
    ledger.put(entry(key, meta, body))      # returns once the operating system has it
    ledger.get_many([key, other])           # the entries' bytes, or None

It keeps raw replies, so that changed parsing and cleaning cost nothing. Each writer appends JSON
lines to a file of its own (`ledger_files`). A file that has grown, or whose writer is gone, is
sealed: compressed, with a sorted index that is mapped (`ledger_segment`, `ledger_seal`); small
sealed files are merged (`ledger_tidy`). Readers take sealed files and complete lines of open ones.

Two guarantees: an answer counts only after it was handed to the operating system (no process kill
loses it); the loss of a node costs at most what came after the last `sync`.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

from nemo_sdg.errors import RunFolderError
from nemo_sdg.llm.ledger_entry import (
    KEY_AT,
    entries_of,
    entry,
    is_whole,
    key_of,
    read_reply,
    split_samples,
)
from nemo_sdg.llm.ledger_files import OPEN, LedgerFull, OpenFile, complete_lines, sync_folder
from nemo_sdg.llm.ledger_index import SealedFiles
from nemo_sdg.llm.ledger_segment import FORMAT_VERSION, SEALED
from nemo_sdg.llm.ledger_tidy import SEAL_BYTES, Housekeeper, seal_own

__all__ = [
    "FORMAT_VERSION",
    "Ledger",
    "LedgerFull",
    "entries_of",
    "entry",
    "read_reply",
    "split_samples",
]

_MAX_HANDLES = 64
"""Open files of writers that are held open for reading."""

_TRIES = 10
"""How often a folder that changes all the time is listed again."""


class _Lines:
    """What is known of an open file: how far it was read, and the keys found there."""

    __slots__ = ("end", "keys", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.end = 0
        self.keys: list[bytes] = []


class Ledger:
    """Answers in a folder, by key. Not safe for threads; safe for any number of processes.

    `sync` and `refresh` may run in a thread while the owner does something else.

    Args:
        folder: made if missing, mode 0700.
        writer: whether `put` will be called; a reader makes no file.
        load: read what is there at once; without it `refresh` must be called first.

    Attributes:
        bytes_read: what has been read of the files so far, to tell that it goes on.

    Memory: about 200 bytes an entry of open files, which are sealed at 4 MB; indexes of sealed
    files are mapped. Opening reads open files once, and the indexes, 12 bytes an entry.
    """

    def __init__(self, folder: str | Path, *, writer: bool = False, load: bool = True) -> None:
        self.folder = Path(folder)
        self.bytes_read = 0
        self._index: dict[bytes, tuple[_Lines, int, int]] = {}
        self._open: dict[Path, _Lines] = {}
        self._sealed = SealedFiles()
        self._handles: OrderedDict[Path, int] = OrderedDict()
        self._own: OpenFile | None = None
        self._full: list[OpenFile] = []
        self._name_is_new = False
        self._housekeeper = Housekeeper(self.folder)
        try:
            if writer:
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._begin_file()
                self._sync_name()
            if load:
                self.refresh()
        except OSError as error:
            self.close()
            raise self._unusable("opened", error) from None
        except RunFolderError:
            self.close()
            raise

    def __len__(self) -> int:
        """Return the number of entries; a key that was filed in two files counts twice."""
        return len(self._index) + len(self._sealed)

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def get(self, key: str) -> bytes | None:
        """Return the entry of a key, or None where there is none that can be read.

        Raises:
            RunFolderError: the file it stands in cannot be read any more.
        """
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the entry of each key, or None where there is none that can be read.

        One call for many keys: each sealed file is looked into once, and each block unpacked once.

        Raises:
            RunFolderError: a file that an entry stands in cannot be read any more.
        """
        try:
            for _ in range(_TRIES):
                with contextlib.suppress(FileNotFoundError):  # sealed or merged meanwhile
                    return self._found(keys)
                self.refresh()
            return self._found(keys)
        except OSError as error:
            raise self._unusable("read", error) from None

    def put(self, line: bytes) -> None:
        """Append an entry; when this returns, killing the process loses nothing.

        Raises:
            LedgerFull: the disk is full; the file ends with the last complete entry.
        """
        self.put_many([line])

    def put_many(self, lines: Sequence[bytes]) -> None:
        """Append several entries with one call of the operating system; see `put`.

        Raises:
            LedgerFull: the disk is full; its `num_filed` first entries had room and are filed.
        """
        own = self._own
        if own is None:
            raise RunFolderError("this ledger was opened for reading")
        if own.end >= SEAL_BYTES or own.was_taken():
            own = self._next_file(own)
        at = own.end
        num_filed = len(lines)
        try:
            own.append(b"".join(lines))
        except LedgerFull as error:
            num_filed = error.num_filed
            raise
        finally:
            self._note(own, at, lines[:num_filed])

    def _note(self, own: OpenFile, at: int, lines: Sequence[bytes]) -> None:
        """Remember where entries stand that were filed just now."""
        known = self._open[own.path]
        known.end = own.end
        for line in lines:
            key = bytes.fromhex(line[KEY_AT].decode())
            known.keys.append(key)
            self._index[key] = (known, at, len(line))
            at += len(line)

    def refresh(self, *, max_bytes: int | None = None) -> bool:
        """Take in what other writers have appended since, and what was sealed.

        Args:
            max_bytes: leave the rest for the next call once this much has been read.

        Returns:
            Whether all was read that stood there.

        Raises:
            RunFolderError: a file cannot be read, or is none of ours.
        """
        until = None if max_bytes is None else self.bytes_read + max_bytes
        try:
            for _ in range(_TRIES):
                sealed, unsealed = self._listed()
                is_done, is_stale = self._read(sealed, unsealed, until)
                if not is_done:
                    return False
                if not is_stale:
                    break
        except OSError as error:
            raise self._unusable("read", error) from None
        # Last, when all that took their place is known.
        self._forget(sealed, unsealed)
        return True

    def entries(self) -> Iterator[bytes]:
        """Yield every entry once, those of damaged blocks left out."""
        yield from self._sealed.entries()
        for raw in list(self._index):
            key = raw.hex()
            is_new = self._sealed.get_many([key]) == [None]
            if is_new and (line := self._from_open(key)) is not None:
                yield line

    def sync(self) -> None:
        """Force what was filed to the disk; a blocking call, cheap when nothing is new.

        Raises:
            LedgerFull: the disk takes no more.
        """
        for file in [*self._full, *([self._own] if self._own else [])]:
            file.sync()
        self._sync_name()

    def tidy(self) -> None:
        """Seal what dead writers left and merge small files, in a thread, while this is open."""
        self._housekeeper.tidy()

    def close(self) -> None:
        """Sync, seal the own file and let go of all. An own file without an entry is removed."""
        try:
            self.sync()
            self._housekeeper.close()
        finally:
            own, self._own = self._own, None
            if own is not None:
                seal_own(own)
            for handle in self._handles.values():
                os.close(handle)
            self._handles.clear()

    # --- writing ---------------------------------------------------------------------------------

    def _begin_file(self) -> OpenFile:
        self._own = own = OpenFile(self.folder)
        lines = self._open[own.path] = _Lines(own.path)
        lines.end = own.end
        self._name_is_new = True
        return own

    def _next_file(self, own: OpenFile) -> OpenFile:
        """Begin another file, and have this one sealed beside the work."""
        self._full = [*(file for file in self._full if not file.is_closed), own]
        try:
            made = self._begin_file()
        except OSError as error:
            raise LedgerFull(
                f"the answer cannot be filed ({error.strerror}) in {self.folder}; what is filed is "
                "safe: make room and run the same command again"
            ) from None
        self._housekeeper.seal(own)
        return made

    def _sync_name(self) -> None:
        if self._name_is_new:
            self._name_is_new = False
            sync_folder(self.folder)

    # --- looking up ------------------------------------------------------------------------------

    def _found(self, keys: Sequence[str]) -> list[bytes | None]:
        if not self._index:
            return self._sealed.get_many(keys)
        found = [self._from_open(key) for key in keys]
        left = [i for i, line in enumerate(found) if line is None]
        sealed = self._sealed.get_many([keys[i] for i in left])
        for i, entry_or_none in zip(left, sealed, strict=True):
            found[i] = entry_or_none
        return found

    def _from_open(self, key: str) -> bytes | None:
        raw = bytes.fromhex(key)
        found = self._index.get(raw)
        if found is None:
            return None
        lines, offset, length = found
        line = os.pread(self._handle(lines.path), length, offset)
        # To decode it costs as much as a checksum would: 2.4 and 2.1 microseconds for 2 KB.
        if is_whole(line):
            return line
        del self._index[raw]  # damaged on disk: as if it had never been filed
        return None

    def _handle(self, path: Path) -> int:
        handle = self._handles.get(path)
        if handle is None:
            while len(self._handles) >= _MAX_HANDLES:
                os.close(self._handles.popitem(last=False)[1])
            handle = self._handles[path] = os.open(path, os.O_RDONLY)
        self._handles.move_to_end(path)
        return handle

    # --- what stands in the folder ---------------------------------------------------------------

    def _listed(self) -> tuple[list[Path], list[Path]]:
        """Return sealed and open files, as two looks in a row agree on them.

        A single look may see neither the open file that goes nor the sealed one that comes.
        """
        names = None
        for _ in range(_TRIES):
            before = names
            try:
                names = sorted(os.listdir(self.folder))
            except FileNotFoundError:
                names = []
            if names == before:
                break
        assert names is not None
        return (
            [self.folder / name for name in names if name.endswith(SEALED)],
            [self.folder / name for name in names if name.endswith(OPEN)],
        )

    def _read(
        self, sealed: Sequence[Path], unsealed: Sequence[Path], until: int | None
    ) -> tuple[bool, bool]:
        """Read what is new; return whether that was all, and whether a file had gone meanwhile."""
        is_stale = False
        for path in [*sealed, *unsealed]:
            try:
                self._take_in(path, until)
            except FileNotFoundError:  # sealed, merged or removed since it was listed
                is_stale = True
            if until is not None and self.bytes_read >= until:
                return False, is_stale
        return True, is_stale

    def _take_in(self, path: Path, until: int | None) -> None:
        if path.name.endswith(SEALED):
            self.bytes_read += self._sealed.add(path)
        elif self._own is None or path != self._own.path:
            lines = self._open.get(path) or _Lines(path)
            if path.stat().st_size > lines.end:
                self._scan(lines, until)

    def _scan(self, lines: _Lines, until: int | None) -> None:
        self._open[lines.path] = lines
        for offset, line in complete_lines(lines.path, lines.end):
            self.bytes_read += offset + len(line) - lines.end
            lines.end = offset + len(line)
            if key := key_of(line):
                lines.keys.append(key)
                self._index[key] = (lines, offset, len(line))
            if until is not None and self.bytes_read >= until:
                break

    def _forget(self, sealed: Sequence[Path], unsealed: Sequence[Path]) -> None:
        """Let go of files that are not there any more."""
        self._sealed.keep(sealed)
        for path in self._open.keys() - set(unsealed):
            lines = self._open.pop(path)
            for key in lines.keys:
                if key in self._index and self._index[key][0] is lines:
                    del self._index[key]
            if (handle := self._handles.pop(path, None)) is not None:
                os.close(handle)

    def _unusable(self, what: str, error: OSError) -> RunFolderError:
        return RunFolderError(f"the ledger cannot be {what}: {error.strerror}: {self.folder}")
