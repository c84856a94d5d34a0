"""What the ledger files: one JSON line a sample, made of a reply and put together again.

    lines = entries_of(request.keys(), body, model="m", endpoint=url, attempts=1, latency_s=0.4)
    reply = read_reply(lines, was_filed=True)

An entry is `{"k":"<32 hex>","m":{what belongs to the call},"r":{the reply as it came}}`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from nemo_sdg.errors import MalformedReply
from nemo_sdg.llm.request import Reply, check_body, read_body
from nemo_sdg.llm.usage import Usage

KEY_AT = slice(6, 38)
"""Where the key stands in a line."""


def entry(key: str, meta: Mapping[str, Any], body: Mapping[str, Any] | orjson.Fragment) -> bytes:
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
    data: bytes | None = None,
    first_token_s: float | None = None,
) -> list[bytes]:
    """Check a reply and return its lines, one for each key.

    Args:
        keys: one a sample.
        body: the reply.
        model: that was asked for.
        endpoint: that was asked.
        attempts: how often it was asked.
        latency_s: of the last time.
        data: the JSON that `body` was decoded from, where it came in one piece.
        first_token_s: to the first token, where it was streamed.

    Raises:
        MalformedReply: the reply is not what the protocol says, or lacks samples.
    """
    check_reply(body)
    return lines_of(
        keys,
        body,
        model=model,
        endpoint=endpoint,
        attempts=attempts,
        latency_s=latency_s,
        data=data,
        first_token_s=first_token_s,
    )


def check_reply(body: Mapping[str, Any]) -> Usage:
    """Return what a reply says it cost, once it is known to be one.

    Raises:
        MalformedReply: it is not what the protocol says.
    """
    check_body(body)
    try:
        return Usage.from_body(body.get("usage"))
    except (AttributeError, TypeError, ValueError) as error:
        raise MalformedReply(f"the usage of the reply cannot be read: {error!r}") from None


def lines_of(
    keys: Sequence[str],
    body: Mapping[str, Any],
    *,
    model: str,
    endpoint: str,
    attempts: int,
    latency_s: float,
    data: bytes | None = None,
    first_token_s: float | None = None,
) -> list[bytes]:
    """Return the lines of a reply that was checked; see `entries_of`."""
    meta = {
        "model": model,
        "endpoint": endpoint,
        "attempts": attempts,
        "latency_s": round(latency_s, 6),
        "at": round(time.time(), 3),
    }
    if first_token_s is not None:
        meta["first_token_s"] = round(first_token_s, 6)
    if data is not None and len(keys) == 1 and b"\n" not in data:
        return [entry(keys[0], meta, orjson.Fragment(data))]  # as it came: not written anew
    samples = split_samples(body, len(keys))
    return [entry(key, meta, sample) for key, sample in zip(keys, samples, strict=True)]


def read_reply(entries: Sequence[bytes], *, was_filed: bool) -> Reply:
    """Put the samples of one request back together."""
    first = orjson.loads(entries[0])
    meta, body = first["m"], first["r"]
    choices, embeddings = read_body(body)
    usage = Usage.from_body(body.get("usage"))
    keys: tuple[str, ...] = (first["k"],)
    for line in entries[1:]:
        value = orjson.loads(line)
        more, vectors = read_body(value["r"])
        choices, embeddings, keys = choices + more, embeddings + vectors, (*keys, value["k"])
        usage += Usage.from_body(value["r"].get("usage"))
    return Reply(
        choices=choices,
        embeddings=embeddings,
        usage=usage,
        model=str(body.get("model") or meta.get("model") or ""),
        keys=keys,
        endpoint=meta.get("endpoint", ""),
        attempts=meta.get("attempts", 1),
        latency_s=meta.get("latency_s", 0.0),
        first_token_s=meta.get("first_token_s"),
        was_filed=was_filed,
    )


def key_of(line: bytes) -> bytes | None:
    """Return the key of a complete line, 16 bytes; None where it is no entry."""
    if not (line.startswith(b'{"k":"') and line.endswith(b"}\n")):
        return None
    try:
        key = bytes.fromhex(line[KEY_AT].decode("ascii"))
    except ValueError:
        return None
    return key if len(key) == 16 else None


def is_whole(line: bytes) -> bool:
    """Whether a line is JSON that holds a reply, and not what damage made of one."""
    try:
        read_body(orjson.loads(line)["r"])
    except (orjson.JSONDecodeError, KeyError, TypeError, MalformedReply):
        return False
    return True
