"""One cluster for all tests of whole runs: to start one takes longer than most of the tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import run_rig as rig


@pytest.fixture(scope="session")
def client() -> Iterator[Any]:
    """Two worker processes, and a client that is connected to them."""
    with rig.cluster() as client:
        yield client
