"""A recipe whose answers end by a rule: rows, dead letters, ledger and what it says it took."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import run_rig as rig

from nemo_sdg.llm.scripted import ScriptedEndpoint, batching
from nemo_sdg.pipelines.recipe import load_recipe
from nemo_sdg.pipelines.run import run

ANSWER = " ".join(["A sum.", "</sum>", *(f"word{i}" for i in range(120))])
RULES = [
    (r"number \d*[12] is", f"Sorry, as an AI model I cannot. {ANSWER}"),
    (r"number \d*3 is", "around and around\n" * 120),
    ("", ANSWER),
]
RULE = {"complete": "(?=</sum>)", "reject": "(?i)as an ai", "max_repeated_lines": 5}


@pytest.mark.row("T-STREAM")
def test_a_run_ends_answers_by_the_rule_of_its_recipe(client: Any, tmp_path: Path) -> None:
    source = rig.documents(tmp_path / "in.jsonl", range(10))
    task = rig.SUMMARY | {"tries": 1, "sampling": {"stop_when": RULE}}
    slowly = batching(64, tokens_per_s=150, median_tokens=150, sigma=0)
    with ScriptedEndpoint(rules=RULES, latency=slowly) as server:
        recipe = rig.recipe_for(server.url, source, tasks=[task], max_failures=1.0)
        result = run(recipe, tmp_path / "out", client=client)
        entries = list(server.log.entries)
        written = load_recipe(tmp_path / "out" / "recipe.yaml")
        (asked,) = written.resolved_tasks()
        assert asked.sampling.stop_when.described() == RULE
        again = run(recipe.replace(format="jsonl"), tmp_path / "out", client=client)
        assert len(server.log) == len(entries), "all is filed, the useless answers too"
    names = ("kept", "dead.rejected", "dead.repeated_lines")
    for one in (result, again):
        assert [one.counts["summary"][name] for name in names] == [7, 2, 1]
    assert set(rig.data_of(tmp_path / "out")["summary"]) == {"A sum."}
    dead = rig.table_of(tmp_path / "out", "dead_letters")
    assert dict(dead["reason"].value_counts()) == {"rejected": 2, "repeated_lines": 1}
    assert set(dead.loc[dead["reason"] == "rejected", "raw"]) == {"Sorry, as an AI"}
    assert len(entries) == 10 and all(e.client_left and e.num_events < 80 for e in entries)
    assert rig.table_of(tmp_path / "out", "provenance")["is_estimated"].tolist() == [True] * 10
    metrics = rig.report(tmp_path / "out")["metrics"]["total"]
    assert metrics["estimated"] == metrics["answered"] == 10
    assert 0 < metrics["tokens"]["output_tokens"] < 10 * 80
    assert metrics["waste"]["dead.rejected"]["answers"] == 2
    assert metrics["first_token"]["p50"] > 0
    assert "estimated for 10 requests" in (tmp_path / "out" / "report.html").read_text()
