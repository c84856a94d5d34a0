"""What an engine is started with, and which run it belongs to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from nemo_sdg.errors import ConfigurationError
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.leases import Terms
from nemo_sdg.llm.limits import FailureRule
from nemo_sdg.llm.retry import RetryPolicy


@dataclass(frozen=True, kw_only=True, slots=True)
class Caps:
    """What may be spent from the start of a run on; requests count when they are sent.

    Attributes:
        requests: second tries among them; answers from the ledger cost none.
        tokens: of input and output, by the endpoint's count.
        cost: money, by the endpoint's prices.
    """

    requests: int | None = None
    tokens: int | None = None
    cost: float | None = None

    def given(self) -> dict[str, float]:
        """Return the caps that are set, by name."""
        named = {"requests": self.requests, "tokens": self.tokens, "cost": self.cost}
        return {name: float(cap) for name, cap in named.items() if cap is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """What an engine is started with. Holds no key; equal configurations share an engine.

    Attributes:
        endpoint: where requests go; its limits hold for all engines together.
        replicas: further endpoints that serve the same model; requests are dealt out by weight.
        fallback: asked, with its own model, when none of the others is there or a request has
            failed at all of them. Its answers are filed under the key first asked.
        ledger: folder of the ledger; None: answers are not kept.
        ledger_sync_s: seconds between forced writes to the disk, 0.05 at least.
        tries: folder of the log of requests (`llm.tries`); None: there is none.
        caps: what all engines of the run may spend together.
        run: id of the run the engine belongs to and ends with, "" outside of runs.

    Raises:
        ConfigurationError: a cost is capped and a price is not known; two endpoints are one.
    """

    endpoint: Endpoint
    replicas: tuple[Endpoint, ...] = ()
    fallback: Endpoint | None = None
    ledger: str | None = None
    ledger_sync_s: float = 1.0
    tries: str | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    max_outage_s: float = 600.0
    failures: FailureRule = field(default_factory=FailureRule)
    caps: Caps = Caps()
    run: str = ""

    def __post_init__(self) -> None:
        addresses = [each.url for each in (self.endpoint, *self.replicas)]
        if len({*addresses}) < len(addresses):
            raise ConfigurationError(f"an endpoint stands there twice: {', '.join(addresses)}")
        if self.caps.cost is not None:
            for each in self.endpoints:
                if each.price_in is None or each.price_out is None:
                    raise ConfigurationError(
                        f"the cost is capped, and the prices of {each.host} are not known: name "
                        "them with --price-in and --price-out, or cap --max-tokens"
                    )

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """All endpoints, the fallback last."""
        return (self.endpoint, *self.replicas, *([self.fallback] if self.fallback else []))

    @property
    def served_alike(self) -> tuple[tuple[str, float], ...]:
        """Address and weight of each endpoint that serves the model: all but the fallback."""
        return tuple((each.url, each.weight) for each in (self.endpoint, *self.replicas))

    @property
    def slots(self) -> int:
        """The most requests in flight of all engines, without those of the fallback."""
        return sum(each.limit for each in (self.endpoint, *self.replicas))

    @property
    def terms(self) -> Terms:
        """What all engines of this configuration share."""
        longest_s = max(each.timeouts.total_s for each in self.endpoints)
        return Terms(slots=self.limits, longest_s=longest_s, caps=self.caps.given())

    @property
    def limits(self) -> dict[str, int]:
        """The most requests in flight of each endpoint, by name; see `name_of`."""
        return {name_of(n): each.limit for n, each in enumerate(self.endpoints)}

    @property
    def book(self) -> str:
        """Name of the lease book that engines of this configuration share."""
        where = [(each.url, each.model, each.limit) for each in self.endpoints]
        return repr((self.run, where, self.caps.given()))


def name_of(number: int) -> str:
    """Return what leases call the endpoint of this number; two may have one address."""
    return str(number)


_run: ContextVar[str] = ContextVar("nemo_sdg_run", default="")


@contextlib.contextmanager
def in_run(run: str) -> Iterator[None]:
    """Let engines that this thread gets belong to a run, and end with it: see `worker.run_ends`."""
    token = _run.set(run)
    try:
        yield
    finally:
        _run.reset(token)


def of_this_run(config: EngineConfig) -> EngineConfig:
    """Return the configuration for the run of this thread."""
    run = _run.get()
    return replace(config, run=run) if run else config
