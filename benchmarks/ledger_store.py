"""In what should the ledger keep answers?

    python benchmarks/ledger_store.py [--quick] [--entries 100000]

Replies of about 2 KB, their texts English of this machine (see `rig/texts.py`), are
filed one at a time: each must be with the operating system before the next is taken, as the ledger
promises. One line a store: processor time an entry, until all is sealed or closed; opening;
1,000 random keys and 1,000 that were filed one after the other, in one call where the store can;
bytes on disk over zstd level 3 of all answers as they came, most and at the end. Files stay in the
page cache. LMDB is measured where it is installed (`pip install lmdb`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from rig import work
from rig.report import emit, options
from rig.texts import english

from nemo_sdg.llm.ledger import Ledger, entry
from nemo_sdg.llm.ledger_entry import KEY_AT
from nemo_sdg.llm.ledger_seal import BLOCK_BYTES
from nemo_sdg.llm.ledger_segment import codec, prefixes_of

ASKED = 1000
LOOK_EVERY = 200
Lines = Sequence[bytes]


def replies(count: int) -> tuple[list[bytes], int]:
    """Return the lines of so many entries, and the size of their replies packed as one."""
    rng = random.Random(1)
    parts = english()
    lines, bodies = [], []
    for number in range(count):
        text, length = "", max(100.0, rng.gauss(1700, 600))
        while len(text) < length:
            text += rng.choice(parts) + "\n\n"
        message = {"role": "assistant", "content": text[: int(length)]}
        body = {
            "id": f"chatcmpl-{rng.getrandbits(128):032x}",
            "object": "chat.completion",
            "created": 1_790_000_000 + number // 100,
            "model": "served-model",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": rng.randrange(999), "completion_tokens": int(length) // 4},
        }
        meta = {
            "model": "served-model",
            "endpoint": "http://127.0.0.1:8000/v1",
            "attempts": 1,
            "latency_s": round(rng.random(), 6),
            "at": 1_790_000_000 + number / 100,
        }
        lines.append(entry(f"{rng.getrandbits(128):032x}", meta, body))
        bodies.append(orjson.dumps(body))
    return lines, len(pa.Codec("zstd", compression_level=3).compress(b"\n".join(bodies)))


def key_of(line: bytes) -> str:
    return line[KEY_AT].decode()


class Sealed:
    """This package's: JSON lines, sealed in blocks under zstd with a mapped index."""

    name = "JSON lines, sealed with zstd (the ledger)"

    def __init__(self, folder: Path, *, writes: bool) -> None:
        self.ledger = Ledger(folder, writer=writes)
        self.puts = 0

    def put(self, line: bytes) -> None:
        self.ledger.put(line)
        self.puts += 1
        if self.puts % 2000 == 0:
            self.ledger.refresh()

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        return self.ledger.get_many(keys)

    def close(self) -> None:
        self.ledger.close()


class Plain:
    """JSON lines as they are; index in memory."""

    name = "JSON lines, plain"

    def __init__(self, folder: Path, *, writes: bool) -> None:
        folder.mkdir(exist_ok=True)
        self.handle = os.open(folder / "x", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self.index: dict[bytes, tuple[int, int]] = {}
        self.end = 0
        with (folder / "x").open("rb") as file:
            for line in file:
                self._note(line)

    def _note(self, line: bytes) -> None:
        self.index[bytes.fromhex(key_of(line))] = self.end, len(line)
        self.end += len(line)

    def put(self, line: bytes) -> None:
        os.write(self.handle, line)
        self._note(line)

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        places = [self.index[bytes.fromhex(key)] for key in keys]
        return [os.pread(self.handle, length, at) for at, length in places]

    def close(self) -> None:
        os.close(self.handle)


class Arrow:
    """Arrow IPC under zstd: JSON lines until a batch is full; index beside it, mapped."""

    name = "Arrow IPC with zstd"

    def __init__(self, folder: Path, *, writes: bool) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.waiting: list[bytes] = []
        self.size = 0
        self.keys: list[Any] = []
        if writes:
            schema = pa.schema({"line": pa.binary()})
            packed = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", 3))
            self.out = pa.ipc.new_file(str(folder / "x.arrow"), schema, options=packed)
            self.handle = os.open(folder / "open", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        else:
            self.table = pa.ipc.open_file(pa.memory_map(str(folder / "x.arrow")))
            loaded = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("keys", "order")]
            self.sorted, self.order = loaded
            self.firsts = np.load(folder / "firsts.npy")

    def put(self, line: bytes) -> None:
        os.write(self.handle, line)
        self.waiting.append(line)
        self.size += len(line)
        if self.size >= BLOCK_BYTES:
            self._flush()

    def _flush(self) -> None:
        self.out.write_batch(pa.record_batch({"line": pa.array(self.waiting, pa.binary())}))
        self.keys.append(prefixes_of([key_of(line) for line in self.waiting]))
        self.waiting, self.size = [], 0
        os.ftruncate(self.handle, 0)

    def close(self) -> None:
        if not hasattr(self, "out"):
            return
        if self.waiting:
            self._flush()
        self.out.close()
        keys = np.concatenate(self.keys)
        order = keys.argsort()
        np.save(self.folder / "keys.npy", keys[order])
        np.save(self.folder / "order.npy", order.astype("<u4"))
        np.save(self.folder / "firsts.npy", np.cumsum([0, *map(len, self.keys)]))
        os.close(self.handle)

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        places = self.order[self.sorted.searchsorted(prefixes_of(keys))]
        found: list[bytes | None] = [None] * len(keys)
        batch, column = -1, None
        for i in places.argsort().tolist():
            wanted = int(self.firsts.searchsorted(places[i], side="right")) - 1
            if wanted != batch:
                batch, column = wanted, self.table.get_batch(wanted).column(0)
            found[i] = column[int(places[i] - self.firsts[batch])].as_py()
        return found


class Database:
    """A store that packs each answer by itself, since it knows no neighbours."""

    def __init__(self, *, packs: bool) -> None:
        self.packs = packs

    def packed(self, line: bytes) -> bytes:
        if not self.packs:
            return line
        body: bytes = codec().compress(line, asbytes=True)
        return len(line).to_bytes(4, "little") + body

    def plain(self, value: bytes) -> bytes:
        if not self.packs:
            return value
        size = int.from_bytes(value[:4], "little")
        line: bytes = codec().decompress(value[4:], size, asbytes=True)
        return line


class Sqlite(Database):
    def __init__(self, folder: Path, *, writes: bool, packs: bool) -> None:
        super().__init__(packs=packs)
        self.name = f"SQLite{', each answer packed' if packs else ''}"
        folder.mkdir(exist_ok=True)
        self.base = sqlite3.connect(folder / "x.db", isolation_level=None)
        self.base.execute("pragma journal_mode=wal")
        self.base.execute("pragma synchronous=normal")
        self.base.execute("create table if not exists x (k blob primary key, v blob)")

    def put(self, line: bytes) -> None:
        value = self.packed(line)
        self.base.execute("insert or replace into x values (?, ?)", (line[KEY_AT], value))

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        found = {}
        for at in range(0, len(keys), 500):
            part = [key.encode() for key in keys[at : at + 500]]
            asked = f"select k, v from x where k in ({','.join('?' * len(part))})"
            found |= dict(self.base.execute(asked, part).fetchall())
        return [self.plain(found[key.encode()]) for key in keys]

    def close(self) -> None:
        self.base.close()


class Lmdb(Database):
    def __init__(self, folder: Path, *, writes: bool, packs: bool) -> None:
        import lmdb

        super().__init__(packs=packs)
        self.name = f"LMDB{', each answer packed' if packs else ''}"
        folder.mkdir(exist_ok=True)
        self.base = lmdb.open(str(folder), map_size=4 << 30, sync=False, metasync=False)

    def put(self, line: bytes) -> None:
        with self.base.begin(write=True) as change:
            change.put(bytes.fromhex(key_of(line)), self.packed(line))

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        with self.base.begin() as look:
            return [self.plain(look.get(bytes.fromhex(key))) for key in keys]

    def close(self) -> None:
        self.base.close()


def bytes_in(folder: Path) -> int:
    """Return the bytes that are taken on the disk; LMDB's file has holes."""
    sizes = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # sealed a moment ago
            found = path.stat()
            sizes.append(min(found.st_size, found.st_blocks * 512))
    return sum(sizes)


def measure(made: Callable[..., Any], folder: Path, lines: Lines, packed_bytes: int) -> None:
    rng = random.Random(2)
    most, cpu = 0, 0.0
    began = time.perf_counter()
    store = made(folder, writes=True)
    for at in range(0, len(lines), LOOK_EVERY):
        before = time.process_time()
        for line in lines[at : at + LOOK_EVERY]:
            store.put(line)
        cpu += time.process_time() - before
        most = max(most, bytes_in(folder))
    before = time.process_time()
    store.close()
    cpu += time.process_time() - before
    wrote_s = time.perf_counter() - began

    def timed(work: Callable[[], Any]) -> tuple[float, Any]:
        began = time.perf_counter()
        found = work()
        return time.perf_counter() - began, found

    opened_s, store = timed(lambda: made(folder, writes=False))
    scattered = rng.sample(lines, min(ASKED, len(lines)))
    random_s, found = timed(lambda: store.get_many([key_of(line) for line in scattered]))
    assert found == scattered
    middle = lines[len(lines) // 2 :][:ASKED]
    row_s, found = timed(lambda: store.get_many([key_of(line) for line in middle]))
    assert found == middle
    store.close()
    emit(
        "ledger_store",
        met={},
        store=store.name if hasattr(store, "name") else "",
        entries=len(lines),
        mean_bytes=sum(map(len, lines)) // len(lines),
        cpu_us_per_entry=round(1e6 * cpu / len(lines), 1),
        wall_s=round(wrote_s, 1),
        opening_ms=round(1e3 * opened_s, 1),
        random_1000_ms=round(1e3 * random_s, 1),
        row_of_1000_ms=round(1e3 * row_s, 1),
        over_zstd_3=round(bytes_in(folder) / packed_bytes, 2),
        most_over_zstd_3=round(most / packed_bytes, 2),
        megabytes=round(bytes_in(folder) / 1e6, 1),
    )


def stores() -> Iterator[Callable[..., Any]]:
    yield Sealed
    yield Plain
    yield Arrow
    for kind in (Sqlite, Lmdb):
        if kind is Lmdb and importlib.util.find_spec("lmdb") is None:
            print('{"benchmark": "ledger_store", "left_out": "LMDB: it is not installed"}')
            continue
        for packs in (False, True):
            yield lambda folder, *, writes, kind=kind, packs=packs: kind(
                folder, writes=writes, packs=packs
            )


def main() -> None:
    given = options(__doc__, lambda p: p.add_argument("--entries", type=int, default=100_000))
    lines, packed_bytes = replies(5_000 if given.quick else given.entries)
    for made in stores():
        with work.folder() as folder:
            measure(made, folder / "store", lines, packed_bytes)


if __name__ == "__main__":
    main()
