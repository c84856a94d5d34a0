"""What a run took, from its folder alone: requests, tokens, cost, latency, retries, waste.

    metrics = measure(folder, is_priced=True)
    metrics.total.tokens["output_tokens"], metrics.tasks["distill"].latency["p95"]

Two sources. `tries/` has every request that was sent, by whichever session of the run: what was
paid for. `provenance/` has every answer that a finished part used, and what became of its row:
what that was good for. Both are streamed; a million requests take a few seconds and memory that
does not grow with them, but for 34 bytes an answer at temperature 0, where rows share answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from nemo_sdg.pipelines.folder import RunFolder
from nemo_sdg.pipelines.tally import TOKEN_COUNTS, Spent, Tally, percentile, tallied
from nemo_sdg.pipelines.used_answers import used_answers
from nemo_sdg.stages.base import KEPT

PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, kw_only=True)
class TaskMetrics:
    """What one task took, or all of them together.

    Attributes:
        sent: requests, each try counted.
        answered: requests that gave an answer.
        failed: why there was none -> requests; `cancelled` with the run, `overtaken` by a copy.
        copies: requests that were sent a second time while the first was under way (`hedge`).
        retries: why -> requests that were sent again for it.
        tokens: of all answers, and of failures that told; names as `TOKEN_COUNTS`.
        estimated: requests whose tokens are estimates, since we closed their connection.
        cost: None where a price is unknown.
        seconds: while at least one request was under way.
        requests_per_s: requests sent over those seconds.
        latency: seconds of answered requests, p50, p95 and p99; empty where nothing was answered.
        first_token: seconds to the first token; empty where nothing was streamed.
        per_token: mean seconds of a token after the first, by answers; empty as well.
        kept: answers that stand in the data.
        waste: reason -> answers that were paid for and do not. `dead.<reason>`,
            `filtered.<name>`, `asked_again`, `failed.<code>`; of parts that are finished. With
            several samples a request each sample counts as an answer.
    """

    sent: int = 0
    answered: int = 0
    failed: Mapping[str, int] = field(default_factory=dict)
    retries: Mapping[str, int] = field(default_factory=dict)
    copies: int = 0
    tokens: Mapping[str, int] = field(default_factory=dict)
    estimated: int = 0
    cost: float | None = None
    seconds: float = 0.0
    requests_per_s: float = 0.0
    latency: Mapping[str, float] = field(default_factory=dict)
    first_token: Mapping[str, float] = field(default_factory=dict)
    per_token: Mapping[str, float] = field(default_factory=dict)
    kept: Spent = field(default_factory=Spent)
    waste: Mapping[str, Spent] = field(default_factory=dict)

    @property
    def wasted(self) -> Spent:
        """All waste together."""
        return _sum(self.waste.values())

    def plain(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        kept, waste = found.pop("kept"), found.pop("waste")
        return found | {
            "kept": vars(kept),
            "waste": {reason: vars(spent) for reason, spent in waste.items()},
        }


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What a run took: all of it, and by task in the order of their names.

    Attributes:
        latencies: bins of 1 %, answered requests; see `latency_bins`.
        spans: (begin, end) in seconds since 1970 while requests were under way, in order.
    """

    total: TaskMetrics
    tasks: Mapping[str, TaskMetrics]
    latencies: Any
    spans: Any

    def plain(self) -> dict[str, Any]:
        """Return it as it stands in run.json."""
        tasks = {name: one.plain() for name, one in self.tasks.items()}
        return {"total": self.total.plain(), "tasks": tasks}


def measure(folder: RunFolder, *, is_priced: bool) -> Metrics:
    """Read what a run took so far; see the module's text.

    Args:
        folder: of a run that is complete, stopped, killed, or under way.
        is_priced: whether requests have a price now, so that none of them cost 0.
    """
    tallies = tallied(folder.tries)
    used = used_answers(folder)
    names = sorted({*tallies, *(task for task, _ in used)})
    tasks = {
        name: _metrics(
            tallies.get(name, Tally()),
            {reason: spent for (task, reason), spent in used.items() if task == name},
            is_priced=is_priced,
        )
        for name in names
    }
    whole = Tally()
    for tally in tallies.values():
        whole.merge(tally)
    together: dict[str, Spent] = {}
    for (_, reason), spent in used.items():
        together[reason] = together.get(reason, Spent()) + spent
    return Metrics(
        total=_metrics(whole, together, is_priced=is_priced),
        tasks=tasks,
        latencies=whole.latencies,
        spans=whole.spans,
    )


def _metrics(tally: Tally, used: Mapping[str, Spent], *, is_priced: bool) -> TaskMetrics:
    nothing = Spent() if is_priced else Spent(cost=None)
    sent = sum(tally.codes.values())
    seconds = float((tally.spans[:, 1] - tally.spans[:, 0]).sum())
    answered = tally.codes[""]
    waste = {reason: spent for reason, spent in used.items() if reason != KEPT}
    waste |= {f"failed.{code}": spent for code, spent in tally.failed.items()}
    return TaskMetrics(
        sent=sent,
        answered=answered,
        failed={code: n for code, n in sorted(tally.codes.items()) if code},
        retries={code: n for code, n in sorted(tally.retries.items()) if n},
        tokens={name: tally.tokens[name] for name in TOKEN_COUNTS},
        estimated=tally.estimated,
        copies=tally.copies,
        cost=tally.cost if sent else nothing.cost,
        seconds=round(seconds, 3),
        requests_per_s=round(sent / seconds, 3) if seconds else 0.0,
        latency=_percentiles(tally.latencies),
        first_token=_percentiles(tally.first_tokens),
        per_token=_percentiles(tally.per_tokens),
        kept=used.get(KEPT, nothing),
        waste=dict(sorted(waste.items())),
    )


def _percentiles(histogram: Any) -> dict[str, float]:
    if not histogram.any():
        return {}
    return {name: percentile(histogram, share) for name, share in PERCENTILES.items()}


def _sum(spent: Iterable[Spent]) -> Spent:
    return sum(spent, Spent())
