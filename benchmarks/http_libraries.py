"""Requests per second of processor time: our transport, aiohttp, httpx, httpx2, openai.

    python benchmarks/http_libraries.py [--seconds 5] [--concurrency 16]

All post the same body of about 1 KB to the same local server, which answers at once with about
1 KB, and decode the reply with orjson; the openai package decodes for itself, as it always does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import orjson
from rig.raw_server import ANSWER, raw_server

from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.http1 import Limits, Pool
from nemo_sdg.llm.request import Request, Sampling, chat
from nemo_sdg.llm.transport import AsyncTransport

PROMPT = "Rewrite the following text in the style of an encyclopedia. " + "word " * 160
REQUEST = Request(messages=chat(None, PROMPT), sampling=Sampling(max_output_tokens=512))
BODY = REQUEST.stamped(model="raw", seed=1).body()
JSON = {"Content-Type": "application/json"}
Ask = Callable[[], Awaitable[Any]]


@asynccontextmanager
async def with_aiohttp(url: str) -> AsyncIterator[Ask]:
    import aiohttp

    async with aiohttp.ClientSession(headers=JSON) as session:

        async def ask() -> Any:
            async with session.post(url + "/chat/completions", data=BODY) as response:
                return orjson.loads(await response.read())

        yield ask


@asynccontextmanager
async def with_http1(url: str) -> AsyncIterator[Ask]:
    pool = Pool(url, headers=JSON)
    limits = Limits(connect_s=10, first_byte_s=120, between_bytes_s=60, total_s=600)

    async def ask() -> Any:
        async with await pool.request("POST", "/v1/chat/completions", BODY, limits) as response:
            return orjson.loads(await response.read())

    yield ask
    await pool.close()


@asynccontextmanager
async def with_our_transport(url: str) -> AsyncIterator[Ask]:
    async with AsyncTransport(Endpoint(url=url)) as transport:
        yield lambda: transport.send("chat", BODY)


@asynccontextmanager
async def with_httpx(url: str) -> AsyncIterator[Ask]:
    import httpx

    async with httpx.AsyncClient(headers=JSON) as client:

        async def ask() -> Any:
            response = await client.post(url + "/chat/completions", content=BODY)
            return orjson.loads(response.content)

        yield ask


@asynccontextmanager
async def with_httpx2(url: str) -> AsyncIterator[Ask]:
    import httpx2

    async with httpx2.AsyncClient(headers=JSON) as client:

        async def ask() -> Any:
            response = await client.post(url + "/chat/completions", content=BODY)
            return orjson.loads(response.content)

        yield ask


@asynccontextmanager
async def with_openai(url: str) -> AsyncIterator[Ask]:
    import openai

    fields = orjson.loads(BODY)
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield lambda: client.chat.completions.create(**fields)


LIBRARIES = {
    "httptools, nemo_sdg.llm.http1 alone": with_http1,
    "httptools, AsyncTransport": with_our_transport,
    "aiohttp": with_aiohttp,
    "httpx": with_httpx,
    "httpx2": with_httpx2,
    "openai": with_openai,
}


async def measure(name: str, url: str, seconds: float, concurrency: int) -> dict[str, Any]:
    async with LIBRARIES[name](url) as ask:
        done = 0
        end = 0.0

        async def line() -> None:
            nonlocal done
            while time.perf_counter() < end:
                await ask()
                done += 1

        end = time.perf_counter() + 0.5  # connections and caches
        await asyncio.gather(*(line() for _ in range(concurrency)))
        done, wall_s, cpu_s = 0, time.perf_counter(), time.process_time()
        end = wall_s + seconds
        await asyncio.gather(*(line() for _ in range(concurrency)))
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    package = name.split(",")[0]
    return {
        "benchmark": "http_libraries",
        "library": name,
        "version": version(package),
        "requests_per_cpu_s": round(done / cpu_s),
        "requests_per_s": round(done / wall_s),
        "requests": done,
        "concurrency": concurrency,
        "seconds": seconds,
        "request_bytes": len(BODY),
        "answer_bytes": len(ANSWER),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--quick", action="store_true", help="a second a line")
    options = parser.parse_args()
    options.seconds = 1.0 if options.quick else options.seconds
    loops: dict[str, Callable[[Any], Any]] = {"asyncio": asyncio.run}
    try:
        import uvloop
    except ImportError:
        pass
    else:
        loops["uvloop"] = uvloop.run
    with raw_server() as url:
        for loop, run in loops.items():
            for name in LIBRARIES:
                found = run(measure(name, url, options.seconds, options.concurrency))
                found |= {
                    "loop": loop,
                    "python": platform.python_version(),
                    "cpus": os.cpu_count(),
                    "load_average": round(os.getloadavg()[0], 1),
                }
                print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
