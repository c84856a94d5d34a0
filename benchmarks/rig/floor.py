"""The floor: what a bare loop of aiohttp on uvloop makes of the same bodies.

N coroutines over one iterator; each takes a body, writes it with orjson, posts it and reads the
answer's text with orjson. No ledger, no limits but N, no frames. With `tries` it repeats what
failed as the engine does (`nemo_sdg.llm.retry`). It runs in a process of its own: `floor(...)`.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson


def floor(
    url: str,
    bodies: Iterable[bytes],
    *,
    slots: int,
    tries: int = 1,
    timeout_s: float = 600.0,
    requests_per_s: float | None = None,
) -> dict[str, Any]:
    """Ask all bodies; return `requests`, `right`, `cpu_s`, `wall_s`, `requests_per_cpu_s`.

    Args:
        url: of the server, ending in /v1.
        bodies: JSON of each request.
        slots: coroutines.
        tries: of each body that gets no answer with a text in it.
        timeout_s: of one try.
        requests_per_s: a pace that is kept to; None: as fast as it goes.
    """
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        file.write(b"".join(body + b"\n" for body in bodies))
        file.flush()
        config = {
            "url": url,
            "file": file.name,
            "slots": slots,
            "tries": tries,
            "timeout_s": timeout_s,
            "requests_per_s": requests_per_s,
        }
        ended = subprocess.run(
            [sys.executable, __file__, json.dumps(config)], stdout=subprocess.PIPE, check=True
        )
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


async def _run(
    url: str, file: str, slots: int, tries: int, timeout_s: float, requests_per_s: float | None
) -> dict[str, Any]:
    import aiohttp

    bodies = [orjson.loads(line) for line in Path(file).read_bytes().splitlines()]
    todo = iter(bodies)
    sent = right = 0
    # Only a floor with retries needs the engine's policy, and what importing it costs.
    policy = None
    if tries > 1:
        from nemo_sdg.errors import RateLimited, ServerFailure
        from nemo_sdg.llm.retry import RetryPolicy

        policy = RetryPolicy()
    begun = time.monotonic()
    pace_s = 1 / requests_per_s if requests_per_s else 0.0

    async def ask(session: aiohttp.ClientSession, body: Any) -> bool:
        nonlocal sent
        refusals = tried = 0
        while True:
            tried += 1
            if pace_s and (wait_s := begun + sent * pace_s - time.monotonic()) > 0:
                sent += 1
                await asyncio.sleep(wait_s)
            else:
                sent += 1
            status = None
            try:
                async with session.post(
                    url + "/chat/completions", data=orjson.dumps(body)
                ) as response:
                    status = response.status
                    reply = orjson.loads(await response.read())
                if status == 200 and reply["choices"][0]["message"]["content"]:
                    return True
            except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError):
                pass
            if policy is None:
                return False
            if status == 429:
                refusals, tried = refusals + 1, tried - 1
            error = RateLimited(status=429) if status == 429 else ServerFailure()
            wait_s = policy.wait_s(error, tried, random.random(), refusals=refusals)
            if wait_s is None or tried >= tries:
                return False
            await asyncio.sleep(wait_s)

    async def line(session: aiohttp.ClientSession) -> None:
        nonlocal right
        for body in todo:
            is_right = await ask(session, body)  # in a sum, the others' would be lost
            right += is_right

    async with aiohttp.ClientSession(
        headers={"Content-Type": "application/json"},
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=timeout_s),
    ) as session:
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        begun = time.monotonic()
        await asyncio.gather(*(line(session) for _ in range(slots)))
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return {
        "requests": sent,
        "right": right,
        "cpu_s": round(cpu_s, 3),
        "wall_s": round(wall_s, 3),
        "requests_per_cpu_s": round(len(bodies) / cpu_s),
        "requests_per_s": round(len(bodies) / wall_s),
    }


if __name__ == "__main__":
    import uvloop

    print(json.dumps(uvloop.run(_run(**json.loads(sys.argv[1])))))
