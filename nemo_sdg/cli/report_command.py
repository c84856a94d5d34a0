"""`nemo-sdg report`."""

from __future__ import annotations

from pathlib import Path

import click

from nemo_sdg.cli.options import folder_option


@click.command()
@click.argument("folder", metavar="RUN", callback=folder_option)
@click.option("--no-samples", is_flag=True, help="Leave texts of the run out.")
def report(folder: str, no_samples: bool) -> None:
    """Make report.html of a run folder anew, and print its path.

    A run writes it at its end, however it ends. RUN may also be under way, or have been killed.
    """
    from nemo_sdg.pipelines.folder import RunFolder
    from nemo_sdg.pipelines.report import write_report

    place = RunFolder(Path(folder).expanduser().resolve())
    click.echo(write_report(place, samples=not no_samples))
