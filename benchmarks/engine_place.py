"""Engine in a thread of the worker, or in a process of its own?

    python benchmarks/engine_place.py [--seconds 5] [--concurrency 64]

The worker asks in sessions of 512 requests and does with every reply what a parser would: nothing,
100 microseconds of pure Python, or that beside a further thread that never rests. Per line: answers
per second, and the loop lag that the engine reports (its worst oversleeping of 0.25 s timers).
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rig.raw_server import raw_server

from nemo_sdg.errors import RequestError
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.engine import EngineConfig
from nemo_sdg.llm.request import Request, Sampling, chat
from nemo_sdg.llm.worker import EngineHandle

SESSION = 512
PARSE_S = 100e-6
PROMPT = "Rewrite the following text in the style of an encyclopedia. " + "word " * 160


def parse(duration_s: float) -> None:
    """Keep the interpreter lock for so long, as a parser in pure Python does."""
    end = time.perf_counter() + duration_s
    while time.perf_counter() < end:
        pass


@contextmanager
def restless_thread(is_on: bool) -> Iterator[None]:
    stop = threading.Event()

    def spin() -> None:
        number = 0
        while not stop.is_set():
            for _ in range(1000):
                number = (number * 31 + 7) % 1_000_003

    thread = threading.Thread(target=spin)
    if is_on:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if is_on:
            thread.join()


def measure(url: str, place: str, load: str, seconds: float, concurrency: int) -> dict[str, object]:
    endpoint = Endpoint(url=url, model="raw")
    config = EngineConfig(endpoint=endpoint.replace(concurrency=concurrency))
    numbers = itertools.count()
    sampling = Sampling(temperature=0.7, max_output_tokens=512)
    parse_s = 0.0 if load == "none" else PARSE_S

    def requests() -> list[tuple[int, Request]]:
        return [
            (
                i,
                Request(messages=chat(None, PROMPT), sampling=sampling).stamped(
                    model="raw", seed=i
                ),
            )
            for i in itertools.islice(numbers, SESSION)
        ]

    engine = EngineHandle(config, place=place)
    answered = 0
    try:
        with engine.session() as session, restless_thread(load == "parse and a busy thread"):
            session.submit(requests())
            session.submit(requests())
            warm_until = time.perf_counter() + 0.5
            started, end = None, warm_until + seconds
            on_way = 2 * SESSION
            while (now := time.perf_counter()) < end:
                if started is None and now >= warm_until:
                    started, answered = now, 0
                for _, answer in session.wait(1.0):
                    if isinstance(answer, RequestError):
                        raise answer
                    answered += 1
                    on_way -= 1
                    if parse_s:
                        parse(parse_s)
                if on_way <= SESSION:
                    session.submit(requests())
                    on_way += SESSION
            assert started is not None
            rate = answered / (time.perf_counter() - started)
        time.sleep(0.6)  # for a last report
        lag_s = engine.state.get("lag_s")
    finally:
        engine.close()
    return {
        "benchmark": "engine_place",
        "place": place,
        "load": load,
        "requests_per_s": round(rate),
        "loop_lag_s": lag_s,
        "seconds": seconds,
        "concurrency": concurrency,
        "parse_us": round(parse_s * 1e6),
        "loop": "uvloop" if importlib.util.find_spec("uvloop") else "asyncio",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="a second a line")
    options = parser.parse_args()
    options.seconds = 1.0 if options.quick else options.seconds
    with raw_server() as url:
        for load in ("none", "parse", "parse and a busy thread"):
            for place in ("thread", "process"):
                found = measure(url, place, load, options.seconds, options.concurrency)
                found |= {
                    "python": platform.python_version(),
                    "cpus": os.cpu_count(),
                    "load_average": round(os.getloadavg()[0], 1),
                    "switch_interval_s": sys.getswitchinterval(),
                }
                print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
