"""The HTTP of the engine against servers that keep the protocol, break it, stall and vanish."""

from __future__ import annotations

import asyncio
import base64
import gc
import gzip
import socket
import ssl
import struct
import subprocess
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from shutil import which
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from llm_engine_kit import ask, endpoint_at, free_port

from nemo_sdg.errors import (
    BadRequest,
    ConfigurationError,
    ConnectionFailed,
    RequestTimeout,
    ServerFailure,
)
from nemo_sdg.llm import connection as connection_module
from nemo_sdg.llm import dial, http1, inflate
from nemo_sdg.llm.endpoint import Timeouts
from nemo_sdg.llm.exchange import WholeAnswer
from nemo_sdg.llm.http1 import Limits, Pool, proxy_of_environment
from nemo_sdg.llm.request import read_body
from nemo_sdg.llm.transport import AsyncTransport, BlockingTransport

LIMITS = Limits(connect_s=5, first_byte_s=5, between_bytes_s=5, total_s=10)
REPLY = b'{"choices": [{"index": 0, "message": {"content": "hello"}, "finish_reason": "stop"}]}'
EVENT = (
    b'data: {"choices": [{"index": 0, "delta": {"content": "hello"}, "finish_reason": null}]}\n\n'
)
DONE = b"data: [DONE]\n\n"

CLOSE = "close"
RESET = "reset"
HANG = "hang"
Step = bytes | float | str
"""Of an answer: bytes to send, seconds to wait, or what becomes of the connection."""

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Run a coroutine on one of the two loops; what it leaves open is an error."""
    if request.param == "asyncio":
        yield asyncio.run
    else:
        yield pytest.importorskip("uvloop").run
    gc.collect(1)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name.upper()}_PROXY", raising=False)


class Server:
    """What came: connections, and requests with head and body."""

    def __init__(self) -> None:
        self.url = ""
        self.num_connections = 0
        self.num_open = 0
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    return head, await reader.readexactly(length)


async def play(
    steps: Sequence[Step], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    for step in steps:
        if isinstance(step, bytes):
            writer.write(step)
            await writer.drain()
            await asyncio.sleep(0)  # so that it leaves before what follows
        elif isinstance(step, float):
            await asyncio.sleep(step)
        elif step == HANG:
            await reader.read()  # until the other side has gone
        else:
            if step == RESET:
                opened = writer.get_extra_info("socket")
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            raise ConnectionAbortedError


@asynccontextmanager
async def serving(
    *answers: Sequence[Step],
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Server]:
    """Answer the n-th request with the n-th answer, all further ones with the last."""
    found = Server()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        found.num_connections += 1
        found.num_open += 1
        try:
            while True:
                head, body = await read_request(reader)
                found.heads.append(head)
                found.bodies.append(body)
                await play(answers[min(len(found.heads), len(answers)) - 1], reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            found.num_open -= 1
            writer.close()

    server = await asyncio.start_server(serve, host, 0, ssl=tls, backlog=1024)
    shown = f"[{host}]" if ":" in host else host
    found.url = f"{'https' if tls else 'http'}://{shown}:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield found
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)


@asynccontextmanager
async def pooled(url: str, **options: Any) -> AsyncIterator[Pool]:
    """Yield a pool; when it is closed nothing is left of it."""
    pool = Pool(url, headers=options.pop("headers", {}), **options)
    try:
        yield pool
    finally:
        await pool.close()
        assert not pool._all and not pool._idle


async def get(pool: Pool, *, limits: Limits = LIMITS, body: bytes | None = None) -> bytes:
    async with await pool.request("POST", "/v1", body, limits) as response:
        return await response.read()


async def pieces(pool: Pool, *, limits: Limits = LIMITS) -> bytes:
    async with await pool.request("POST", "/v1", None, limits) as response:
        return b"".join([part async for part in response])


async def posted(pool: Pool, *, limits: Limits = LIMITS, body: bytes | None = None) -> bytes:
    told: asyncio.Future[WholeAnswer | Exception] = asyncio.get_running_loop().create_future()
    exchange = pool.post("/v1", body or b"", limits, told.set_result)
    assert not told.done()
    try:
        answer = await told
    finally:
        exchange.cancel()
    if isinstance(answer, Exception):
        raise answer
    return answer.body


READERS = pytest.mark.parametrize("read", [get, pieces, posted])
WHOLE = pytest.mark.parametrize("read", [get, posted])
Read = Callable[..., Awaitable[bytes]]


def plain(body: bytes, *lines: bytes, status: bytes = b"200 OK") -> bytes:
    head = b"\r\n".join([b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *lines])
    return head + b"\r\n\r\n" + body


def chunked(*chunks: bytes, trailer: bytes = b"", lines: bytes = b"") -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + lines + b"\r\n"
    parts = [b"%x;name=value\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks]
    return head + b"".join(parts) + b"0\r\n" + trailer + b"\r\n"


async def until(condition: Callable[[], bool], *, timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.001)


# --- whole answers -------------------------------------------------------------------------------


@READERS
@pytest.mark.parametrize(
    "answer",
    [
        plain(b"hello"),
        chunked(b"hel", b"lo"),
        chunked(b"hello", trailer=b"Content-Encoding: gzip\r\nX-Sum: 1\r\n"),
        b"HTTP/1.1 100 Continue\r\n\r\n" + plain(b"hello"),
        b"HTTP/1.1 103 Early Hints\r\nContent-Length: 9\r\nLink: </x>\r\n\r\n" + plain(b"hello"),
        plain(b"hello", b"X-Long: " + b"x" * 300),
    ],
)
def test_an_answer_may_be_cut_anywhere(run: Run, read: Read, answer: bytes) -> None:
    step = max(1, len(answer) // 100)
    cuts = [*range(1, len(answer), step)]
    scripts = [[answer[:cut], answer[cut:]] for cut in cuts]
    scripts.append([answer[i : i + 1] for i in range(len(answer))])

    async def main() -> None:
        async with serving(*scripts) as server, pooled(server.url) as pool:
            for _ in scripts:
                assert await read(pool) == b"hello"
            assert server.num_connections == 1
            assert len(server.heads) == len(scripts)

    run(main())


@READERS
def test_a_body_may_end_with_its_connection(run: Run, read: Read) -> None:
    old = b"HTTP/1.0 200 OK\r\n\r\n"
    new = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"
    scripts: list[list[Step]] = [
        [new + b"hello", CLOSE],
        [new, b"hel", b"lo", CLOSE],
        [old + b"hello", CLOSE],
    ]

    async def main() -> None:
        async with serving(*scripts, [new, CLOSE]) as server, pooled(server.url) as pool:
            for _ in scripts:
                assert await read(pool) == b"hello"
            assert await read(pool) == b""
            assert server.num_connections == 4

    run(main())


@pytest.mark.parametrize(
    ("answer", "status", "is_kept"),
    [
        (plain(b""), 200, True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, True),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", 304, True),
        (plain(b"", b"Content-Encoding: gzip"), 200, True),
        (chunked(), 200, True),
        (plain(b"", b"Connection: close"), 200, False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", 200, False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n", 200, True),
        (b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\nxy", 101, False),
    ],
)
def test_answers_without_a_body(run: Run, answer: bytes, status: int, is_kept: bool) -> None:
    async def main() -> None:
        async with serving([answer], [plain(b"next")]) as server, pooled(server.url) as pool:
            async with await pool.request("POST", "/v1", None, LIMITS) as response:
                assert (response.status, await response.read()) == (status, b"")
            assert await get(pool) == b"next"
            assert server.num_connections == (1 if is_kept else 2)

    run(main())


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


@READERS
@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        (b"gzip", gzip.compress(b"hello" * 50)),
        (b" GZip ", gzip.compress(b"hello" * 50)),
        (b"x-gzip", gzip.compress(b"hello" * 25) + gzip.compress(b"hello" * 25) + b"\0\0"),
        (b"deflate", zlib.compress(b"hello" * 50)),
        (b"deflate", raw_deflate(b"hello" * 50)),
        (b"identity", b"hello" * 50),
    ],
)
def test_what_was_packed_unasked_is_unpacked(
    run: Run, read: Read, coding: bytes, packed: bytes
) -> None:
    whole = plain(packed, b"Content-Encoding: " + coding)
    bytewise = chunked(
        *(packed[i : i + 1] for i in range(len(packed))),
        lines=b"Content-Encoding: " + coding + b"\r\n",
    )

    async def main() -> None:
        async with serving([whole], [bytewise]) as server, pooled(server.url) as pool:
            assert await read(pool) == b"hello" * 50
            assert await read(pool) == b"hello" * 50
            assert b"\r\nAccept-Encoding: identity\r\n" in server.heads[0]

    run(main())


@READERS
@pytest.mark.parametrize(
    ("coding", "packed", "words"),
    [
        (b"gzip", b"no gzip at all", "damaged"),
        (b"gzip", gzip.compress(b"hello" * 50)[:-3], "damaged"),
        (b"gzip", gzip.compress(b"hello" * 50)[:-5] + b"12345", "damaged"),
        (b"gzip", gzip.compress(b"hello") + b"and more", "damaged"),
        (b"deflate", zlib.compress(b"hello" * 50)[:-2], "damaged"),
        (b"br", b"\x0b\x02\x80hello\x03", "'br', which nobody asked for"),
    ],
)
def test_what_cannot_be_unpacked_is_an_error(
    run: Run, read: Read, coding: bytes, packed: bytes, words: str
) -> None:
    async def main() -> None:
        answer = plain(packed, b"Content-Encoding: " + coding)
        async with serving([answer], [plain(b"next")]) as server, pooled(server.url) as pool:
            with pytest.raises(ConnectionError, match=words):
                await read(pool)
            assert await get(pool) == b"next"

    run(main())


@READERS
def test_no_answer_fills_the_memory(run: Run, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "MOST_BODY_BYTES", 1 << 20)
    monkeypatch.setattr(inflate, "MOST_BODY_BYTES", 1 << 20)
    bomb = plain(gzip.compress(bytes(2 << 20)), b"Content-Encoding: gzip")
    endless = b"HTTP/1.1 200 OK\r\n\r\n" + bytes(3 << 20)

    async def main() -> None:
        async with serving([bomb], [endless, HANG]) as server, pooled(server.url) as pool:
            for _ in range(2):
                with pytest.raises(ConnectionError, match="longer than 1 MiB"):
                    await read(pool)

    run(main())


def test_against_a_full_server(run: Run) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        data = await request.read()
        if request.query.get("how") == "stream":
            response = web.StreamResponse()
            await response.prepare(request)
            for i in range(0, len(data), 7):
                await response.write(data[i : i + 7])
            return response
        echo = web.Response(body=data, headers={"X-Host": request.host, "X-Path": request.raw_path})
        if request.query.get("how") == "pack":
            echo.enable_compression(web.ContentCoding.gzip)
        return echo

    async def main() -> None:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        data = b"0123456789" * 20
        async with pooled(f"http://{host}:{port}") as pool:
            for how in ("plain", "stream", "pack"):
                path = f"/caf%C3%A9/a%20b?how={how}"
                async with await pool.request("POST", path, data, LIMITS) as response:
                    assert await response.read() == data
                if how == "plain":
                    assert response.headers["x-host"] == f"{host}:{port}"
                    assert response.headers["x-path"] == path
            async with await pool.request("GET", "/", None, LIMITS) as response:
                assert (response.status, await response.read()) == (200, b"")
        await runner.cleanup()

    run(main())


# --- connections ---------------------------------------------------------------------------------


def test_one_connection_serves_one_request_after_the_other(run: Run) -> None:
    async def main() -> None:
        async with serving([plain(b"x")]) as server, pooled(server.url) as pool:
            for i in range(30):
                await get(pool, body=b"%d" % i)
            assert server.num_connections == 1
            assert server.bodies == [b"%d" % i for i in range(30)]
            await asyncio.gather(*(get(pool) for _ in range(5)))
            assert server.num_connections <= 5

    run(main())


@WHOLE
def test_five_hundred_at_once_get_their_own_answers(run: Run, read: Read) -> None:
    async def echo(request: web.Request) -> web.Response:
        await asyncio.sleep(0.01)
        return web.Response(body=await request.read())

    async def main() -> None:
        runner = web.ServerRunner(web.Server(echo, access_log=None))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        async with pooled(f"http://127.0.0.1:{runner.addresses[0][1]}/v1") as pool:
            for _ in range(2):
                asked = [read(pool, body=b"number %d" % i) for i in range(500)]
                assert await asyncio.gather(*asked) == [b"number %d" % i for i in range(500)]
                assert len(pool._all) == len(pool._idle) <= 500
        await runner.cleanup()

    run(main())


def test_large_bodies_both_ways(run: Run) -> None:
    size = 20 << 20

    async def main() -> None:
        big = b"ab" * (size // 2)
        async with serving([plain(big)]) as server, pooled(server.url) as pool:
            assert await get(pool, body=big) == big
            assert server.bodies == [big]
            assert await get(pool) == big
            assert server.num_connections == 1

    run(main())


def test_a_slow_reader_gets_everything_and_no_time_out(run: Run) -> None:
    limits = Limits(connect_s=5, first_byte_s=5, between_bytes_s=0.1, total_s=10)

    async def main() -> None:
        answer = chunked(*(b"%04d" % i for i in range(50)))
        script = [answer[i : i + 40] for i in range(0, len(answer), 40)]
        async with (
            serving(script) as server,
            pooled(server.url) as pool,
            await pool.request("GET", "/v1", None, limits) as response,
        ):
            found = []
            async for part in response:
                found.append(part)
                await asyncio.sleep(0.004)
        assert b"".join(found) == b"".join(b"%04d" % i for i in range(50))

    run(main())


def test_a_piece_that_comes_while_the_reader_works_is_not_left_lying(run: Run) -> None:
    async def main() -> None:
        first = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nab"
        async with (
            serving([first, 0.02, b"cd", HANG]) as server,
            pooled(server.url) as pool,
            await pool.request("GET", "/v1", None, LIMITS) as response,
        ):
            parts = aiter(response)
            assert await anext(parts) == b"ab"
            await asyncio.sleep(0.05)
            assert await asyncio.wait_for(anext(parts), 1) == b"cd"

    run(main())


@WHOLE
def test_a_connection_closed_while_idle_is_not_used_again(run: Run, read: Read) -> None:
    async def main() -> None:
        async with serving([plain(b"x"), CLOSE]) as server, pooled(server.url) as pool:
            for i in range(3):
                assert await read(pool) == b"x"
                await until(lambda: server.num_open == 0)
                await asyncio.sleep(0.005)
                assert server.num_connections == i + 1

    run(main())


def test_a_connection_that_rested_too_long_is_not_used_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http1, "_IDLE_S", 0.01)

    async def main() -> None:
        async with serving([plain(b"x")]) as server, pooled(server.url) as pool:
            await get(pool)
            await asyncio.sleep(0.02)
            await get(pool)
            assert server.num_connections == 2
            await until(lambda: server.num_open == 1)

    run(main())


@WHOLE
@pytest.mark.parametrize("how", [CLOSE, RESET])
def test_a_connection_closed_under_a_request_is_replaced(
    run: Run, read: Read, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(stale_s: float) -> Server:
        monkeypatch.setattr(connection_module, "_STALE_S", stale_s)
        scripts: list[list[Step]] = [[plain(b"x")], [how], [plain(b"y")]]
        async with serving(*scripts) as server, pooled(server.url) as pool:
            assert await read(pool) == b"x"
            await asyncio.sleep(0.06)
            assert await read(pool, body=b"again") == b"y"
        return server

    assert run(main(0.05)).bodies == [b"", b"again", b"again"]
    # In use a moment ago: the server may have read the request, so whoever asked is told.
    with pytest.raises(ConnectionError):
        run(main(30.0))


@WHOLE
def test_a_server_that_always_closes_is_asked_twice_at_most(
    run: Run, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "_STALE_S", 0.05)

    async def main() -> None:
        async with serving([plain(b"x")], [CLOSE]) as server, pooled(server.url) as pool:
            await read(pool)
            await asyncio.sleep(0.06)
            with pytest.raises(ConnectionError, match="closed"):
                await read(pool)
            assert len(server.heads) == 3

    run(main())


def test_unread_and_half_read_answers_give_no_connection_back(run: Run) -> None:
    async def main() -> None:
        slow: list[Step] = [plain(b"hello")[:-2], HANG]
        async with serving(slow, [plain(b"next")]) as server, pooled(server.url) as pool:
            async with await pool.request("GET", "/v1", None, LIMITS) as response:
                assert response.status == 200
            assert await get(pool) == b"next"
            assert server.num_connections == 2

    run(main())


def test_an_answer_before_the_end_of_the_request_gives_no_connection_back(run: Run) -> None:
    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(plain(b"too large", status=b"413 Content Too Large"))
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await gone.wait()
        writer.close()

    gone = asyncio.Event()

    async def main() -> None:
        server = await asyncio.start_server(early, "127.0.0.1", 0)
        async with pooled(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as pool:
            body = bytes(20 << 20)
            async with await pool.request("POST", "/", body, LIMITS) as response:
                assert (response.status, await response.read()) == (413, b"too large")
            assert not pool._idle
        gone.set()
        await asyncio.sleep(0.01)
        server.close()

    run(main())


def test_bytes_that_nobody_asked_for_end_an_idle_connection(run: Run) -> None:
    async def main() -> None:
        scripts: list[list[Step]] = [[plain(b"x"), 0.01, plain(b"unasked")], [plain(b"y")]]
        async with serving(*scripts) as server, pooled(server.url) as pool:
            assert await get(pool) == b"x"
            await until(lambda: not pool._all)
            assert await get(pool) == b"y"
            assert server.num_connections == 2

    run(main())


@READERS
@pytest.mark.parametrize(
    "more", [plain(b"second", status=b"404 No"), b"HTTP/1.1 2", b"garbage", plain(b"b") * 2]
)
@pytest.mark.parametrize("apart", [True, False])
def test_of_two_answers_to_one_request_the_first_counts(
    run: Run, read: Read, more: bytes, apart: bool
) -> None:
    first = plain(b"first", b"X-Which: first")
    script: list[Step] = [first, more] if apart else [first + more]

    async def main() -> None:
        async with serving(script, [plain(b"next")]) as server, pooled(server.url) as pool:
            async with await pool.request("GET", "/v1", None, LIMITS) as response:
                assert await response.read() == b"first"
                assert (response.status, response.headers["x-which"]) == (200, "first")
            await asyncio.sleep(0.005)
            assert await read(pool) == b"next"
            assert server.num_connections == 2

    run(main())


@WHOLE
def test_cancellation_closes_the_connection_at_once(run: Run, read: Read) -> None:
    half = plain(b"hello")[:-2]
    scripts: list[list[Step]] = [[HANG], [half, HANG], [half[:20], HANG]]

    async def main() -> None:
        async with serving(*scripts) as server, pooled(server.url) as pool:
            for i in range(3):
                asked = asyncio.create_task(read(pool))
                await until(lambda i=i: len(server.heads) == i + 1)  # type: ignore[misc]
                await asyncio.sleep(0.005)
                asked.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asked
                await until(lambda: not pool._all and server.num_open == 0)

    run(main())


@WHOLE
def test_cancellation_in_the_midst_of_connecting_leaves_nothing(run: Run, read: Read) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"https://127.0.0.1:{silent.getsockname()[1]}"
            async with pooled(url, tls=ssl.create_default_context()) as pool:
                for _ in range(5):
                    asked = asyncio.create_task(read(pool))
                    await asyncio.sleep(0.005)
                    asked.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await asked
                    assert not pool._all
        await asyncio.sleep(0.01)

    run(main())
    gc.collect()


@WHOLE
def test_close_ends_everything_and_for_good(run: Run, read: Read) -> None:
    by_close = b"HTTP/1.1 200 OK\r\n\r\nhalf of"  # else ends where the connection does

    async def main() -> None:
        scripts: list[list[Step]] = [[plain(b"x")], [HANG], [by_close, HANG]]
        async with serving(*scripts) as server:
            pool = Pool(server.url, headers={})
            await read(pool)
            asked = [asyncio.create_task(read(pool)) for _ in range(2)]
            await until(lambda: len(server.heads) == 3)
            await asyncio.sleep(0.005)
            late = asyncio.create_task(read(pool))
            await asyncio.sleep(0)  # it is on its way to the server
            await pool.close()
            for task in [*asked, late]:
                with pytest.raises(ConnectionError, match="closed"):
                    await task
            assert not pool._all
            await until(lambda: server.num_open == 0)
            with pytest.raises(ConnectionError, match="closed"):
                await read(pool)

    run(main())
    gc.collect()


# --- broken answers ------------------------------------------------------------------------------


@READERS
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ([CLOSE], "closed"),
        ([b"HTTP/1.1 200 OK\r\nContent-Le", CLOSE], "closed"),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", CLOSE], "closed"),
        ([plain(b"hello")[:-1], CLOSE], "closed"),
        ([chunked(b"hello")[:-2], CLOSE], "closed"),
        ([chunked(b"hello")[:-9], CLOSE], "closed"),
        ([RESET], "lost"),
        ([plain(b"hello")[:-1], RESET], "lost"),
        ([b"HTTP/1.1 200 OK\r\n\r\nhel", 0.01, RESET], "lost"),
        ([b"SSH-2.0-OpenSSH\r\n\r\n"], "no HTTP"),
        ([b"\x15\x03\x01\x00\x02\x02\x46", CLOSE], "no HTTP"),
        ([b"<html>502</html>"], "no HTTP"),
        ([b"HTTP/2 200\r\n\r\n"], "no HTTP"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy"], "no HTTP"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nxy"], "no HTTP"),
        ([chunked(b"hello", lines=b"Content-Length: 9\r\n")], "no HTTP"),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"], "no HTTP"),
        ([b"HTTP/1.1 200 OK\r\nNo colon\r\n\r\n"], "no HTTP"),
        ([b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 18) + b"\r\n\r\n", HANG], "too long"),
        ([b"HTTP/1.1 200 OK\r\nX: ", *([b"x" * 9999] * 30), HANG], "too long"),
        ([b"HTTP/1.1 200 OK\r\n" + b"X: yyyyyyy\r\n" * 20_000, HANG], "too long"),
        ([b"HTTP/1.1 103 Early\r\nX: yyyyyyyyyy\r\n\r\n" * 20_000, HANG], "too long"),
        ([chunked(b"x", trailer=b"X: yyyyyyy\r\n" * 20_000)[:-2], HANG], "too long"),
    ],
)  # fmt: skip
def test_a_broken_answer_is_a_broken_connection(
    run: Run, read: Read, script: list[Step], words: str
) -> None:
    async def main() -> None:
        async with serving(script, [plain(b"next")]) as server, pooled(server.url) as pool:
            with pytest.raises(ConnectionError, match=words):
                await read(pool)
            await asyncio.sleep(0.002)
            assert not pool._all
            assert await get(pool) == b"next"

    run(main())


def test_nobody_there_and_no_such_name(run: Run) -> None:
    async def main() -> None:
        async with pooled(f"http://127.0.0.1:{free_port()}") as pool:
            with pytest.raises(ConnectionError):
                await get(pool)
        async with pooled("http://no-such-host.invalid") as pool:
            found = await asyncio.gather(*(get(pool) for _ in range(3)), return_exceptions=True)
            assert all(isinstance(error, OSError) for error in found)

    run(main())


# --- time-outs -----------------------------------------------------------------------------------


def limited(**seconds: float) -> Limits:
    return replace(LIMITS, **seconds)


@READERS
@pytest.mark.parametrize(
    ("limits", "script", "words"),
    [
        (limited(first_byte_s=0.05), [HANG], "no first byte within 0.05 s"),
        (limited(first_byte_s=0.05), [b"HTTP/1.1 200", HANG], "no complete head of an answer"),
        (limited(between_bytes_s=0.05), [plain(b"hello")[:-1], HANG], "nothing came for 0.05 s in"),
        (limited(total_s=0.05), [HANG], "no complete answer within 0.05 s"),
        (
            limited(total_s=0.1, between_bytes_s=0.09),
            [plain(bytes(99))[:-50], *([0.02, b"\0"] * 40)],
            "no complete answer within 0.1 s",
        ),
    ],
)
def test_each_time_out_has_its_words(
    run: Run, read: Read, limits: Limits, script: list[Step], words: str
) -> None:
    async def main() -> None:
        async with serving(script, [plain(b"next")]) as server, pooled(server.url) as pool:
            with pytest.raises(TimeoutError, match=words):
                await read(pool, limits=limits)
            assert await get(pool) == b"next"
            assert server.num_connections == 2
            assert len(pool._all) == 1

    run(main())


@WHOLE
def test_what_keeps_coming_is_no_time_out(run: Run, read: Read) -> None:
    limits = limited(between_bytes_s=0.05)
    dribble: list[Step] = [plain(b"hello")[:-5], *([0.02, b"\0"] * 5)]
    working: list[Step] = [b"HTTP/1.1 102 Processing\r\n\r\n", 0.08, plain(bytes(5))]
    late_head: list[Step] = [0.08, plain(bytes(5))]

    async def main() -> None:
        async with serving(dribble, working, late_head) as server, pooled(server.url) as pool:
            for _ in range(3):
                assert await read(pool, limits=limits) == bytes(5)

    run(main())


@pytest.mark.parametrize("proxied", [False, True])
def test_the_time_to_connect_includes_tls_and_proxy(run: Run, proxied: bool) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            proxy = f"http://{address}" if proxied else None
            async with pooled(f"https://{address}", proxy=proxy) as pool:
                with pytest.raises(TimeoutError, match=r"no connection within 0\.05 s"):
                    await get(pool, limits=limited(connect_s=0.05))
                await asyncio.sleep(0)
                assert not pool._all

    run(main())
    gc.collect()


# --- addresses -----------------------------------------------------------------------------------


def test_the_head_of_a_request(run: Run) -> None:
    async def main() -> None:
        async with serving([plain(b"")]) as server:
            headers = {"X-One": "1", "x-one": " 2 ", "Accept-Encoding": "gzip"}
            async with pooled(server.url, headers=headers) as pool:
                await get(pool, body=b"abc")
                host = server.url[7:-3].encode()
                assert server.heads == [
                    b"POST /v1 HTTP/1.1\r\nHost: " + host + b"\r\nAccept-Encoding: gzip\r\n"
                    b"x-one: 2\r\nContent-Length: 3\r\n\r\n"
                ]
            async with pooled(server.url, headers={"host": "other"}) as pool:
                await get(pool)
                assert server.heads[1].lower().count(b"host:") == 1
                assert b"host: other\r\n" in server.heads[1]

    run(main())


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://example.test/v1", "example.test"),
        ("http://example.test:80/v1", "example.test"),
        ("https://example.test:443/v1", "example.test"),
        ("http://example.test:8000/v1", "example.test:8000"),
        ("https://example.test:80/v1", "example.test:80"),
        ("http://[::1]/v1", "[::1]"),
        ("http://[::1]:8000/v1", "[::1]:8000"),
        ("http://b\u00fccher.test/v1", "xn--bcher-kva.test"),
    ],
)
def test_the_host_as_servers_expect_it(url: str, host: str) -> None:
    assert f"Host: {host}\r\n".encode() in Pool(url, headers={})._head


def test_an_address_of_version_six(run: Run) -> None:
    async def main() -> None:
        async with serving([plain(b"six")], host="::1") as server, pooled(server.url) as pool:
            assert await get(pool) == b"six"
            assert b"Host: [::1]:" in server.heads[0]

    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    run(main())


def test_paths_beyond_ascii_are_escaped(run: Run) -> None:
    async def main() -> None:
        async with serving([plain(REPLY)]) as server:
            url = server.url.replace("/v1", "/caf\u00e9 1/v1")
            async with AsyncTransport(endpoint_at(url)) as transport:
                await transport.send("chat", b"{}")
                await transport.call("GET", url + "/models?a=\u00e9 b")
                await transport.call("GET", server.url.removesuffix("/v1"))
            assert [head.split(b"\r\n")[0] for head in server.heads] == [
                b"POST /caf%C3%A9%201/v1/chat/completions HTTP/1.1",
                b"GET /caf%C3%A9%201/v1/models?a=%C3%A9%20b HTTP/1.1",
                b"GET / HTTP/1.1",
            ]

    run(main())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Team", "red\r\nHost: evil"),
        ("X-Team", "red\nHost: evil"),
        ("X-Team", "red\rblue"),
        ("X-Team", "nul\0"),
        ("X-Team", "\u20ac"),
        ("X-Team: a\r\nX", "b"),
        ("X Team", "b"),
        ("", "b"),
        ("content-length", "5"),
        ("Transfer-Encoding", "chunked"),
    ],
)
def test_no_header_breaks_a_request(name: str, value: str) -> None:
    with pytest.raises(ValueError, match="header"):
        Pool("http://localhost:1", headers={name: value})
    for transport in (AsyncTransport, BlockingTransport):
        with pytest.raises(ConfigurationError):
            transport(endpoint_at("http://localhost:1/v1", headers={name: value}))


def test_what_is_no_host_is_told_at_once() -> None:
    for host in ("a..b", "x" * 64):
        with pytest.raises(ConfigurationError, match="no name of a host"):
            AsyncTransport(endpoint_at(f"http://{host}/v1"))


def addresses(monkeypatch: pytest.MonkeyPatch, *found: tuple[str, int]) -> list[str]:
    """Have names resolve to these addresses; return the list of names looked up."""
    looked_up: list[str] = []
    infos = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in found]

    async def getaddrinfo(host: str, port: int, **_: Any) -> Any:
        looked_up.append(host)
        await asyncio.sleep(0.01)
        return infos

    async def look_up(self: dial.Dialer, loop: Any) -> None:
        fake: Any = SimpleNamespace(time=loop.time, getaddrinfo=getaddrinfo)
        await original(self, fake)

    original = dial.Dialer._look_up
    monkeypatch.setattr(dial.Dialer, "_look_up", look_up)
    return looked_up


def test_a_name_is_looked_up_once_and_its_addresses_share_the_work(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with serving([plain(b"a")]) as a, serving([plain(b"b")]) as b:
            ports = [int(s.url.rpartition(":")[2].removesuffix("/v1")) for s in (a, b)]
            looked_up = addresses(monkeypatch, *(("127.0.0.1", port) for port in ports))
            async with pooled("http://model.test/v1") as pool:
                await asyncio.gather(*(get(pool) for _ in range(8)))
            assert looked_up == ["model.test"]
            assert a.num_connections == b.num_connections == 4

    run(main())


def test_an_address_that_is_dead_costs_little(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            fillers = [socket.socket() for _ in range(3)]
            for filler in fillers:  # the kernel answers nobody else
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
            async with serving([plain(b"alive")]) as server:
                alive = int(server.url.rpartition(":")[2].removesuffix("/v1"))
                refused = ("127.0.0.1", free_port())
                for first, most_s in ((refused, 0.2), (full.getsockname(), 2.0)):
                    with monkeypatch.context() as patched:
                        addresses(patched, first, ("127.0.0.1", alive))
                        async with pooled("http://model.test/v1") as pool:
                            started = loop.time()
                            assert await get(pool) == b"alive"
                            assert loop.time() - started < most_s
                with monkeypatch.context() as patched:
                    addresses(patched, refused, refused, ("127.0.0.1", free_port()))
                    async with pooled("http://model.test/v1") as pool:
                        with pytest.raises(ConnectionRefusedError):
                            await get(pool)
            for filler in fillers:
                filler.close()

    run(main())
    gc.collect()


# --- the transport -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ([plain(b"", b"Content-Encoding: gzip", status=b"400 Bad")], BadRequest),
        ([b"HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"], BadRequest),
        ([plain(b"sorry", b"Connection: close", status=b"502 Bad Gateway")], ServerFailure),
        ([plain(b"x", b"Content-Encoding: gzip")], ConnectionFailed),
        ([plain(REPLY)[:-1], RESET], ConnectionFailed),
        ([b"nonsense"], ConnectionFailed),
        ([HANG], RequestTimeout),
    ],
)
def test_the_transport_raises_our_errors_only(
    run: Run, script: list[Step], kind: type[Exception]
) -> None:
    async def main() -> None:
        timeouts = Timeouts(first_byte_s=0.05 if script == [HANG] else 5)
        async with (
            serving(script) as server,
            AsyncTransport(endpoint_at(server.url, timeouts=timeouts)) as transport,
        ):
            with pytest.raises(kind):
                await transport.send("chat", b"{}")
            with pytest.raises(kind):
                await transport.call("GET", server.url + "/models")

    run(main())


@pytest.mark.parametrize("ending", [RESET, CLOSE, HANG])
def test_a_stream_that_is_done_is_an_answer_however_it_ends(
    run: Run, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_sdg.llm.transport._END_S", 0.05)
    events = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in (EVENT, DONE))
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

    async def main() -> None:
        async with (
            serving([head, events, 0.01, ending]) as server,
            AsyncTransport(endpoint_at(server.url, stream=True)) as transport,
        ):
            found = await transport.send("chat", ask("x").body(stream=True))
            assert read_body(found)[0][0].text == "hello"
        if ending == HANG:
            return
        async with (
            serving([head, events[:-30], ending]) as server,
            AsyncTransport(endpoint_at(server.url, stream=True)) as transport,
        ):
            with pytest.raises(ConnectionFailed):
                await transport.send("chat", ask("x").body(stream=True))

    run(main())


def test_a_packed_stream_is_put_together(run: Run) -> None:
    packer = zlib.compressobj(wbits=31)
    parts = [packer.compress(e) + packer.flush(zlib.Z_SYNC_FLUSH) for e in (EVENT, DONE)]
    answer = chunked(*parts, packer.flush(), lines=b"Content-Encoding: gzip\r\n")

    async def main() -> None:
        async with serving([answer]) as server:
            async with AsyncTransport(endpoint_at(server.url, stream=True)) as transport:
                for _ in range(2):
                    found = await transport.send("chat", ask("x").body(stream=True))
                    assert read_body(found)[0][0].text == "hello"
            assert server.num_connections == 1

    run(main())


# --- TLS -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private authority `ca.pem`, a stranger `other.pem`, and `server.pem` for 127.0.0.1."""
    openssl = which("openssl")
    if openssl is None:
        pytest.skip("certificates are made with the command openssl, which is not here")
    folder = tmp_path_factory.mktemp("papers")

    def make(*words: str) -> None:
        subprocess.run([openssl, *words], cwd=folder, check=True, capture_output=True, timeout=30)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for name in ("ca", "other"):
        make("req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2",
             "-subj", f"/CN={name}", "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
    make("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=server")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:model.test")
    make("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
         "-CAcreateserial", "-out", "server.pem", "-days", "2", "-extfile", "names")  # fmt: skip
    return folder


def server_tls(papers: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(papers / "server.pem", papers / "server.key")
    return context


def test_tls_with_a_private_authority(run: Run, papers: Path) -> None:
    async def main() -> None:
        async with serving([plain(REPLY)], tls=server_tls(papers)) as server:
            endpoint = endpoint_at(server.url, ca_file=str(papers / "ca.pem"))
            async with AsyncTransport(endpoint) as transport:
                for _ in range(3):
                    await transport.send("chat", bytes(100_000))
                assert server.num_connections == 1
            assert server.bodies == [bytes(100_000)] * 3
            await until(lambda: server.num_open == 0)

    run(main())
    gc.collect()


def test_a_server_that_cannot_prove_itself_is_not_spoken_to(run: Run, papers: Path) -> None:
    async def main() -> None:
        async with serving([plain(REPLY)], tls=server_tls(papers)) as server:
            by_name = server.url.replace("127.0.0.1", "localhost")  # not in the certificate
            for url, ca in ((server.url, "other"), (server.url, None), (by_name, "ca")):
                ca_file = str(papers / f"{ca}.pem") if ca else None
                async with AsyncTransport(endpoint_at(url, ca_file=ca_file)) as transport:
                    with pytest.raises(ConnectionFailed, match="CERTIFICATE_VERIFY_FAILED"):
                        await transport.send("chat", b"{}")
            assert server.heads == []

        async def without_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(10)
            writer.write(plain(b"", status=b"400 Bad Request"))
            writer.close()

        plain_server = await asyncio.start_server(without_tls, "127.0.0.1", 0)
        url = f"https://127.0.0.1:{plain_server.sockets[0].getsockname()[1]}"
        async with AsyncTransport(endpoint_at(url)) as transport:
            with pytest.raises(ConnectionFailed):
                await transport.send("chat", b"{}")
        plain_server.close()

    run(main())
    gc.collect()


def test_an_answer_over_tls_that_breaks_off(run: Run, papers: Path) -> None:
    async def main() -> None:
        scripts: list[list[Step]] = [[plain(REPLY)[:-1], CLOSE], [RESET], [plain(REPLY)]]
        async with serving(*scripts, tls=server_tls(papers)) as server:
            endpoint = endpoint_at(server.url, ca_file=str(papers / "ca.pem"))
            async with AsyncTransport(endpoint) as transport:
                for _ in range(2):
                    with pytest.raises(ConnectionFailed):
                        await transport.send("chat", b"{}")
                await transport.send("chat", b"{}")

    run(main())
    gc.collect()


def test_a_file_that_holds_no_certificate_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    for name, words in (("empty.pem", "no certificate"), ("missing.pem", "No such file")):
        endpoint = endpoint_at("https://localhost:1/v1", ca_file=str(tmp_path / name))
        for transport in (AsyncTransport, BlockingTransport):
            with pytest.raises(ConfigurationError, match=rf"{name}.*{words}"):
                transport(endpoint)


# --- proxies -------------------------------------------------------------------------------------


@asynccontextmanager
async def tunnels(refuse: bytes = b"") -> AsyncIterator[tuple[str, list[bytes]]]:
    """A proxy for CONNECT; yield its address and the heads it was sent."""
    heads: list[bytes] = []
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        if refuse:
            writer.write(refuse)
            writer.close()
            return
        host, _, port = heads[-1].split()[1].decode().rpartition(":")
        there, back = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\nX-Proxy: 1\r\n\r\n")
        await asyncio.gather(pump(reader, back), pump(there, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", heads
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)


def test_a_tunnel_to_a_server_with_tls(run: Run, papers: Path) -> None:
    async def main() -> None:
        tls = ssl.create_default_context(cafile=papers / "ca.pem")
        async with (
            serving([plain(b"x" * 50_000)], tls=server_tls(papers)) as server,
            tunnels() as (proxy, heads),
        ):
            async with pooled(server.url, tls=tls, proxy=f"http://u%40x:p%3A@{proxy}") as pool:
                for _ in range(3):
                    assert await get(pool, body=b"body") == b"x" * 50_000
            assert server.num_connections == len(heads) == 1
            lines = heads[0].split(b"\r\n")
            authority = server.url[8:-3].encode()
            login = base64.b64encode(b"u@x:p:")
            assert lines[0] == b"CONNECT " + authority + b" HTTP/1.1"
            assert b"Host: " + authority in lines
            assert b"Proxy-Authorization: Basic " + login in lines
            assert b"Proxy-Authorization" not in b"".join(server.heads)
            assert server.heads[0].startswith(b"POST /v1 HTTP/1.1\r\n")
            stranger = ssl.create_default_context(cafile=papers / "other.pem")
            async with pooled(server.url, tls=stranger, proxy=f"http://{proxy}") as pool:
                with pytest.raises(ssl.SSLError):
                    await get(pool)
                await until(lambda: not pool._all)

    run(main())
    gc.collect()


def test_a_proxy_that_refuses_the_tunnel(run: Run) -> None:
    async def main() -> None:
        refusal = plain(b"", status=b"407 Proxy Authentication Required")
        async with (
            tunnels(refusal) as (proxy, _),
            pooled("https://model.test", proxy=f"http://{proxy}") as pool,
        ):
            with pytest.raises(ConnectionError, match="proxy answers 407"):
                await get(pool)
            await until(lambda: not pool._all)

    run(main())


def test_a_proxy_for_a_server_without_tls(run: Run) -> None:
    async def main() -> None:
        async with serving([plain(b"")]) as server:
            proxy = server.url.replace("http://", "http://u:p@").removesuffix("/v1")
            async with pooled("http://model.test:8000/v1", proxy=proxy) as pool:
                await get(pool)
            lines = server.heads[0].split(b"\r\n")
            assert lines[0] == b"POST http://model.test:8000/v1 HTTP/1.1"
            assert b"Host: model.test:8000" in lines
            assert b"Proxy-Authorization: Basic " + base64.b64encode(b"u:p") in lines

    run(main())


def test_the_proxy_of_the_environment_is_for_other_hosts_only(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with serving([plain(REPLY)]) as proxy, serving([plain(REPLY)]) as near:
            monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
            monkeypatch.setenv("no_proxy", "skipped.invalid,.inner.test")
            async with AsyncTransport(endpoint_at("http://model.test/v1")) as transport:
                await transport.send("chat", b"{}")
            assert proxy.heads[0].startswith(b"POST http://model.test:80/v1/chat/completions ")
            async with AsyncTransport(endpoint_at(near.url)) as transport:
                await transport.send("chat", b"{}")
            assert (len(proxy.heads), len(near.heads)) == (1, 1)
            async with AsyncTransport(endpoint_at("http://skipped.invalid/v1")) as transport:
                with pytest.raises(ConnectionFailed):
                    await transport.send("chat", b"{}")
            assert len(proxy.heads) == 1

    run(main())


def test_the_variables_for_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy_of_environment("http://model.test/v1") is None
    monkeypatch.setenv("ALL_PROXY", "http://all:1")
    monkeypatch.setenv("HTTPS_PROXY", "secure:2")
    monkeypatch.setenv("NO_PROXY", "a.test,b.test:8000")
    assert proxy_of_environment("http://model.test/v1") == "http://all:1"
    assert proxy_of_environment("https://model.test/v1") == "http://secure:2"
    assert proxy_of_environment("http://x.a.test/v1") is None
    assert proxy_of_environment("http://b.test:8000/v1") is None
    assert proxy_of_environment("http://b.test/v1") == "http://all:1"


@pytest.mark.parametrize("proxy", ["https://proxy:3128", "socks5://proxy:1080", "http://proxy:x"])
def test_a_proxy_that_cannot_be_used_is_told_at_once(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "only HTTP proxies" if proxy.startswith(("https", "socks")) else "proxy|[Pp]ort"
    for transport in (AsyncTransport, BlockingTransport):
        with pytest.raises(ConfigurationError, match=words):
            transport(endpoint_at("http://model.test/v1", proxy=proxy))
        with monkeypatch.context() as patched:
            patched.setenv("ALL_PROXY", proxy)
            with pytest.raises(ConfigurationError, match=f"({words}).*environment"):
                transport(endpoint_at("http://model.test/v1"))
