"""Compile a tokenizer.json into the tables of the kernels, or say why it cannot be."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nemo_sdg.text.gpu.classes import ClassTable, class_table
from nemo_sdg.text.gpu.merge import SHORT, hash_of, slot_of
from nemo_sdg.text.gpu.rules import NotCompiled, Rules, parts_of, rules_of

_PREFIX = 8  # bytes of an added token that are looked for


class Tables(NamedTuple):
    """What counting needs beside the text.

    Attributes:
        rules: how a text is split into words.
        classes: kinds of characters.
        letters: the id of each byte.
        pairs: merges, see `merge.pair_of`.
        pair_shift: 64 less the binary logarithm of that table's size.
        whole: words of at most SHORT bytes that are one token, see `merge.is_token`.
        whole_shift: likewise.
        long: longer words that are one token, see `merge.is_long_token`.
        long_shift: likewise.
        pool: the bytes of the longer words.
        added: the first bytes of added tokens: how many, then eight of them.
        settled: a row that may change in the normal form NFC cannot be counted.
    """

    rules: Rules
    classes: ClassTable
    letters: npt.NDArray[np.int32]
    pairs: npt.NDArray[np.int64]
    pair_shift: int
    whole: npt.NDArray[np.uint64]
    whole_shift: int
    long: npt.NDArray[np.int32]
    long_shift: int
    pool: npt.NDArray[np.uint8]
    added: npt.NDArray[np.uint8]
    settled: bool


def compile_tokenizer(content: str) -> Tables:
    """Make the tables.

    Args:
        content: the tokenizer.json.

    Raises:
        NotCompiled: it holds something that the kernels do not do; the message names it.
    """
    spec = json.loads(content)
    model = spec["model"]
    _check_model(model)
    settled = _check_normalizer(spec.get("normalizer"))
    rules = rules_of(spec.get("pre_tokenizer"))
    vocabulary: dict[str, int] = model["vocab"]
    letters = np.full(256, -1, np.int32)
    alphabet = _alphabet()
    for letter, byte in alphabet.items():
        letters[byte] = vocabulary.get(letter, -1)
    if letters.min() < 0:
        raise NotCompiled("bytes without a token")
    pairs, pair_shift = _pair_table(vocabulary, model["merges"])
    tokens = [
        bytes(alphabet[letter] for letter in token)
        for token in _single(spec, vocabulary)
        if all(letter in alphabet for letter in token)
    ]
    whole, whole_shift = _whole_table([token for token in tokens if 1 < len(token) <= SHORT])
    long, long_shift, pool = _long_table([token for token in tokens if len(token) > SHORT])
    return Tables(
        rules=rules,
        classes=class_table(),
        letters=letters,
        pairs=pairs,
        pair_shift=pair_shift,
        whole=whole,
        whole_shift=whole_shift,
        long=long,
        long_shift=long_shift,
        pool=pool,
        added=_prefixes(spec.get("added_tokens") or [], settled),
        settled=settled,
    )


def _check_model(model: dict[str, Any]) -> None:
    # Old files leave the type out; only BPE has merges.
    if model.get("type", "BPE" if "merges" in model else None) != "BPE":
        raise NotCompiled(f"model {model.get('type')}")
    for name in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(name):
            raise NotCompiled(f"BPE with {name}")


def _check_normalizer(normalizer: dict[str, Any] | None) -> bool:
    """Tell whether texts are brought into the normal form NFC."""
    parts = parts_of(normalizer, "normalizers")
    if not parts:
        return False
    if [part["type"] for part in parts] != ["NFC"]:
        raise NotCompiled(f"normalizer {' and '.join(part['type'] for part in parts)}")
    return True


def _alphabet() -> dict[str, int]:
    """Give the byte that each letter of a byte-level vocabulary stands for."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {
        chr(0x100 + place): byte for place, byte in enumerate(hidden)
    }


def _single(spec: dict[str, Any], vocabulary: dict[str, int]) -> list[str]:
    """Give the entries that a word equal to them becomes: merges do not reach all of them."""
    if spec["model"].get("ignore_merges"):
        return list(vocabulary)
    from tokenizers import Tokenizer

    bare = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": spec["model"],
    }
    entries = [entry for entry in vocabulary if entry]
    encodings = Tokenizer.from_str(json.dumps(bare)).encode_batch_fast(entries)
    return [
        entry
        for entry, encoding in zip(entries, encodings, strict=True)
        if encoding.ids == [vocabulary[entry]]
    ]


def _size(count: int) -> tuple[int, int]:
    """Give the size of a table that is at most half full, and its shift."""
    bits = max(4, (2 * count).bit_length())
    return 1 << bits, 64 - bits


def _pair_table(
    vocabulary: dict[str, int], merges: Iterable[Any]
) -> tuple[npt.NDArray[np.int64], int]:
    ranks: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ids = vocabulary[left], vocabulary[right]
        ranks[ids] = rank, vocabulary[left + right]
    keys = np.array(list(ranks), np.int64).reshape(-1, 2)
    values = np.array(list(ranks.values()), np.int64).reshape(-1, 2)
    size, shift = _size(len(keys))
    low = keys[:, 0] << 32 | keys[:, 1]
    entries = np.stack([low, values[:, 0] << 32 | values[:, 1]], 1)
    return _fill(
        entries, low.view(np.uint64), np.zeros(len(low), np.uint64), size, shift, -1
    ), shift


def _whole_table(tokens: list[bytes]) -> tuple[npt.NDArray[np.uint64], int]:
    size, shift = _size(len(tokens))
    padded = b"".join(token.ljust(SHORT, b"\0") + bytes([len(token)]) for token in tokens)
    entries = np.frombuffer(padded, "<u8").reshape(-1, 2)
    return _fill(entries, entries[:, 0], entries[:, 1], size, shift, 0), shift


def _long_table(
    tokens: list[bytes],
) -> tuple[npt.NDArray[np.int32], int, npt.NDArray[np.uint8]]:
    size, shift = _size(len(tokens))
    pool = np.frombuffer(b"".join(tokens) or b"\0", np.uint8).copy()
    lengths = np.array([len(token) for token in tokens], np.int32)
    places = np.cumsum(lengths, dtype=np.int32) - lengths
    with np.errstate(over="ignore"):
        hashes = [hash_of(pool, int(i), int(n)) for i, n in zip(places, lengths, strict=True)]
    keys = np.array(hashes, np.uint64)
    entries = np.stack([places, lengths], 1)
    return _fill(entries, keys, np.zeros(len(keys), np.uint64), size, shift, 0), shift, pool


def _fill(entries: Any, low: Any, high: Any, size: int, shift: int, empty: int) -> Any:
    """Put every entry into the first free place from its own on; all at once, round by round."""
    table = np.full((size, 2), empty, entries.dtype)
    taken = np.zeros(size, bool)
    slots = _slots(low, high, shift)
    waiting = np.arange(len(entries))
    while len(waiting):
        free = waiting[~taken[slots[waiting]]]
        places, first = np.unique(slots[free], return_index=True)
        table[places] = entries[free[first]]
        taken[places] = True
        placed = np.zeros(len(entries), bool)
        placed[free[first]] = True
        waiting = waiting[~placed[waiting]]
        slots[waiting] = (slots[waiting] + 1) & (size - 1)
    return np.ascontiguousarray(table).reshape(-1)


def _slots(low: Any, high: Any, shift: int) -> npt.NDArray[np.int64]:
    formula: Any = getattr(slot_of, "py_func", slot_of)
    with np.errstate(over="ignore"):
        slots: npt.NDArray[np.int64] = formula(low, high, shift)
    return slots


def _prefixes(added: list[dict[str, Any]], settled: bool) -> npt.NDArray[np.uint8]:
    """Give the beginnings of the added tokens, each once."""
    heads = set()
    for token in added:
        data = token["content"].encode()
        if settled and not data.isascii():
            raise NotCompiled(f"added token {token['content']!r} with a normalizer")
        heads.add(data[:_PREFIX])
    rows = [[len(head), *head.ljust(_PREFIX, b"\0")] for head in sorted(heads - {b""})]
    return np.array(rows, np.uint8).reshape(-1, 1 + _PREFIX)
