"""The command `nemo-sdg`: its commands by name, and what becomes of every error.

An error that the user can mend is one message on standard error and an exit code:
0 complete, 1 our defect, 2 bad input, 3 stopped and resumable, 4 complete with more than 5 % dead
letters, 130 interrupted. A traceback shows only with NEMO_SDG_TRACEBACK=1.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click

from nemo_sdg import __version__
from nemo_sdg.errors import NemoSdgError

COMMANDS = {
    "run": ("nemo_sdg.cli.run_command", "Make a synthetic dataset: a task, or a recipe."),
    "preview": ("nemo_sdg.cli.run_command", "Show a few answers beside their sources."),
    "plan": ("nemo_sdg.cli.plan_command", "Tell what a run will ask for, cost and take."),
    "report": ("nemo_sdg.cli.report_command", "Make the report of a run folder anew."),
    "replay": ("nemo_sdg.cli.recover_command", "Make a dataset anew from the answers filed."),
    "retry": ("nemo_sdg.cli.recover_command", "Ask again for the rows that failed."),
    "clean": ("nemo_sdg.cli.clean_command", "Pack the answers of a run; remove leftovers."),
    "tasks": ("nemo_sdg.cli.tasks_command", "List the tasks; with a name, show that task."),
    "init": ("nemo_sdg.cli.tasks_command", "Write a commented recipe to begin with."),
    "check": ("nemo_sdg.cli.endpoint_command", "See what an endpoint offers."),
    "serve-offline": ("nemo_sdg.cli.endpoint_command", "Serve the built-in endpoint."),
}
"""Command -> the module it is in, loaded when it is called, and its line in the help."""

ERROR_LOG = "error.log"
INTERRUPTED = 130


class App(click.Group):
    """The group of all commands. `main` never shows a traceback, and ends with an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load the module of a command; None where there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(COMMANDS[cmd_name][0]), cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table without loading the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, words) for name, (_, words) in COMMANDS.items()])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run, tell an error in words, and exit."""
        try:
            name = prog_name or "nemo-sdg"
            code: object = super().main(args, name, complete_var, standalone_mode=False, **extra)
            sys.stdout.flush()
        except BrokenPipeError:  # `| head`: nobody listens any more
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # or Python says it again at exit
            sys.exit(0)
        except BaseException as error:  # noqa: BLE001  # the edge: every error ends here
            sys.exit(_end(error))
        sys.exit(code if isinstance(code, int) else 0)


@click.group(
    cls=App,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Without a GPU, a key or a model: nemo-sdg run distill --input docs.jsonl "
    "--output out --endpoint offline",
)
@click.version_option(__version__, prog_name="nemo-sdg")
def app() -> None:
    """Make synthetic training text with language models, from a laptop to a cluster."""


def main() -> NoReturn:
    """Be the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a letter: its number
            stream.reconfigure(errors="backslashreplace")
    app.main()


class Place:
    """Where the command at work keeps things, for the report of a defect."""

    folder: Path | None = None


def _end(error: BaseException) -> int:
    """Tell what happened, and return the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if os.environ.get("NEMO_SDG_TRACEBACK") == "1" and not isinstance(error, click.ClickException):
        traceback.print_exception(error)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        _say(error.format_message())
        return 2
    if isinstance(error, click.ClickException):
        _say(f"error: {_usage(error)}")
        return 2
    if isinstance(error, KeyboardInterrupt | click.Abort):
        _say("interrupted; the same command goes on where it stopped")
        return INTERRUPTED
    if isinstance(error, NemoSdgError):
        _say(f"error: {error}")
        return error.exit_code
    _say(f"error: {_defect(error)}")
    return 1


def _say(text: str) -> None:
    click.echo(text, err=True)


def _usage(error: click.ClickException) -> str:
    text = " ".join(error.format_message().split())
    ctx = getattr(error, "ctx", None)
    if "unexpected extra argument" in text:
        text += " If it came from a pattern such as data/*.jsonl, put that in quotes."
    if isinstance(error, click.UsageError) and ctx is not None:
        text += f" See `{ctx.command_path} --help`."
    return text


def _defect(error: BaseException) -> str:
    """Put a defect of ours into a line; where it came about goes to a file, without its texts."""
    places = traceback.extract_tb(error.__traceback__)
    ours = [p for p in places if "nemo_sdg" in p.filename] or places
    where = f" at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
    told = f"unexpected {type(error).__name__}{where}: a defect of nemo-sdg."
    log = _logged(error)
    if log is None:
        return f"{told} Please report it; NEMO_SDG_TRACEBACK=1 shows where it came about."
    return f"{told} Please report it with {log}."


def _logged(error: BaseException) -> Path | None:
    """Write where an error came about beside the run; its message may hold texts and is left out.

    Returns:
        The file; None where no run folder is at hand.
    """
    if Place.folder is None or not Place.folder.is_dir():
        return None
    lines: list[str] = []
    one: BaseException | None = error
    while one is not None:
        lines += [*traceback.format_tb(one.__traceback__), f"{type(one).__name__}\n\n"]
        one = one.__cause__ or one.__context__
    path = Place.folder / ERROR_LOG
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.writelines(lines)
    except OSError:
        return None
    return path


if __name__ == "__main__":
    main()
