"""The scaffolding of an OpenAI-compatible HTTP server: routes, checks, streaming, running it.

A server is a subclass of `ApiServer` that says what it answers. It runs in a thread of its own, in
the foreground, or as a child process (`start_process`) where it must not share the interpreter:

    with SomeServer() as server:
        client = openai.OpenAI(base_url=server.url, api_key="none")
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self

import orjson
from aiohttp import web

from nemo_sdg.llm.dialect import DIALECTS, UNITS, ApiError, Call, DialectName, count_tokens
from nemo_sdg.llm.request import Kind
from nemo_sdg.llm.wire import Answer, Response, embeddings_body

MAX_BODY_BYTES = 256 * 2**20

_Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
_GENERATION: Mapping[str, Kind] = {
    "/chat/completions": "chat",
    "/completions": "completion",
    "/embeddings": "embedding",
}


class ApiServer:
    """Serve the protocol on one port; a subclass implements `answers`.

    Args:
        models: name -> context length in tokens. The first is the default of a call without one.
        api_key: what `Authorization: Bearer` must hold; None lets everybody in.
        kind: which server's fields and error bodies are imitated.
        refused_fields: further fields that are answered with 400 (`seed`, `max_tokens`, ...).
        has_tokenize: offer vLLM's `/tokenize`, counting words and punctuation.
        dimensions: length of an embedding where the call names none.
        host: address to listen on.
        port: 0 for any free one.
    """

    def __init__(
        self,
        *,
        models: Mapping[str, int],
        api_key: str | None = None,
        kind: DialectName = "vllm",
        refused_fields: Sequence[str] = (),
        has_tokenize: bool = True,
        dimensions: int = 64,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.models = dict(models)
        self.dialect = DIALECTS[kind]
        self.dimensions = dimensions
        self.host, self.port = host, port
        self._api_key = api_key
        self._refused_fields = frozenset(refused_fields)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._server: _NumberingServer | None = None
        self._routes: dict[tuple[str, str], _Handler] = {
            ("GET", "/models"): self._list_models,
            ("GET", "/health"): self._health,
            ("GET", "/"): self._about,
        }
        if has_tokenize:
            self._routes["POST", "/tokenize"] = self._tokenize
        for path, call_kind in _GENERATION.items():
            self._routes["POST", path] = self._generation_route(call_kind)

    # What a subclass says ------------------------------------------------------------------

    async def answers(self, call: Call) -> list[Answer]:
        """Return the samples of a chat or a completion, `call.num_choices` of them."""
        raise NotImplementedError

    def count(self, text: str) -> int:
        """Return the tokens of a text, for the usage block."""
        return count_tokens(text)

    def count_prompt(self, call: Call) -> int:
        """Return the tokens of a prompt, for the usage block."""
        return self.count(call.text)

    def about(self) -> str:
        """Return the plain text of `GET /`."""
        return f"{type(self).__name__}: an OpenAI-compatible endpoint at {self.url}\n"

    async def handle(self, kind: Kind, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one generation call; a subclass may log it, delay it or break it."""
        call = await self.read_call(kind, request)
        if kind == "embedding":
            return json_response(embeddings_body(call, self.model_of(call), self.dimensions))
        answers = await self.answers(call)
        model = self.model_of(call)
        response = Response(
            call=call,
            model=model,
            answers=answers,
            count=self.count,
            prompt_tokens=self.count_prompt(call),
        )
        if call.body.get("stream"):
            return await self.stream(request, response)
        return json_response(response.body())

    # Pieces for `handle` -------------------------------------------------------------------

    async def read_call(self, kind: Kind, request: web.BaseRequest) -> Call:
        """Read and check a call; raise the `ApiError` it deserves."""
        call = Call.from_bytes(kind, await request.read())
        self.check_call(call, request)
        return call

    def check_call(self, call: Call, request: web.BaseRequest) -> None:
        """Raise `ApiError`: 401 wrong key, 400 or 422 wrong body, 404 unknown model."""
        self.check_key(request)
        call.check(self.dialect, self._refused_fields)
        model = call.body.get("model")
        if model is not None and model not in self.models:
            message = f"The model `{model}` does not exist."
            raise ApiError(404, message, code="model_not_found", param="model")
        limit = self.models[self.model_of(call)]
        # Four characters to a token errs on the side of letting a call in.
        asked = len(call.text) // 4 + (call.max_tokens or 0)
        if asked > limit:
            raise context_exceeded(limit, asked)

    def check_key(self, request: web.BaseRequest) -> None:
        """Raise `ApiError` 401 unless the request carries the key."""
        if self._api_key is not None and not self.is_authorized(request):
            raise ApiError(401, "Incorrect API key provided.", code="invalid_api_key")

    def is_authorized(self, request: web.BaseRequest) -> bool:
        """Say whether a request carries the right key, or, where none is needed, any key."""
        given = request.headers.get("Authorization", "")
        return bool(given) if self._api_key is None else given == f"Bearer {self._api_key}"

    def model_of(self, call: Call) -> str:
        """Return the name of the model that answers a call."""
        return call.body.get("model") or next(iter(self.models))

    async def stream(self, request: web.BaseRequest, response: Response) -> web.StreamResponse:
        """Write a response as server-sent events."""
        out = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        await out.prepare(request)
        for event in response.events():
            await out.write(event)
        await out.write_eof()
        return out

    def connection_of(self, request: web.BaseRequest) -> int:
        """Return the number of a request's connection: 0, 1, 2 ... since the server started."""
        assert self._server is not None
        return self._server.numbers.get(request.protocol, -1)

    def error_response(self, error: ApiError) -> web.Response:
        """Write an error in the shape of this kind of server."""
        body = orjson.dumps(self.dialect.error_body(error))
        return json_response(body, status=error.status, headers=error.headers)

    # Running it ----------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The base URL for a client; it ends in `/v1`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/v1"

    def __enter__(self) -> Self:
        ready = threading.Event()
        failure: list[OSError] = []

        def run() -> None:
            try:
                asyncio.run(self._serve(self.host, self.port, lambda _: ready.set()))
            except OSError as error:
                failure.append(error)
            finally:
                ready.set()

        self._thread = threading.Thread(target=run, name="nemo-sdg-server", daemon=True)
        self._thread.start()
        ready.wait()
        if failure:
            raise failure[0]
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._thread is not None:
            self._thread.join()

    def serve_forever(
        self,
        host: str | None = None,
        port: int | None = None,
        on_ready: Callable[[str], None] = lambda url: None,
    ) -> None:
        """Serve in the foreground until SIGTERM, Ctrl-C or `stop()`; raise OSError if it cannot.

        `on_ready` gets the URL once the port is open. Host and port replace those given before.
        """
        host = self.host if host is None else host
        asyncio.run(self._serve(host, self.port if port is None else port, on_ready))

    def stop(self) -> None:
        """End the server from any thread; calls that are under way are cut off."""
        loop, stop = self._loop, self._stop
        if loop is not None and stop is not None:
            with suppress(RuntimeError):  # the loop is closed already
                loop.call_soon_threadsafe(stop.set)

    def started(self) -> None:
        """Is called on the server's loop before the port opens; for what belongs to a loop."""

    async def _serve(self, host: str, port: int, on_ready: Callable[[str], None]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        if threading.current_thread() is threading.main_thread():
            with suppress(NotImplementedError):  # Windows has no such handlers
                for name in (signal.SIGTERM, signal.SIGINT):
                    self._loop.add_signal_handler(name, self._stop.set)
        self.started()
        self._server = _NumberingServer(
            self._dispatch,
            request_factory=_request_factory,
            handler_cancellation=True,
            access_log=None,
        )
        runner = web.ServerRunner(self._server, shutdown_timeout=0.05)
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port, backlog=4096)
            await site.start()
            self.host, self.port = host, runner.addresses[0][1]
            on_ready(self.url)
            await self._stop.wait()
        finally:
            await runner.cleanup()

    # Routes --------------------------------------------------------------------------------

    async def _dispatch(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        path = path.removeprefix("/v1") if path.startswith("/v1/") else path
        try:
            handler = self._routes.get((request.method, path))
            if handler is None:
                is_known = any(known == path for _, known in self._routes)
                raise ApiError(405 if is_known else 404, f"No route {request.method} {path}")
            return await handler(request)
        except ApiError as error:
            return self.error_response(error)

    def _generation_route(self, kind: Kind) -> _Handler:
        async def route(request: web.BaseRequest) -> web.StreamResponse:
            return await self.handle(kind, request)

        return route

    async def _list_models(self, request: web.BaseRequest) -> web.StreamResponse:
        self.check_key(request)
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": "nemo-sdg"}
            | ({"max_model_len": limit} if self.dialect.shows_context else {})
            for name, limit in self.models.items()
        ]
        return json_response(orjson.dumps({"object": "list", "data": data}))

    async def _health(self, request: web.BaseRequest) -> web.StreamResponse:
        return json_response(b"{}")

    async def _about(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text=self.about())

    async def _tokenize(self, request: web.BaseRequest) -> web.StreamResponse:
        self.check_key(request)
        call = Call.from_bytes("chat", await request.read())
        if isinstance(prompt := call.body.get("prompt"), str):
            text = prompt
        elif isinstance(call.body.get("messages"), list):
            rendered = [f"<|{role}|> {text}" for role, text in call.parts]
            text = "\n".join([*rendered, "<|assistant|>"])
        else:
            raise ApiError(400, "Either 'prompt' or 'messages' must be given")
        tokens = [zlib.crc32(unit.encode("utf-8", "replace")) for unit in UNITS.findall(text)]
        limit = self.models.get(self.model_of(call), 0)
        body = {"count": len(tokens), "max_model_len": limit, "tokens": tokens}
        return json_response(orjson.dumps(body))


class _NumberingServer(web.Server):
    """aiohttp's low-level server, which knows its connections by number."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.numbers: dict[web.RequestHandler, int] = {}
        self._count = 0

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        self.numbers[handler] = self._count
        self._count += 1
        super().connection_made(handler, transport)

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        self.numbers.pop(handler, None)
        super().connection_lost(handler, exc)


def context_exceeded(limit: int, asked: int) -> ApiError:
    """Return the 400 for a call of `asked` tokens to a model with room for `limit`."""
    message = (
        f"This model's maximum context length is {limit} tokens. However, you requested "
        f"{asked} tokens. Please reduce the length of the messages or completion."
    )
    return ApiError(400, message, code="context_length_exceeded", param="messages")


def json_response(
    body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return a response that holds encoded JSON."""
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")


def _request_factory(
    message: Any, payload: Any, protocol: Any, writer: Any, task: asyncio.Task[None]
) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    return web.BaseRequest(
        message, payload, protocol, writer, task, loop, client_max_size=MAX_BODY_BYTES
    )


@contextmanager
def start_process(module: str, config: Mapping[str, Any]) -> Iterator[str]:
    """Run `python -m module --config -` as a child and yield the URL it prints.

    The configuration goes through the child's input, not its command line, where every user of
    the machine could read a key. That input stays open: at its end (we have died) the child ends.
    """
    command = [sys.executable, "-m", module, "--config", "-"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(orjson.dumps(dict(config)) + b"\n")
            child.stdin.flush()
            url = child.stdout.readline().decode().strip()
            if not url:
                raise OSError(f"the server process ended with status {child.wait()}")
            yield url
        finally:
            with suppress(BrokenPipeError):
                child.stdin.close()
            try:
                child.wait(timeout=5)
            except subprocess.TimeoutExpired:
                child.kill()


def stop_at_end_of_input(server: ApiServer) -> None:
    """Stop a server when its standard input ends: how a child notices that its parent died."""

    def wait() -> None:
        while sys.stdin.buffer.readline():
            pass
        server.stop()

    threading.Thread(target=wait, daemon=True).start()
