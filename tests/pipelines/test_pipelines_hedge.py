"""A run whose last requests hang: with `hedge` it ends all the same, and tells what that cost."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import run_rig as rig

from nemo_sdg.llm.faults import Fault
from nemo_sdg.llm.scripted import ScriptedEndpoint
from nemo_sdg.pipelines.run import run


def test_a_run_does_not_wait_for_what_hangs(client: Any, tmp_path: Path) -> None:
    source = rig.documents(tmp_path / "in.jsonl", range(60))
    hangs = [Fault(kind="hang", times=1, pattern=f"number {n} is") for n in (11, 52)]
    with ScriptedEndpoint(faults=hangs) as server:
        prices = {"price_in": 1.0, "price_out": 2.0}
        recipe = rig.recipe_for(server.url, source, hedge=0.05, timeout_s=120, **prices)
        begun = time.monotonic()
        result = run(recipe, tmp_path / "out", client=client)
        assert time.monotonic() - begun < 60, "one time-out is longer"
        assert len(server.log) == 62
        paid = [e.usage for e in server.log.entries if e.fault is None]
    assert result.counts["summary"]["kept"] == 60
    assert len(rig.data_of(tmp_path / "out")) == 60
    total = rig.report(tmp_path / "out")["metrics"]["total"]
    assert (total["sent"], total["answered"], total["copies"]) == (62, 60, 2)
    assert total["failed"] == {"overtaken": 2} and not total["retries"]
    lost = total["waste"]["failed.overtaken"]
    assert lost["answers"] == total["estimated"] == 2 and lost["cost"] > 0
    known = sum(usage["prompt_tokens"] + 2 * usage["completion_tokens"] for usage in paid) / 1e6
    assert abs(total["cost"] - known - lost["cost"]) < 1e-9
    html = (tmp_path / "out" / "report.html").read_text()
    assert "2 sent twice" in html and "the other one was answered first" in html
