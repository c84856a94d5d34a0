"""Options that all benchmarks have, and the one JSON line that each measurement prints."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nemo_sdg import __version__

REPEATS = 5
"""Where latencies are random, the median of so many runs is the figure."""


def options(description: str | None, *more: Callable[[argparse.ArgumentParser], Any]) -> Any:
    """Read the command line; `more` add options of the benchmark's own."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run at a reduced size")
    for add in more:
        add(parser)
    return parser.parse_args()


def repeats(is_quick: bool) -> int:
    """Return how often a measurement with random latencies is repeated."""
    return 1 if is_quick else REPEATS


def median(figures: Sequence[float], digits: int = 4) -> float:
    """Return the median, rounded."""
    return round(statistics.median(figures), digits)


def emit(benchmark: str, *, met: dict[str, bool], **figures: Any) -> None:
    """Print one line: what was measured, under which settings, and which demands it meets.

    Args:
        benchmark: name of the script.
        met: demand of the acceptance table, in words -> whether this measurement meets it.
        figures: settings and results.
    """
    line = {"benchmark": benchmark, **figures, "met": met, "all_met": all(met.values())}
    print(json.dumps(line | _settings()), flush=True)


def _settings() -> dict[str, Any]:
    return {
        "version": __version__,
        "commit": _commit(),
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "loop": "uvloop" if importlib.util.find_spec("uvloop") else "asyncio",
    }


def _commit() -> str:
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip()
