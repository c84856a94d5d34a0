"""How does a run stop, and does it go on from there?

    python benchmarks/stops.py [--quick] [--rows 1000]

`nemo-sdg run` against a server that takes 0.1 s (lognormal), 64 slots, two workers. At 30 % of the
rows: a budget of requests is used up (`--max-requests`), Ctrl-C is pressed, or the disk of 20 MB
that holds the run folder is full (a tmpfs: needs root, else it is left out and said so). Then
there is room again and the same command runs without a budget. One line each.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rig import command, served, work
from rig.report import emit, options

from nemo_sdg.llm.faults import lognormal
from nemo_sdg.llm.scripted import ScriptedEndpoint

SLOTS = 64
SHARE = 0.3
DISK_BYTES = 20_000_000
CODES = {"budget": 3, "Ctrl-C": 130, "full disk": 3}


@contextmanager
def small_disk(path: Path) -> Iterator[bool]:
    """Mount a small disk; yield whether it could be."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(path)]
    is_there = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield is_there
    finally:
        if is_there:
            subprocess.run(["umount", str(path)], check=True)


def fill(ballast: Path) -> None:
    """Write until the disk takes no more."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 4096):
                pass
        except OSError:
            pass


def main() -> None:
    given = options(__doc__, lambda p: p.add_argument("--rows", type=int, default=1000))
    count = 600 if given.quick else given.rows
    with (
        ScriptedEndpoint.start_process(latency=lognormal(0.1), keeps_bodies=False) as server,
        work.folder() as folder,
        small_disk(folder / "disk") as has_disk,
    ):
        source = work.write_documents(folder / "in.jsonl", work.prompts(count))
        recipe = work.recipe(source, server.url, rows=100, slots=SLOTS, workers=2)
        code, error = command.Command(recipe, folder / "undisturbed").ended()
        assert code == 0, error
        wanted = command.output_of(folder / "undisturbed")
        for how, right_code in CODES.items():
            if how == "full disk" and not has_disk:
                emit("stops", met={}, how=how, left_out="a disk cannot be mounted here")
                continue
            server.clear_log()
            out = (folder / "disk" if how == "full disk" else folder) / how.replace(" ", "-")
            budget = ["--max-requests", str(round(SHARE * count))] if how == "budget" else []
            first = command.Command(recipe, out, *budget)
            ballast = folder / "disk" / "ballast"
            if how == "Ctrl-C":
                command.at_share(server, first, round(SHARE * count), first.interrupt)
            elif how == "full disk":
                command.at_share(
                    server, first, round(SHARE * count), lambda path=ballast: fill(path)
                )
            code, error = first.ended()
            before = len(served.asked(server.log))
            ballast.unlink(missing_ok=True)
            again, words = command.Command(recipe, out).ended()
            log = served.asked(server.log)
            emit(
                "stops",
                met={
                    f"exit code {right_code}": code == right_code,
                    "a message": bool(error.strip()) and "Traceback" not in error,
                    "it goes on": again == 0,
                    "equal output": again == 0 and command.output_of(out) == wanted,
                    # What is in flight when the engine stops, which is not when it is told to.
                    "requests at most rows + in flight": len(log) <= count + SLOTS,
                }
                | ({"budget kept": before <= round(SHARE * count) + SLOTS} if budget else {}),
                how=how,
                at_share=SHARE,
                rows=count,
                slots=SLOTS,
                exit_code=code,
                message=" ".join(error.split())[-400:],
                requests_before=before,
                requests=len(log),
                error=words[-300:] if again else "",
            )


if __name__ == "__main__":
    main()
