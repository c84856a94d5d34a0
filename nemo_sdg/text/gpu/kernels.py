"""The kernels. `device.py` launches them and makes their arguments.

    locate    the row at every STRIDE bytes
    flag      rows that another engine has to count
    scan      a thread a chunk: splits into words, looks each up whole; the rest is put in queues
    merge     a thread a word of the queue
    merge_long  a warp a word of the queue of long ones

A chunk is whatever begins at the first safe place in it, up to the first safe place behind it: so a
long row is as parallel as many short ones, and no word is seen twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda, int16, int32, int64

from nemo_sdg.text.gpu.classes import UNSETTLED
from nemo_sdg.text.gpu.flags import begins_added
from nemo_sdg.text.gpu.merge import NO_PAIR, SHORT, is_long_token, is_token, merged, pair_of
from nemo_sdg.text.gpu.split import char_at, first_safe, is_safe, next_word, row_between
from nemo_sdg.text.gpu.status import HOLDS_ADDED, LONG_WORD, QUEUE_FULL, UNSETTLED_ROW
from nemo_sdg.text.gpu.target import stamped

STRIDE = 4096  # bytes between two places whose rows are known
MEDIUM = 64  # bytes of a word that one thread merges
LONGEST = 1024  # bytes of a word that one warp merges
FLAG_BYTES = 16  # that a thread of `flag` looks at
QUEUES = 32  # a queue has so many tails, or all threads would wait for one
WARP = 32

_LENGTH_BITS = 24
_LENGTH = (1 << _LENGTH_BITS) - 1


@cuda.jit(cache=True)
@stamped
def locate(offsets: Any, rows: int, marks: Any) -> None:
    """Write the row at every STRIDE bytes, and the last row at the end."""
    number = cuda.grid(1)
    if number < len(marks):
        marks[number] = row_between(offsets, 0, rows, offsets[0] + number * STRIDE)


@cuda.jit(cache=True)
@stamped
def flag(
    chars: Any, offsets: Any, marks: Any, heads: Any, added: Any, settled: bool, blocks: Any,
    kinds: Any, status: Any,
) -> None:  # fmt: skip
    """Mark rows that hold an added token or, with `settled`, an unsettled character."""
    first = np.int64(offsets[0])
    end = np.int64(offsets[len(offsets) - 1])
    place = first + cuda.blockIdx.x * cuda.blockDim.x * FLAG_BYTES + cuda.threadIdx.x
    for _ in range(FLAG_BYTES):
        if place >= end:
            break
        head = chars[place]
        why = 0
        if settled and head >= 0xC0 and char_at(chars, place, blocks, kinds) & UNSETTLED:
            why = UNSETTLED_ROW
        if why or heads[head]:
            mark = (place - first) // STRIDE
            row = row_between(offsets, marks[mark], marks[mark + 1] + 1, place)
            if heads[head] and begins_added(chars, place, np.int64(offsets[row + 1]), added):
                why = HOLDS_ADDED
            if why:
                cuda.atomic.max(status, row, why)
        place += cuda.blockDim.x


@cuda.jit(cache=True)
@stamped
def scan(
    chars: Any, words: Any, offsets: Any, marks: Any, origin: int, limit: int, chunk: int,
    flags: int, digits: int, blocks: Any, kinds: Any, whole: Any, whole_shift: int, counts: Any,
    status: Any, queue: Any, queue_rows: Any, tails: Any, long_queue: Any, long_rows: Any,
    long_tail: Any,
) -> None:  # fmt: skip
    """Count the words that are one token, put the others into the queues."""
    begin = origin + np.int64(cuda.grid(1)) * chunk
    if begin >= limit:
        return
    stop = min(begin + chunk, limit)
    mark = (begin - np.int64(offsets[0])) // STRIDE
    row = row_between(offsets, marks[mark], marks[mark + 1] + 1, begin)
    place, row = first_safe(chars, offsets, row, begin, stop, blocks, kinds)
    if place < 0:
        return
    segment = (cuda.grid(1) // WARP) % QUEUES
    room = len(queue) // QUEUES
    end = np.int64(offsets[row + 1])
    count = 0
    while True:
        after = next_word(chars, words, place, end, flags, digits, blocks, kinds)
        length = after - place
        if length == 1 or (length <= SHORT and is_token(words, place, length, whole, whole_shift)):
            count += 1
        elif length <= MEDIUM:
            slot = cuda.atomic.add(tails, segment, 1)
            if slot < room:
                queue[segment * room + slot] = place << _LENGTH_BITS | length
                queue_rows[segment * room + slot] = row
            else:
                cuda.atomic.max(status, row, QUEUE_FULL)
        elif length <= LONGEST:
            slot = cuda.atomic.add(long_tail, 0, 1)
            long_queue[slot] = place << _LENGTH_BITS | length
            long_rows[slot] = row
        else:
            cuda.atomic.max(status, row, LONG_WORD)
        place = after
        if place == end:
            if count:
                cuda.atomic.add(counts, row, count)
                count = 0
            if place >= stop:
                break
            row += 1
            while np.int64(offsets[row + 1]) == place:
                row += 1
            end = np.int64(offsets[row + 1])
        elif place >= stop and is_safe(chars, place, blocks, kinds):
            break
    if count:
        cuda.atomic.add(counts, row, count)


@cuda.jit(cache=True)
@stamped
def merge(
    chars: Any, queue: Any, queue_rows: Any, tails: Any, letters: Any, pairs: Any, pair_shift: int,
    long: Any, pool: Any, long_shift: int, counts: Any,
) -> None:  # fmt: skip
    """Count the words of the queue: a column of the grid takes one of its segments."""
    ids = cuda.local.array(MEDIUM, int32)
    ranks = cuda.local.array(MEDIUM, int64)
    segment = cuda.blockIdx.y
    room = len(queue) // QUEUES
    filled = min(np.int64(tails[segment]), room)
    for slot in range(cuda.grid(2)[0], filled, cuda.gridsize(2)[0]):
        entry = queue[segment * room + slot]
        place = entry >> _LENGTH_BITS
        length = entry & _LENGTH
        if length > SHORT and is_long_token(chars, place, length, long, pool, long_shift):
            count = 1
        else:
            count = merged(chars, place, length, letters, pairs, pair_shift, ids, ranks)
        cuda.atomic.add(counts, queue_rows[segment * room + slot], count)


@cuda.jit(cache=True)
@stamped
def merge_long(
    chars: Any, queue: Any, queue_rows: Any, tail: Any, letters: Any, pairs: Any, pair_shift: int,
    long: Any, pool: Any, long_shift: int, counts: Any,
) -> None:  # fmt: skip
    """Count the long words: all threads of a block look for the lowest rank, two merge."""
    ids = cuda.shared.array(LONGEST, int32)
    ranks = cuda.shared.array(LONGEST, int64)
    following = cuda.shared.array(LONGEST, int16)
    previous = cuda.shared.array(LONGEST, int16)
    lowest = cuda.shared.array(WARP, int64)
    lowest_at = cuda.shared.array(WARP, int32)
    lane = cuda.threadIdx.x
    for slot in range(cuda.blockIdx.x, np.int64(tail[0]), cuda.gridDim.x):
        place = queue[slot] >> _LENGTH_BITS
        length = queue[slot] & _LENGTH
        for at in range(lane, length, WARP):
            ids[at] = letters[chars[place + at]]
            following[at] = at + 1
            previous[at] = at - 1
            ranks[at] = NO_PAIR
        cuda.syncthreads()
        for at in range(lane, length - 1, WARP):
            ranks[at] = pair_of(ids[at], ids[at + 1], pairs, pair_shift)
        count = length
        if is_long_token(chars, place, length, long, pool, long_shift):
            count = 1
        while count > 1:
            cuda.syncthreads()
            best = np.int64(NO_PAIR)
            best_at = np.int64(0)
            for at in range(lane, length, WARP):
                if ranks[at] < best:
                    best = ranks[at]
                    best_at = at
            lowest[lane] = best
            lowest_at[lane] = best_at
            cuda.syncthreads()
            for other in range(WARP):  # each for itself: cheaper than meeting five times
                if lowest[other] < best or (lowest[other] == best and lowest_at[other] < best_at):
                    best = lowest[other]
                    best_at = np.int64(lowest_at[other])
            if best == NO_PAIR:
                break
            count -= 1
            right = np.int64(following[best_at])
            beyond = np.int64(following[right])
            before = np.int64(previous[best_at])
            cuda.syncthreads()
            new = best & 0xFFFFFFFF
            if lane == 0:
                ids[best_at] = new
                following[best_at] = beyond
                ranks[right] = NO_PAIR
                if beyond < length:
                    previous[beyond] = best_at
                    ranks[best_at] = pair_of(new, ids[beyond], pairs, pair_shift)
                else:
                    ranks[best_at] = NO_PAIR
            elif lane == 1 and before >= 0:
                ranks[before] = pair_of(ids[before], new, pairs, pair_shift)
        if lane == 0:
            cuda.atomic.add(counts, queue_rows[slot], count)
        cuda.syncthreads()
