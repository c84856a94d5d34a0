"""What becomes of answers on their way out of an engine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nemo_sdg.errors import EndpointDown
from nemo_sdg.llm.outbox import Outbox
from nemo_sdg.llm.tries import TryLog


class Gone:
    """The worker's end of the socket after Ctrl-C; uvloop raises where asyncio only warns."""

    def is_closing(self) -> bool:
        return True

    def write(self, data: bytes) -> None:
        raise RuntimeError("the handler is closed")


def test_answers_that_nobody_reads_any_more_are_filed_in_silence() -> None:
    filed: list[bytes] = []

    class Filing:
        def put_many(self, lines: list[bytes]) -> None:
            filed.extend(lines)

    async def answered() -> None:
        ledger: Any = Filing()
        outbox = Outbox(Gone(), ledger, pytest.fail, TryLog(None))
        outbox.answer([(1, 0)], [b"line"])
        outbox.flush()
        outbox.end(EndpointDown("gone"))

    asyncio.run(answered())
    assert filed == [b"line"]
