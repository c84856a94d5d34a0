"""`nemo-sdg plan`: what a run will ask for, cost and take, before it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nemo_sdg.cli.main import Place
from nemo_sdg.cli.options import folder_option, recipe_of, recipe_options
from nemo_sdg.cli.run_command import ARGUMENT

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from nemo_sdg.pipelines.plan import Band, Pilot, RunPlan, TaskPlan

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


@click.command()
@click.argument("task", required=False, metavar=ARGUMENT)
@click.option(
    "--output",
    metavar="FOLDER",
    callback=folder_option,
    help="Run folder to come: its disk is looked at, and a pilot files its answers there.",
)
@click.option(
    "--pilot",
    type=click.IntRange(min=1),
    metavar="N",
    help="Ask N rows of every task, spread over the input, and measure instead of guessing. The "
    "run does not pay for them again. Needs --output or --ledger.",
)
@recipe_options
def plan(task: str | None, output: str | None, pilot: int | None, **options: Any) -> None:
    """Tell what a run will ask for, cost and take.

    Counts requests and input tokens on every row. Without --pilot nothing is asked and no endpoint
    is contacted; tokens of answers are then a guess: low, expected, high. TASK and options as for
    `run`.
    """
    recipe = recipe_of(task, **options)
    recipe.require_endpoint()
    Place.folder = Path(output).expanduser() if output else None

    from nemo_sdg.cli.display import Display
    from nemo_sdg.pipelines.plan import plan as plan_run

    with Display(agrees=recipe.yes) as display:
        planned = plan_run(
            recipe, output=output, pilot=pilot or 0, observer=display, heard=display.counted
        )
    show_plan(planned)


def show_plan(planned: RunPlan, console: Console | None = None) -> None:
    """Show the table by task, and below it what the figures stand on."""
    from rich.text import Text

    from nemo_sdg.cli.display import out_console

    console = console or out_console()
    console.print(plan_table(planned))
    console.print()
    for line in _lines(planned):
        console.print(Text(line), soft_wrap=True)


def plan_table(planned: RunPlan) -> Table:
    """Return the figures of every task and of all as a table."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("task", no_wrap=True)
    out = "tokens out (guess)" if planned.pilot is None else "tokens out (measured)"
    for name in ("documents", "rows", "requests", "tokens in", out, "cost", "disk"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, one in planned.tasks.items():
        table.add_row(Text(name), *_cells(one, is_guess=planned.pilot is None))
    if len(planned.tasks) > 1:
        cells = _cells(planned.total, is_guess=planned.pilot is None)
        table.add_row(Text("all"), *cells, style="bold")
    return table


def _cells(one: TaskPlan, *, is_guess: bool) -> Iterator[str]:
    least = "≥ " if one.is_least else ""
    yield f"{one.documents:,}"
    yield f"{one.rows:,}"
    yield f"{least}{one.requests:,}"
    yield f"{least}{one.input_tokens:,}"
    yield _band(one.output_tokens, _tokens, is_guess=is_guess)
    yield "unknown" if one.cost is None else _band(one.cost, money, is_guess=is_guess)
    yield size(one.disk.all)


def _lines(planned: RunPlan) -> Iterator[str]:
    """Yield what the figures of the table stand on."""
    if planned.pilot is None:
        yield "nothing was asked, and second tries are not counted"
        yield "tokens out are a guess: low, expected, and the output limit as high"
        for name, one in planned.tasks.items():
            yield f"    {name}: expected {one.ground}"
    else:
        yield from _of_pilot(planned.pilot)
    if planned.total.is_least:
        yield "≥: what a flow asks besides depends on its answers; --pilot N finds out"
    yield f"input tokens: counted on every row with the tokenizer {planned.tokenizer}"
    if planned.is_estimate and planned.pilot is None:
        yield (
            "    it stands in for the model's own, which is not on this machine (a server that "
            "counts is not asked): name that with --tokenizer"
        )
    elif planned.is_estimate:
        yield (
            "    it stands in for the model's own, which is not on this machine; where the server "
            "counts, figures are corrected by what it counted in the pilot's partitions, and ± "
            "does not know how far the others differ: name the model's own with --tokenizer"
        )
    if planned.total.cost is None:
        yield "cost: unknown (no price given: --price-in, --price-out)"
    yield f"time: {_time(planned)}"
    yield f"disk: {_disk(planned)}"
    yield f"model {planned.model or 'from a column'} at {planned.host}"


def _of_pilot(pilot: Pilot) -> Iterator[str]:
    from nemo_sdg.pipelines.predict import CONFIDENCE

    cost = "cost unknown" if pilot.cost is None else f"cost {money(pilot.cost)}"
    yield (
        f"pilot: {pilot.rows:,} rows, {pilot.requests:,} requests, {pilot.filed:,} of them filed "
        f"before; it took {pilot.input_tokens:,} tokens in, {pilot.output_tokens:,} out, {cost}"
    )
    yield f"    answers are in {pilot.ledger}: the run does not pay for them again"
    yield (
        f"    figures above are of the whole run; ± holds with {CONFIDENCE:.0%}, by how far the "
        "rows that were asked lie from a line through them"
    )


def _time(planned: RunPlan) -> str:
    from nemo_sdg.cli.display import duration

    if planned.seconds is None:
        return "unknown until a pilot has measured latency (--pilot 20 --output FOLDER)"
    seconds = planned.seconds
    ends = "" if seconds.low is None else f" ({_between(seconds.low, seconds.high)})"
    return (
        f"about {duration(seconds.expected)}{ends} with {planned.concurrency:,} requests at a "
        "time, beside start and end; longer where the server takes fewer, or slows down under more "
        "load than the pilot's"
    )


def _between(low: float, high: float | None) -> str:
    from nemo_sdg.cli.display import duration

    return f"{duration(low)} to {duration(high or low)}"


def _disk(planned: RunPlan) -> str:
    disk = planned.total.disk
    names = ("data", "ledger", "provenance", "parts")
    each = ", ".join(f"{name} {size(getattr(disk, name))}" for name in names)
    told = f"about {size(disk.all)}, nothing compressed: {each}"
    if planned.free_bytes is None:
        return told
    short = ", WHICH MAY NOT BE ENOUGH" if planned.free_bytes < disk.all else ""
    return f"{told}; free there {size(planned.free_bytes)}{short}"


# --- numbers --------------------------------------------------------------------------------------


def _band(band: Band, told: Callable[[float], str], *, is_guess: bool) -> str:
    if is_guess:
        ends = (band.low, band.expected, band.high)
        return " – ".join("?" if end is None else told(end) for end in ends)
    error = "± ?" if band.error is None else f"± {band.error:.0%}"
    return f"{told(band.expected)} {error}"


def _tokens(number: float) -> str:
    return f"{round(number):,}"


def money(amount: float) -> str:
    """Return an amount with as many digits as it needs."""
    return f"{amount:,.2f}" if amount >= 1 else f"{amount:.4f}"


def size(number: float) -> str:
    """Return bytes in the unit that fits."""
    for unit in _UNITS[:-1]:
        if number < 1000:
            return f"{number:.0f} {unit}" if number >= 10 or unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} {_UNITS[-1]}"
