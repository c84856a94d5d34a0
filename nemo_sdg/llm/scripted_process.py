"""A scripted endpoint in a child process, so that it does not share the interpreter lock."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import orjson

from nemo_sdg.llm import server
from nemo_sdg.llm.faults import Fault, Latency
from nemo_sdg.llm.rules import plain_rule
from nemo_sdg.llm.scripted import ScriptedEndpoint
from nemo_sdg.llm.traffic import Log


class RemoteEndpoint:
    """A scripted endpoint in another process."""

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def log(self) -> Log:
        """A copy of what it saw so far."""
        return Log.from_lines(self._ask("GET"))

    def clear_log(self) -> None:
        """Forget what it saw so far."""
        self._ask("DELETE")

    def _ask(self, method: str) -> bytes:
        import httpx

        reply = httpx.request(method, f"{self.url}/_log", trust_env=False, timeout=60)
        reply.raise_for_status()
        return reply.content


@contextmanager
def start_process(**options: Any) -> Iterator[RemoteEndpoint]:
    """Run a `ScriptedEndpoint` with these options in a child process that ends with this one.

    Answers and conditions must be plain values here, since a callable cannot be sent along:
    a `ConfigurationError` says so.
    """
    config = dict(options)
    config["rules"] = [plain_rule(*rule) for rule in options.get("rules", ())]
    config["faults"] = [asdict(fault) for fault in options.get("faults", ())]
    if options.get("latency") is not None:
        config["latency"] = asdict(options["latency"])
    with server.start_process("nemo_sdg.llm.scripted_process", config) as url:
        yield RemoteEndpoint(url)


def _from_config(config: dict[str, Any]) -> ScriptedEndpoint:
    rules = [(re.compile(p, flags), value) for p, flags, value in config.pop("rules", ())]
    faults = [Fault(**fields) for fields in config.pop("faults", ())]
    latency = config.pop("latency", None)
    return ScriptedEndpoint(
        rules=rules,
        faults=faults,
        latency=None if latency is None else Latency(**latency),
        **config,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until standard input ends; print the URL. `start_process` calls this in a child."""
    parser = argparse.ArgumentParser(prog="python -m nemo_sdg.llm.scripted_process")
    parser.add_argument("--config", required=True, help="JSON, or - for the first line of input")
    given = parser.parse_args(arguments).config
    config = orjson.loads(sys.stdin.buffer.readline() if given == "-" else given)
    endpoint = _from_config(config)
    server.stop_at_end_of_input(endpoint)

    def announce(url: str) -> None:
        sys.stdout.write(url + "\n")
        sys.stdout.flush()

    endpoint.serve_forever(on_ready=announce)


if __name__ == "__main__":
    main()
