"""One endpoint as the engine sees it: connections, health, and how much it may be given now."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

import orjson

from nemo_sdg.errors import RequestError
from nemo_sdg.llm.control import Concurrency, Ticket
from nemo_sdg.llm.early import Early
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.limits import Health
from nemo_sdg.llm.rates import RateLimit, Reserved
from nemo_sdg.llm.request import STREAMED
from nemo_sdg.llm.search import START
from nemo_sdg.llm.stop_when import Plain, rule_of
from nemo_sdg.llm.transport import AsyncTransport
from nemo_sdg.llm.usage import Usage

_BYTES_A_TOKEN = 4.0
_LEARN = 0.02


@dataclass(slots=True)
class Flight:
    """A request that was sent to a replica; handed back when it ends."""

    ticket: Ticket
    reserved: Reserved | None


class Replica:
    """See the module's text. Belongs to the event loop of its engine.

    Attributes:
        slots: requests in flight that the lease allows.
        prober: the task that looks for a sign of life, while there is one.
    """

    def __init__(
        self, endpoint: Endpoint, *, written_for: Endpoint, max_outage_s: float, is_fallback: bool
    ) -> None:
        self.endpoint, self.is_fallback = endpoint, is_fallback
        self._ours, self._theirs = endpoint.dialect, written_for.dialect
        self._is_streamed_anew = endpoint.stream != written_for.stream
        self._takes_all = (
            self._ours == self._theirs and not self._is_streamed_anew and not is_fallback
        )
        self.transport = AsyncTransport(endpoint)
        self.health = Health(max_outage_s=max_outage_s)
        self.slots = 0
        self.prober: asyncio.Task[None] | None = None
        limit = endpoint.limit
        is_fixed = endpoint.concurrency is not None
        self.control = Concurrency.fixed(limit) if is_fixed else Concurrency(limit, start=START)
        self._rates: RateLimit | None = None
        if endpoint.requests_per_minute or endpoint.tokens_per_minute:
            self._rates = RateLimit(endpoint.requests_per_minute, endpoint.tokens_per_minute)
        self._bytes_a_token, self._output_tokens = _BYTES_A_TOKEN, 0.0

    @property
    def in_flight(self) -> int:
        """Requests that were sent and have not ended."""
        return self.control.in_flight

    @property
    def is_full(self) -> bool:
        """True where as much is in flight as lease and limit allow."""
        in_flight = self.control.in_flight
        return in_flight >= self.slots or in_flight >= self.control.limit

    @property
    def load(self) -> float:
        """How busy it would be with one request more, against its weight."""
        return (self.in_flight + 1) / self.endpoint.weight

    def lease(self, slots: int) -> None:
        """Take a new lease: what it allows in flight, and its share of the rates."""
        self.slots = slots
        if slots > 0:
            self.control.maximum = slots
            if self._rates is not None:
                self._rates.share = min(1.0, slots / self.endpoint.limit)

    def wait_s(self, now: float, size: int, output_tokens: int | None) -> float:
        """Return the seconds until a request may be sent; inf: when something ends or changes."""
        control = self.control
        if self.is_full or control.in_flight >= self.health.room(min(control.limit, self.slots)):
            return math.inf
        wait_s = self.control.wait_s(now)
        if self._rates is not None and wait_s < math.inf:
            wait_s = max(wait_s, self._rates.wait_s(now, self._tokens(size, output_tokens)))
        return wait_s

    def started(self, now: float, size: int, output_tokens: int | None) -> Flight:
        """A request is being sent."""
        reserved = None
        if self._rates is not None:
            reserved = self._rates.started(now, self._tokens(size, output_tokens))
        return Flight(self.control.started(now), reserved)

    def answered(self, now: float, flight: Flight, size: int, usage: Usage) -> None:
        """An answer came."""
        self.health.answered()
        self.control.ended(now, flight.ticket, tokens=usage.output_tokens or usage.input_tokens)
        self._settle(flight, usage.input_tokens + usage.output_tokens)
        if usage.input_tokens and not usage.is_estimated:
            self._bytes_a_token += _LEARN * (size / usage.input_tokens - self._bytes_a_token)
            behind = usage.output_tokens - self._output_tokens
            self._output_tokens += behind if not self._output_tokens else _LEARN * behind

    def failed(self, now: float, flight: Flight, error: RequestError) -> None:
        """A request ended without an answer."""
        self.health.failed(error, now)
        self.control.ended(now, flight.ticket, error=error)
        self._settle(flight, 0)

    def abandoned(self, now: float, flight: Flight) -> None:
        """A request was cancelled by us."""
        self.control.abandoned(now)
        self._settle(flight, None)

    async def find_again(self, go_on: Callable[[], bool]) -> None:
        """Probe until there is a sign of life; `go_on` is asked after each that brought none."""
        while True:
            await asyncio.sleep(self.health.next_probe_s())
            alive = await self.transport.probe()
            self.health.probed(alive=alive)
            if alive or not go_on():
                break
        self.prober = None

    def _settle(self, flight: Flight, used: int | None) -> None:
        if self._rates is not None and flight.reserved is not None and used is not None:
            self._rates.ended(flight.reserved, used)

    def _tokens(self, size: int, output_tokens: int | None) -> float:
        """What a request will use, by what those before it did."""
        answer = self._output_tokens or float(output_tokens or 0)
        return size / self._bytes_a_token + answer

    def early(self, rule: Plain, num_samples: int, size: int) -> Early:
        """Return what ends an answer by a rule, whose prompt has so many bytes."""
        tokens = round(size / self._bytes_a_token)
        return Early(rule_of(rule), num_samples=num_samples, prompt_tokens=tokens)

    def body(self, body: bytes, *, is_streamed: bool = False) -> bytes:
        """Return a body as this endpoint takes it; it was written for the first one.

        The model is the fallback's own. Fields that this kind of server calls otherwise, or does
        not know, are renamed or left out. One that `is_streamed` is so everywhere.
        """
        if self._takes_all:
            return body
        ours, theirs = self._ours, self._theirs
        fields = orjson.loads(body)
        if self.is_fallback:
            fields["model"] = self.endpoint.model or fields["model"]
        limit = fields.pop(theirs.max_tokens_field, None)
        if limit is not None:
            fields[ours.max_tokens_field] = limit
        # Embeddings are never streamed.
        if self._is_streamed_anew and not is_streamed and "input" not in fields:
            for name, value in STREAMED.items():
                fields.pop(name, None)
                if self.endpoint.stream:
                    fields[name] = value
        return orjson.dumps({k: v for k, v in fields.items() if k not in ours.unsupported})
