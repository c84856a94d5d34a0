"""The ledger: every answer that was paid for, on disk, found again by its key.

    ledger = Ledger(folder, writer=True)
    ledger.put(entry(key, meta, body))      # returns once the operating system has it
    ledger.get(key)                         # the entry's bytes, or None

It keeps raw replies, so that changed parsing and cleaning cost nothing. One JSON line an entry:
`{"k":"<32 hex>","m":{what belongs to the call},"r":{the reply as it came}}`. Each writer has a
file of its own, appended and never changed; readers take complete lines of all files, so a torn
tail costs that line and nothing else.

Two guarantees: an answer counts only after it was handed to the operating system (no process kill
loses it); the loss of a node costs at most what came after the last `sync`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from nemo_sdg.errors import MalformedReply, RunFolderError, RunStopped
from nemo_sdg.llm.request import Reply, Usage, read_body

FORMAT_VERSION = 1
_HEADER = b'{"format":"nemo_sdg ledger","v":%d}\n'
_KEY_AT = slice(6, 38)
_SCAN_BYTES = 1 << 20
_MAX_HANDLES = 64
"""Files of other writers that are held open; a folder has one for each engine there ever was."""


class LedgerFull(RunStopped):
    """The disk takes no more answers; those that are filed are safe."""


def entry(key: str, meta: Mapping[str, Any], body: Mapping[str, Any]) -> bytes:
    """Return the line of one sample."""
    return orjson.dumps({"k": key, "m": meta, "r": body}) + b"\n"


def split_samples(body: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Return one body a sample; tokens of the whole reply stand in the first alone.

    Raises:
        MalformedReply: the reply holds fewer samples than were asked for.
    """
    if count == 1:
        return [dict(body)]
    choices = body.get("choices") or []
    if len(choices) < count:
        raise MalformedReply(f"{count} samples were asked for, the reply holds {len(choices)}")
    rest = {k: v for k, v in body.items() if k not in ("choices", "usage")}
    in_order = sorted(choices, key=lambda choice: choice.get("index") or 0)
    samples = [rest | {"choices": [choice]} for choice in in_order[:count]]
    samples[0]["usage"] = body.get("usage")
    return samples


def entries_of(
    keys: Sequence[str],
    body: Mapping[str, Any],
    *,
    model: str,
    endpoint: str,
    attempts: int,
    latency_s: float,
) -> list[bytes]:
    """Check a reply and return its lines, one for each key.

    Raises:
        MalformedReply: the reply is not what the protocol says, or lacks samples.
    """
    read_body(body)
    try:
        Usage.from_body(body.get("usage"))
    except (AttributeError, TypeError, ValueError) as error:
        raise MalformedReply(f"the usage of the reply cannot be read: {error!r}") from None
    meta = {
        "model": model,
        "endpoint": endpoint,
        "attempts": attempts,
        "latency_s": round(latency_s, 6),
        "at": round(time.time(), 3),
    }
    samples = split_samples(body, len(keys))
    return [entry(key, meta, sample) for key, sample in zip(keys, samples, strict=True)]


def read_reply(entries: Sequence[bytes], *, was_filed: bool) -> Reply:
    """Put the samples of one request back together."""
    decoded = [orjson.loads(line) for line in entries]
    parts = [read_body(value["r"]) for value in decoded]
    meta, body = decoded[0]["m"], decoded[0]["r"]
    choices, embeddings = parts[0]
    usage = Usage.from_body(body.get("usage"))
    for value, (more, vectors) in zip(decoded[1:], parts[1:], strict=True):
        choices, embeddings = choices + more, embeddings + vectors
        usage += Usage.from_body(value["r"].get("usage"))
    return Reply(
        choices=choices,
        embeddings=embeddings,
        usage=usage,
        model=str(body.get("model") or meta.get("model") or ""),
        keys=tuple([value["k"] for value in decoded]),
        endpoint=meta.get("endpoint", ""),
        attempts=meta.get("attempts", 1),
        latency_s=meta.get("latency_s", 0.0),
        was_filed=was_filed,
    )


class Ledger:
    """Answers in a folder, by key. Not safe for threads; safe for any number of processes.

    Args:
        folder: made if missing, mode 0700.
        writer: whether `put` will be called; a reader makes no file.

        load: read what is there at once; without it `refresh` must be called first.

    Attributes:
        bytes_read: what has been read of the files so far, to tell that it goes on.

    Memory: about 150 bytes an entry for the index. Opening reads every file once.
    """

    def __init__(self, folder: str | Path, *, writer: bool = False, load: bool = True) -> None:
        self.folder = Path(folder)
        self.bytes_read = 0
        self._index: dict[bytes, tuple[int, int, int]] = {}
        self._files: list[Path] = []
        self._numbers: dict[Path, int] = {}
        self._handles: OrderedDict[int, int] = OrderedDict()
        self._ends: dict[Path, int] = {}
        self._out: int | None = None
        self._dirty = False
        try:
            if writer:
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if writer:
                self._open_for_writing()
            if load:
                self.refresh()
        except OSError as error:
            raise self._unusable("opened", error) from None
        except RunFolderError:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: str) -> bool:
        return bytes.fromhex(key) in self._index

    def get(self, key: str) -> bytes | None:
        """Return the entry of a key, or None where there is none that can be read.

        Raises:
            RunFolderError: the file it stands in cannot be read any more.
        """
        found = self._index.get(bytes.fromhex(key))
        if found is None:
            return None
        number, offset, length = found
        try:
            line = os.pread(self._handle(number), length, offset)
        except OSError as error:
            raise self._unusable("read", error) from None
        try:
            read_body(orjson.loads(line)["r"])
        except (orjson.JSONDecodeError, KeyError, MalformedReply):
            # Damaged on disk: as if it had never been filed.
            del self._index[bytes.fromhex(key)]
            return None
        return line

    def put(self, line: bytes) -> None:
        """Append an entry; when this returns, killing the process loses nothing.

        Raises:
            LedgerFull: the disk is full; the file ends with the last complete entry.
        """
        self.put_many([line])

    def put_many(self, lines: Sequence[bytes]) -> None:
        """Append several entries with one call of the operating system; see `put`."""
        if self._out is None:
            raise RunFolderError("this ledger was opened for reading")
        number, end = self._own, self._ends[self._files[self._own]]
        data = b"".join(lines)
        try:
            written = 0
            while written < len(data):
                written += os.write(self._out, data[written:])
        except OSError as error:
            os.ftruncate(self._out, end)
            raise LedgerFull(
                f"the answer cannot be filed ({error.strerror}) in {self.folder}; what is filed "
                "is safe: make room and run the same command again"
            ) from None
        for line in lines:
            self._index[bytes.fromhex(line[_KEY_AT].decode())] = (number, end, len(line))
            end += len(line)
        self._ends[self._files[number]] = end
        self._dirty = True

    def refresh(self, *, max_bytes: int | None = None) -> bool:
        """Take in what other writers have appended since.

        Args:
            max_bytes: leave the rest for the next call once this much has been read.

        Returns:
            Whether all was read that stood there.

        Raises:
            RunFolderError: a file cannot be read, or is none of ours.
        """
        until = None if max_bytes is None else self.bytes_read + max_bytes
        try:
            for path in sorted(self.folder.glob("*.jsonl")):
                if self._out is not None and path == self._files[self._own]:
                    continue
                with contextlib.suppress(FileNotFoundError):  # a writer without entries took it
                    if path.stat().st_size > self._ends.get(path, 0):
                        self._scan(path, until)
                if until is not None and self.bytes_read >= until:
                    return False
        except OSError as error:
            raise self._unusable("read", error) from None
        return True

    def entries(self) -> Iterator[bytes]:
        """Yield every entry once."""
        for key in list(self._index):
            if line := self.get(key.hex()):
                yield line

    def sync(self) -> None:
        """Force what was filed to the disk; a blocking call, cheap when nothing is new."""
        if self._out is not None and self._dirty:
            self._dirty = False
            try:
                os.fdatasync(self._out)
            except OSError as error:
                raise LedgerFull(
                    f"the disk takes no more answers ({error.strerror}) in {self.folder}; make "
                    "room and run the same command again"
                ) from None

    def close(self) -> None:
        """Sync and let go of all files. An own file without an entry is removed."""
        self.sync()
        if self._out is not None:
            os.close(self._out)
            path = self._files[self._own]
            if self._ends[path] <= len(_HEADER % FORMAT_VERSION):
                path.unlink(missing_ok=True)
            self._out = None
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()

    def _open_for_writing(self) -> None:
        host = "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:40]
        path = self.folder / f"{host}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        self._out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        header = _HEADER % FORMAT_VERSION
        os.write(self._out, header)
        self._own = self._number(path)
        self._ends[path] = len(header)
        # Syncing a file does not sync its name: the loss of a node could take the whole file.
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some network file systems cannot, and need not
                os.fsync(folder)
        finally:
            os.close(folder)

    def _number(self, path: Path) -> int:
        if path not in self._numbers:
            self._numbers[path] = len(self._files)
            self._files.append(path)
            self._ends[path] = 0
        return self._numbers[path]

    def _handle(self, number: int) -> int:
        handle = self._handles.get(number)
        if handle is None:
            while len(self._handles) >= _MAX_HANDLES:
                os.close(self._handles.popitem(last=False)[1])
            handle = self._handles[number] = os.open(self._files[number], os.O_RDONLY)
        self._handles.move_to_end(number)
        return handle

    def _unusable(self, what: str, error: OSError) -> RunFolderError:
        return RunFolderError(f"the ledger cannot be {what}: {error.strerror}: {self.folder}")

    def _scan(self, path: Path, until: int | None) -> None:
        with path.open("rb", buffering=_SCAN_BYTES) as file:
            number = self._number(path)
            offset = self._ends[path]
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # a torn tail, or a writer in the middle of a line: read it next time
                if offset == 0:
                    self._check_header(path, line)
                elif line.startswith(b'{"k":"') and line.endswith(b"}\n"):
                    try:
                        key = bytes.fromhex(line[_KEY_AT].decode("ascii"))
                    except ValueError:
                        key = b""
                    if len(key) == 16:
                        self._index[key] = (number, offset, len(line))
                offset += len(line)
                self.bytes_read += len(line)
                if until is not None and self.bytes_read >= until:
                    break
        self._ends[path] = offset

    @staticmethod
    def _check_header(path: Path, line: bytes) -> None:
        try:
            version = orjson.loads(line).get("v")
        except (orjson.JSONDecodeError, AttributeError):
            version = None
        if version != FORMAT_VERSION:
            raise RunFolderError(
                f"{path} is no ledger of version {FORMAT_VERSION}; it was written by another "
                "version of nemo_sdg, or is another file"
            )
