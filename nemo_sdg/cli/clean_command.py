"""`nemo-sdg clean`: a run folder, or a ledger, made small without losing what was paid for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from nemo_sdg.cli.options import folder_option

if TYPE_CHECKING:
    from nemo_sdg.pipelines.clean import Cleaned


@click.command()
@click.argument("folder", metavar="[RUN]", required=False, callback=folder_option)
@click.option(
    "--ledger",
    metavar="DIR",
    callback=folder_option,
    help="Pack this ledger alone; other runs may use it meanwhile.",
)
@click.option(
    "--drop-unused",
    is_flag=True,
    help="Also drop answers that the complete run did not use: of previews, of earlier prompts.",
)
@click.option("--dry-run", is_flag=True, help="Change nothing, and tell what would be done.")
def clean(folder: str | None, ledger: str | None, drop_unused: bool, dry_run: bool) -> int:
    """Pack the answers of a run folder and remove what processes that died left behind.

    Nothing paid for is lost: answers are put together into files of up to 256 MB, each kept once.
    """
    from nemo_sdg.cli.display import Display
    from nemo_sdg.pipelines.clean import clean as clean_folder

    with Display() as display:
        cleaned = clean_folder(
            folder,
            ledger=ledger,
            drop_unused=drop_unused,
            dry_run=dry_run,
            heard=display.packed,
        )
    for line in _told(cleaned):
        click.echo(line)
    return 0


def _told(cleaned: Cleaned) -> Iterator[str]:
    from nemo_sdg.cli.plan_command import size

    ledger = cleaned.ledger
    if cleaned.is_dry:
        yield f"ledger: {ledger.files_before:,} files, {size(ledger.bytes_before)}, as it is"
    else:
        yield (
            f"ledger: {ledger.files_before:,} files, {size(ledger.bytes_before)} -> "
            f"{ledger.files:,} files, {size(ledger.num_bytes)}"
        )
    would = "would be " if cleaned.is_dry else ""
    yield (
        f"{ledger.answers:,} answers {would}kept; {would}left out: {ledger.repeated:,} filed "
        f"twice, {ledger.unused:,} unused; {would}removed: "
        f"{cleaned.leftovers + ledger.leftovers:,} unfinished files"
    )
    if ledger.in_use:
        yield f"{ledger.in_use:,} files are being written to, or wait to be packed, and stay"
    yield from (f"note: {note}" for note in ledger.notes)
