"""`nemo-sdg replay` and `nemo-sdg retry`: what a run folder can still become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nemo_sdg.cli.main import Place
from nemo_sdg.cli.options import folder_option, options_of

_RUN = click.argument("folder", metavar="RUN", callback=folder_option)
_ASKING = (
    *("endpoint", "api_key_env", "api_key_file", "workers", "concurrency", "scheduler"),
    *("max_failures", "max_outage_s", "max_requests", "max_tokens", "max_cost"),
    *("stream", "price_in", "price_out", "yes"),
)


@click.command()
@_RUN
@click.option(
    "--output",
    metavar="FOLDER",
    callback=folder_option,
    help="A new run folder; by default RUN itself.",
)
@options_of(("shape", "missing", "format"))
def replay(folder: str, output: str | None, **changes: Any) -> int:
    """Make the dataset of a run folder anew from the answers filed; nothing is asked.

    Needs neither endpoint nor key, unless the server counted the tokens. Rows without a filed
    answer become dead letters (not_filed), and the next `run` asks for them.
    """
    Place.folder = Path(output or folder).expanduser()

    from nemo_sdg.cli.display import Display, show_result
    from nemo_sdg.pipelines.replay import replay as replay_folder

    with Display() as display:
        result = replay_folder(folder, output=output, observer=display, **changes)
    show_result(result)
    return result.exit_code


@click.command()
@_RUN
@click.option("--model", metavar="NAME", help="Ask this model instead.")
@click.option("--temperature", type=click.FLOAT, help="Ask with this temperature instead.")
@click.option("--top-p", type=click.FLOAT, help="Ask with this share of the likeliest tokens.")
@click.option(
    "--max-output-tokens", type=click.IntRange(min=1), help="Allow answers of this length instead."
)
@click.option(
    "--reason",
    "reasons",
    multiple=True,
    metavar="CODE",
    help="Ask for dead letters with this reason alone; may be given several times.",
)
@options_of(_ASKING)
def retry(
    folder: str,
    model: str | None,
    temperature: float | None,
    top_p: float | None,
    max_output_tokens: int | None,
    reasons: tuple[str, ...],
    **changes: Any,
) -> int:
    """Ask again for the rows of a complete run folder that failed, and for no others.

    What is not named here is as it was in the run. Rows that get an answer move from dead_letters/
    to data/; how they were asked stands in provenance/ and retries/.
    """
    Place.folder = Path(folder).expanduser()

    from nemo_sdg.cli.display import Display, show_result
    from nemo_sdg.pipelines.retry import retry as retry_folder

    sampling = {
        "temperature": temperature,
        "top_p": top_p,
        "max_output_tokens": max_output_tokens,
    }
    with Display(agrees=bool(changes["yes"])) as display:
        result = retry_folder(
            folder, model=model, sampling=sampling, reasons=reasons, observer=display, **changes
        )
    show_result(result)
    return result.exit_code
