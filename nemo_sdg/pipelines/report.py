"""`report.html` in the run folder: one page that tells what a run did, made of the folder alone.

    path = write_report(RunFolder(Path("out")))

It asks for nothing over a network, holds no script, and shows texts of the run escaped: they may
come from anywhere. It can be made at any time, also of a run that is under way or was killed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from nemo_sdg.errors import RunFolderError
from nemo_sdg.pipelines import report_sections as sections
from nemo_sdg.pipelines import report_words as words
from nemo_sdg.pipelines.charts import Chart
from nemo_sdg.pipelines.counting import counting_chart, in_all
from nemo_sdg.pipelines.folder import RunFolder
from nemo_sdg.pipelines.metrics import Metrics, measure
from nemo_sdg.pipelines.over_time import over_time
from nemo_sdg.pipelines.report_plots import latency_plot, time_plots
from nemo_sdg.pipelines.report_samples import samples_of, visible
from nemo_sdg.pipelines.used_answers import summaries_of

FILE = "report.html"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that a report tells of.

    Attributes:
        end: run.json; `status` is "complete", "stopped", "failed" or "running".
        counts: task -> counts of its finished parts.
        parts: task -> (finished, all; None where that is not known).
        recipe: the settings, as in recipe.yaml.
        counting: where tokens were counted, see `counting.in_all`; empty on a CPU.
    """

    end: Mapping[str, Any]
    counts: Mapping[str, Mapping[str, int]]
    parts: Mapping[str, tuple[int, int | None]]
    recipe: Mapping[str, Any]
    metrics: Metrics
    counting: Mapping[str, Any]


def write_report(folder: RunFolder, *, samples: bool = True) -> str:
    """Write the report of a run and return its path.

    Args:
        folder: of a run that has begun.
        samples: show texts of the run; the recipe's `no_samples` wins.

    Raises:
        RunFolderError: there is no run in the folder.
    """
    facts = gather(folder)
    shows_samples = samples and not facts.recipe.get("no_samples")
    folder.write_text(FILE, page(folder, facts, shows_samples=shows_samples))
    return str(folder.path / FILE)


def gather(folder: RunFolder) -> Facts:
    """Read what a report tells of."""
    path = folder.path / "recipe.yaml"
    if not path.is_file():
        raise RunFolderError(
            f"{folder.path} holds no recipe.yaml: it is no run folder, or its run never began"
        )
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    end = folder.read_json("run.json") or {"status": "running"}
    summaries = summaries_of(folder)
    counts: dict[str, dict[str, int]] = {}
    for task, parts in summaries.items():
        for part in parts:
            one = counts.setdefault(task, {})
            for name, number in part["counts"].items():
                one[name] = one.get(name, 0) + number
    planned = end.get("parts", {})
    metrics = measure(folder, is_priced=None not in _prices(recipe))
    tasks = list(dict.fromkeys((*planned, *summaries)))
    in_order = [task for task in tasks if task in metrics.tasks]
    in_order += [task for task in metrics.tasks if task not in tasks]
    return Facts(
        end=end,
        counts={task: counts[task] for task in tasks if task in counts},
        parts={task: (len(summaries.get(task, ())), planned.get(task)) for task in tasks},
        recipe=recipe,
        metrics=replace(metrics, tasks={task: metrics.tasks[task] for task in in_order}),
        counting=in_all(part for parts in summaries.values() for part in parts),
    )


def page(folder: RunFolder, facts: Facts, *, shows_samples: bool) -> str:
    """Return the page."""
    series = over_time(folder.tries, facts.metrics.spans, facts.metrics.total.sent)
    total = facts.metrics.total
    columns = facts.end.get("columns", {})
    rendered: str = template().render(
        title=folder.path.name,
        tasks=list(facts.parts),
        made_at=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        ending=words.ending(facts.end, facts.parts),
        tiles=sections.tiles(facts.counts, facts.metrics),
        unfinished=words.unfinished(facts.parts, total),
        funnels=[sections.funnel(task, one) for task, one in facts.counts.items()],
        losses=_there(sections.dead_letters(facts.counts), sections.dropped(facts.counts)),
        plots=[*time_plots(series), *_there(latency_plot(facts.metrics))],
        tables=sections.metric_tables(facts.metrics),
        spending=_there(
            sections.token_chart(facts.metrics),
            sections.waste_chart(total),
            sections.failures(total),
            counting_chart(facts.counting),
        ),
        samples=samples_of(folder, columns, facts.recipe) if shows_samples else None,
        settings=settings(facts),
        recipe=(folder.path / "recipe.yaml").read_text(encoding="utf-8"),
    )
    return rendered


def _there(*charts: Chart | None) -> list[Chart]:
    return [chart for chart in charts if chart is not None]


def settings(facts: Facts) -> dict[str, str]:
    """Return what the run was done with, in words."""
    end, recipe = facts.end, facts.recipe
    host = urlsplit(end.get("endpoint", "")).hostname or ""
    tokenizer = end.get("tokenizer", {})
    prices = _prices(recipe)
    versions = {name.replace("_", "-"): number for name, number in end.get("versions", {}).items()}
    found = {
        "model": end.get("model") or recipe.get("model"),
        "endpoint": "built-in, no language model" if recipe.get("endpoint") == "offline" else host,
        "price": "unknown"
        if None in prices
        else f"{prices[0]:g} in, {prices[1]:g} out for a million tokens",
        "cost": words.money(facts.metrics.total.cost),
        "seed": str(end.get("seed", recipe.get("seed", ""))),
        "tokenizer": tokenizer.get("name", "")
        + (" (counts are estimates)" if tokenizer.get("is_estimate") else ""),
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "fingerprint": end.get("fingerprint", ""),
    }
    return {name: str(value) for name, value in found.items() if value}


def _prices(recipe: Mapping[str, Any]) -> list[float | None]:
    return [recipe.get(name) for name in ("price_in", "price_out")]


@cache
def template() -> Any:
    """Return the template; every value in it is escaped."""
    environment = Environment(
        loader=PackageLoader("nemo_sdg", "pipelines"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": visible, "whole": words.whole}
    return environment.get_template("report.html.j2")
