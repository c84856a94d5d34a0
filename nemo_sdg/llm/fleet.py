"""All endpoints of an engine: which of them takes the next request, and what the lease allows."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Protocol

from nemo_sdg.errors import BudgetSpent, EndpointDown, RequestError
from nemo_sdg.llm.engine_config import EngineConfig, name_of
from nemo_sdg.llm.prefixes import closeness
from nemo_sdg.llm.replica import Replica
from nemo_sdg.llm.usage import Usage


class Sendable(Protocol):
    """What a choice depends on."""

    body: bytes
    output_tokens: int | None
    is_for_fallback: bool
    avoided: Replica | None
    prefix: bytes


class Fleet:
    """See the module's text. Belongs to the event loop of its engine.

    Attributes:
        replicas: the endpoints that serve the model, and last the fallback, where there is one.
        primaries: those without the fallback.
        spent: requests, tokens and cost since the start.
        slots: requests in flight that the lease allows, at all endpoints.
        is_wanted: other engines could use what this one does not.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.replicas = [
            Replica(
                each,
                written_for=config.endpoint,
                max_outage_s=config.max_outage_s,
                is_fallback=each is config.fallback,
            )
            for each in config.endpoints
        ]
        self.primaries = [replica for replica in self.replicas if not replica.is_fallback]
        self.spent: dict[str, float] = dict.fromkeys(("requests", "tokens", "cost"), 0.0)
        self._allowed: dict[str, float] = dict.fromkeys(config.caps.given(), 0.0)
        self.slots, self.is_wanted = 0, False
        self._until_s = -math.inf
        self._heard = 0

    async def close(self) -> None:
        """Close all connections."""
        for replica in self.replicas:
            await replica.transport.close()

    # --- where a request goes ------------------------------------------------------------------

    def choose(self, item: Sendable, now: float) -> tuple[Replica | None, float]:
        """Return the endpoint for a request, or None and the seconds until there may be one.

        The one with the least load for its weight, or that is closest to its prefix; not the one
        that has just failed the request, as long as another may be asked.
        """
        if len(self.replicas) == 1:
            only = self.replicas[0]
            wait_s = only.wait_s(now, len(item.body), item.output_tokens)
            return (None, wait_s) if wait_s > 0 else (only, 0.0)
        candidates = self._candidates(item)
        others = [replica for replica in candidates if replica is not item.avoided]
        if any(not replica.health.is_suspect for replica in others):
            candidates = others
        best, wait_s = None, math.inf
        if item.prefix:
            candidates = sorted(candidates, key=partial(_distance, item.prefix))
        for replica in candidates:
            its_s = replica.wait_s(now, len(item.body), item.output_tokens)
            if its_s > 0:
                wait_s = min(wait_s, its_s)
            elif best is None or (not item.prefix and replica.load < best.load):
                best = replica
        return best, 0.0 if best else wait_s

    def _candidates(self, item: Sendable) -> list[Replica]:
        has_fallback = len(self.primaries) < len(self.replicas)
        if has_fallback and (item.is_for_fallback or self.is_down):
            return self.replicas[-1:]
        return self.primaries

    @property
    def is_full(self) -> bool:
        """True where as much is in flight everywhere as may be."""
        return all([replica.is_full for replica in self.replicas])

    @property
    def is_down(self) -> bool:
        """True while none of the primaries answers so much as a probe."""
        return all(replica.health.is_down for replica in self.primaries)

    @property
    def suspects(self) -> list[Replica]:
        """Endpoints that have to be probed, and are not yet."""
        return [each for each in self.replicas if each.health.is_suspect and each.prober is None]

    def is_out(self, now: float) -> bool:
        """Say whether no endpoint at all has been usable for longer than allowed."""
        return all(replica.health.expired(now) for replica in self.replicas)

    def lost_fallback(self, now: float) -> RequestError | None:
        """Return why the fallback has been unusable for longer than allowed; None: it has not."""
        last = self.replicas[-1]
        is_lost = last.is_fallback and last.health.expired(now)
        return last.health.last_error if is_lost else None

    def begins_again(self, now: float) -> None:
        """Something is asked after a time in which nothing was."""
        for replica in self.replicas:
            replica.health.begins_again(now)

    # --- what may be spent ---------------------------------------------------------------------

    def may_start(self, now: float) -> bool:
        """Say whether the lease is fresh and none of its allowances used up."""
        return now <= self._until_s and (
            not self._allowed
            or all(self.spent[what] < allowed for what, allowed in self._allowed.items())
        )

    def used(self, replica: Replica, usage: Usage) -> None:
        """Count what an answer cost."""
        self.spent["tokens"] += usage.input_tokens + usage.output_tokens
        self.spent["cost"] += replica.endpoint.cost(usage) or 0.0

    def take_lease(self, sent_s: float, lease: dict[str, Any]) -> BudgetSpent | None:
        """Go by a new lease; `sent_s` is when its report was sent.

        Returns:
            The end, once a cap is used up and nobody has anything in flight any more.
        """
        self._until_s, self._heard = sent_s + lease["ttl_s"], lease["number"]
        for number, replica in enumerate(self.replicas):
            replica.lease(lease["slots"][name_of(number)])
        self._allowed = lease["allowed"]
        self.slots, self.is_wanted = sum(lease["slots"].values()), lease["is_wanted"]
        what = lease["is_spent"]
        if what is None:
            return None
        cap = self.config.caps.given()[what]
        return BudgetSpent(
            f"--max-{what} {cap:,g} is used up. All answers so far are filed: run the same command "
            f"again to go on, with --max-{what} for what it may spend from then on"
        )

    def report(self, *, wanted: int) -> dict[str, Any]:
        """Return what `leases.Report` tells, without the names; give up what others want."""
        if self.is_wanted and wanted < self.slots:
            for replica in self.replicas:
                replica.lease(min(replica.slots, wanted))
            self.slots = sum(replica.slots for replica in self.replicas)
        numbered = [(name_of(number), replica) for number, replica in enumerate(self.replicas)]
        return {
            "heard": self._heard,
            "in_flight": {name: replica.in_flight for name, replica in numbered},
            "wanted": wanted,
            "spent": self.spent,
            "kept": {name: replica.slots for name, replica in numbered},
        }

    # --- words ---------------------------------------------------------------------------------

    @property
    def limit(self) -> int:
        """Requests that may be in flight now, at all primaries."""
        return sum(min(replica.control.limit, replica.slots) for replica in self.primaries)

    def outage(self) -> EndpointDown:
        """Return the end of a run whose endpoints do not answer."""
        said = [replica.health.last_error for replica in self.replicas]
        last = next((f": {error.detail}" for error in said if error), "")
        where = " and ".join(replica.endpoint.url for replica in self.replicas)
        return EndpointDown(
            f"{where} gave no answer for {self.config.max_outage_s:g} s{last}. "
            "All answers so far are filed: run the same command again when it is back."
        )

    def scrub(self, text: str) -> str:
        """Return the text without any endpoint's secrets."""
        for replica in self.replicas:
            text = replica.endpoint.scrub(text)
        return text


def _distance(prefix: bytes, replica: Replica) -> float:
    return -closeness(prefix, replica.endpoint.url, replica.endpoint.weight)
