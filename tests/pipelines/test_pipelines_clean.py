"""A run folder is made small, and gives the same rows as before without asking anything."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import run_rig as rig

from nemo_sdg.errors import ConfigurationError, RunFolderError
from nemo_sdg.llm.faults import Fault
from nemo_sdg.llm.scripted import ScriptedEndpoint
from nemo_sdg.pipelines.clean import clean
from nemo_sdg.pipelines.owner import owned
from nemo_sdg.pipelines.replay import replay
from nemo_sdg.pipelines.run import run

pytestmark = pytest.mark.cluster


@pytest.fixture
def done(client: Any, tmp_path: Path) -> Path:
    """Two tasks, second tries for some rows; beside them the answers of a run with another seed."""
    source = rig.documents(tmp_path / "in.jsonl", range(30))
    rules = [("number (\\d+) is", {"expand": r"Summary of \1."})]
    faults = [Fault(kind="null_content", pattern=r"number \d*4 is", times=1)]
    with ScriptedEndpoint(rules=rules, faults=faults) as server:
        other = rig.SUMMARY | {"name": "title", "output": "title", "prompt": "Title: {document}"}
        fields: dict[str, Any] = {"tasks": [rig.SUMMARY, other], "partition_size": "4KB"}
        recipe = rig.recipe_for(server.url, source, **fields)
        first = recipe.replace(seed=7)  # other answers than those of the run
        run(first.replace(ledger=str(tmp_path / "out" / "ledger")), tmp_path / "first")
        run(recipe, tmp_path / "out", client=client)
    return tmp_path / "out"


def test_unused_answers_go_and_a_replay_gives_the_same(
    client: Any, done: Path, tmp_path: Path
) -> None:
    num_filed = len(rig.filed_keys(done))
    old = done / "data" / ".part-00000.parquet.0123456789ab"
    old.write_bytes(b"half a part")
    os.utime(old, (time.time() - 3600,) * 2)
    young = done / "state" / ".part-00000.json.0123456789ab"
    young.write_bytes(b"{")
    dry = clean(done, drop_unused=True, dry_run=True)
    assert old.exists() and len(rig.filed_keys(done)) == num_filed
    cleaned = clean(done, drop_unused=True)
    assert dry.ledger.unused == cleaned.ledger.unused > 0
    assert (dry.leftovers, cleaned.leftovers) == (1, 1)
    assert young.exists() and not old.exists(), "a worker may be writing the young one"
    young.unlink()
    assert cleaned.ledger.files == 1
    assert len(rig.filed_keys(done)) == num_filed - cleaned.ledger.unused
    again = replay(done, output=tmp_path / "again", client=client)
    assert again.exit_code == 0
    rig.assert_equal_output(done, tmp_path / "again")


def test_what_it_cannot_know_is_told(done: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="and not both"):
        clean()
    with pytest.raises(ConfigurationError, match="needs RUN"):
        clean(ledger=done / "ledger", drop_unused=True)
    with pytest.raises(RunFolderError, match="no run folder"):
        clean(tmp_path)
    with pytest.raises(RunFolderError, match="other runs may use"):
        clean(tmp_path / "first", drop_unused=True)
    with owned(done), pytest.raises(RunFolderError):
        clean(done)
    report = rig.report(done)
    for changed, told in (({"status": "stopped"}, "not complete"), ({"retries": [{}]}, "retry")):
        (done / "run.json").write_text(json.dumps(report | changed))
        with pytest.raises(RunFolderError, match=told):
            clean(done, drop_unused=True)
    assert clean(ledger=done / "ledger").ledger.answers == len(rig.filed_keys(done))
