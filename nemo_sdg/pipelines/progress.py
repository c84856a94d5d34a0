"""What a run tells while it works: workers publish counts, the client adds them up."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from nemo_sdg.llm.worker import engines
from nemo_sdg.pipelines.tally import added, tallied

TOPIC = "nemo-sdg-progress"
PUBLISH_S = 0.5
_RATE_WINDOW_S = 10.0
_LEAST_WINDOW_S = 1.5
"""Of a shorter time the rate says nothing about the time left: answers found come all at once."""
_RETRIES = "retries."


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run has come, what it did in earlier sessions among it.

    Attributes:
        requests_done: answers that came or were found in the ledger.
        requests_per_s, output_tokens_per_s: over the last ten seconds.
        errors: rows that ended without a value.
        retries: why a request was sent again -> how often.
        cost: of all tokens so far; None where a price is unknown.
    """

    parts_done: int
    parts_total: int
    rows: int
    requests_done: int
    requests_total: int | None
    in_flight: int
    requests_per_s: float
    input_tokens: int
    output_tokens: int
    errors: int
    seconds: float
    seconds_left: float | None
    note: str = ""
    output_tokens_per_s: float = 0.0
    cost: float | None = None
    retries: Mapping[str, int] = field(default_factory=dict)


class Observer(Protocol):
    """Where a run tells what it does. The command line shows it; `Quiet` keeps it to itself."""

    def announce(self, line: str) -> None:
        """Say once, before the first request, what is about to be asked and what it may cost."""

    def confirm(self, question: str) -> bool:
        """Ask whether to go on."""
        ...

    def progress(self, state: Progress) -> None:
        """Show how far the run has come; called about twice a second."""

    def note(self, text: str) -> None:
        """Say something worth knowing once."""


class Quiet:
    """An observer that says nothing and agrees to everything."""

    def announce(self, line: str) -> None:
        """Say nothing."""

    def confirm(self, question: str) -> bool:
        """Agree."""
        return True

    def progress(self, state: Progress) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""


# --- on a worker ----------------------------------------------------------------------------------

_publishing: set[str] = set()
_publishing_lock = threading.Lock()


def publish_from_here() -> None:
    """Publish this worker's counts as long as it lives; does nothing outside of a Dask worker.

    Workers that share a process publish each its own.
    """
    from distributed import get_worker

    try:
        worker = get_worker()
    except ValueError:
        return
    with _publishing_lock:
        is_new = worker.address not in _publishing
        _publishing.add(worker.address)
    if is_new:
        threading.Thread(target=_publish, args=(worker,), daemon=True).start()


def _publish(worker: Any) -> None:
    address = str(worker.address)
    last: dict[str, Any] = {}
    try:
        while worker.status.name in ("running", "paused", "init"):
            state = here(address) | {"worker": address}
            if state != last:
                worker.log_event(TOPIC, state)
                last = state
            time.sleep(PUBLISH_S)
    finally:
        with _publishing_lock:
            _publishing.discard(address)  # an address may be used again


def here(worker: str | None = None) -> dict[str, Any]:
    """Return the counts of all engines of this process, or of one worker in it."""
    counts: Counter[str] = Counter()
    in_flight, note = 0, ""
    for engine in engines(worker):
        counts.update(engine.counts)
        counts["rows"] += engine.guard.num_rows
        counts["errors"] += engine.guard.num_failures
        in_flight += engine.state.get("in_flight", 0)
        if engine.state.get("is_down"):
            note = f"{engine.config.endpoint.host} does not answer: waiting for it"
    return {"counts": dict(counts), "in_flight": in_flight, "note": note}


# --- on the client --------------------------------------------------------------------------------


@dataclass
class Gathered:
    """Adds up what the workers publish.

    Attributes:
        before: counts of earlier sessions, see `counts_so_far`.
        is_priced: whether all that is sent has a price.
    """

    parts_total: int
    requests_total: int | None = None
    parts_done: int = 0
    parts_found: int = 0
    before: Mapping[str, float] = field(default_factory=dict)
    is_priced: bool = False
    started: float = field(default_factory=time.monotonic)
    _workers: dict[str, dict[str, Any]] = field(default_factory=dict)
    _recent: deque[tuple[float, int, int]] = field(default_factory=deque)

    def take(self, state: dict[str, Any]) -> None:
        """Take what a worker published; a restarted worker begins anew and adds to the old."""
        self._workers[state["worker"]] = state

    def state(self) -> Progress:
        """Return the sum, with the rate over the last seconds."""
        now = time.monotonic()
        counts: Counter[str] = Counter(self.before)
        for state in self._workers.values():
            counts.update(state["counts"])
        done, tokens = counts["answers"] + counts["from_ledger"], counts["output_tokens"]
        self._recent.append((now, done, tokens))
        while now - self._recent[0][0] > _RATE_WINDOW_S:
            self._recent.popleft()
        since, done_then, tokens_then = self._recent[0]
        passed_s = now - since
        rate = (done - done_then) / passed_s if passed_s else 0.0
        notes = [state["note"] for state in self._workers.values() if state["note"]]
        return Progress(
            parts_done=self.parts_done + self.parts_found,
            parts_total=self.parts_total,
            rows=counts["rows"],
            requests_done=done,
            requests_total=self.requests_total,
            in_flight=sum(state["in_flight"] for state in self._workers.values()),
            requests_per_s=rate,
            input_tokens=counts["input_tokens"],
            output_tokens=counts["output_tokens"],
            errors=counts["errors"],
            seconds=now - self.started,
            seconds_left=self._seconds_left(done, rate) if passed_s >= _LEAST_WINDOW_S else None,
            note=notes[0] if notes else "",
            output_tokens_per_s=(tokens - tokens_then) / passed_s if passed_s else 0.0,
            cost=counts["cost"] if self.is_priced and not counts["unpriced"] else None,
            retries={
                name.removeprefix(_RETRIES): n
                for name, n in counts.most_common()
                if name.startswith(_RETRIES) and n
            },
        )

    def conclude(self, counts: Mapping[str, float]) -> None:
        """Take the counts of the whole run: the last words of the workers may be under way."""
        self.before = counts
        self._workers.clear()

    def _seconds_left(self, done: int, rate: float) -> float | None:
        if self.requests_total is None or rate <= 0:
            return None
        return max(0.0, (self.requests_total - done) / rate)


def counts_so_far(
    tries: str, summaries: Iterable[Mapping[str, Any]], *, was_cut: bool = False
) -> dict[str, float]:
    """Return what the sessions of a run have done, by the names that engines use.

    Args:
        tries: folder of the log of requests: what was paid for.
        summaries: of the finished parts: what became of rows.
        was_cut: the run has ended in the middle of parts: their answers count, too.
    """
    counts: Counter[str] = Counter()
    answers = 0
    cost: float | None = 0.0
    for tally in tallied(tries).values():
        cost = added(cost, tally.cost)
        counts.update(tally.tokens)
        answers += tally.codes[""]
        counts.update({f"{_RETRIES}{code}": n for code, n in tally.retries.items()})
    for summary in summaries:
        one = summary["counts"]
        dead = sum(number for name, number in one.items() if name.startswith("dead."))
        counts.update({"from_ledger": one["requests"], "rows": one["kept"] + dead, "errors": dead})
    if was_cut:
        counts["from_ledger"] = max(counts["from_ledger"], answers)
    return {**counts, "cost": cost or 0.0, "unpriced": cost is None}
