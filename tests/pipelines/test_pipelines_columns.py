"""The columns of the input against those of the tasks; nothing is asked, nothing overwritten."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import run_rig as rig

from nemo_sdg.errors import ConfigurationError, DataError, PromptError
from nemo_sdg.pipelines.job import plan_job
from nemo_sdg.tasks import registry
from nemo_sdg.tasks.task import flow
from nemo_sdg.text.tokens import load_tokenizer

NOWHERE = "http://127.0.0.1:9/v1"

Plan = Callable[..., Any]


@pytest.fixture
def planned(tmp_path: Path) -> Plan:
    """Plan a run over one document with these further columns."""

    def plan(columns: dict[str, Any], **fields: Any) -> Any:
        row = {"id": "a", "text": rig.text_of(1), **columns}
        (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
        recipe = rig.recipe_for(NOWHERE, tmp_path / "in.jsonl", **fields)
        return plan_job(
            recipe,
            recipe.endpoint_for(NOWHERE),
            tokenizer=load_tokenizer("bundled"),
            ledger="nowhere",
            fingerprint="f",
        )

    return plan


@pytest.mark.parametrize(
    ("task", "fields", "column"),
    [
        (rig.SUMMARY, {}, "summary"),
        (rig.SUMMARY, {}, "summary_error"),
        (rig.SUMMARY, {}, "summary_call"),
        (rig.SUMMARY, {}, "summary_token_count"),
        (rig.SUMMARY, {}, "segment_id"),
        (rig.SUMMARY, {}, "num_segments"),
        (rig.SUMMARY, {}, "num_joined_segments"),
        (rig.SUMMARY | {"prompt": "{document} {summary}"}, {}, "summary"),
        ("distill", {}, "distill"),
        ("wikipedia_rephrase", {}, "rephrased_complete"),
        ("diverse_qa", {"shape": "rows"}, "question"),
    ],
)
def test_no_column_of_the_input_is_overwritten(
    planned: Plan, task: Any, fields: dict[str, Any], column: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        planned({column: "mine", "note": "mine"}, tasks=[task], **fields)
    told = str(caught.value)
    assert f"'{column}' is a column of the input already" in told
    assert "rename or drop it in the input" in told and "note" not in told
    assert ("--output-field" in told) == (column.startswith(("summary", "distill")))


def test_what_an_earlier_run_made_is_named_at_once(planned: Plan) -> None:
    made = {"segment_id": 0, "num_segments": 1, "segment_token_count": 9, "summary": "x"}
    with pytest.raises(ConfigurationError) as caught:
        planned(made)
    told = str(caught.value)
    assert all(f"'{name}'" in told for name in made)
    assert "rename or drop them" in told and "earlier run" in told


def test_columns_of_other_names_stay(planned: Plan) -> None:
    columns = {"title": "T", "question": "Q", "ratio": 0.5, "error": "e"}
    (part,) = planned(columns, tasks=["distill"]).parts
    meta = part.chain.meta(part.meta)
    assert [name for name in columns if name not in meta.columns] == []


def test_a_placeholder_without_a_column_is_told_with_the_users_own(planned: Plan) -> None:
    task = rig.SUMMARY | {"prompt": "{document} by {autor}"}
    with pytest.raises(PromptError) as caught:
        planned({"author": "A"}, tasks=[task])
    told = str(caught.value)
    assert "there are: author, document, id, text)" in told and "did you mean {author}?" in told
    assert "segment" not in told


def test_a_prompt_may_name_what_the_run_makes(planned: Plan) -> None:
    task = rig.SUMMARY | {"prompt": "Part {segment_id} of {num_segments}: {document}"}
    assert len(planned({}, tasks=[task]).parts) == 1


def test_a_brace_before_a_column_that_nothing_closes_is_told(planned: Plan) -> None:
    task = rig.SUMMARY | {"prompt": "{document}\n\n{title goes here"}
    with pytest.raises(PromptError, match=r"`\{title` in line 3 is not closed: write \{title\}"):
        planned({"title": "T"}, tasks=[task])
    assert len(planned({"name": "T"}, tasks=[task]).parts) == 1, "here it is text"


def test_a_flow_and_sampling_name_the_users_columns_too(planned: Plan, monkeypatch: Any) -> None:
    @flow(output="verdict", doc="Ask.", name="columns_flow")
    def ask(document: str, grade: str) -> Any:
        yield []

    monkeypatch.setattr(registry, "_tasks", registry.all_tasks() | {"columns_flow": ask})
    with pytest.raises(DataError, match=r"columns_flow reads 'grade'.*there are id, text$"):
        planned({}, tasks=["columns_flow"])
    with pytest.raises(DataError, match=r"from_columns reads 'heat'.*there are id, text$"):
        planned({}, from_columns={"temperature": "heat"})


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        ({"grade": "7", "stars": 3}, r"'grade' holds \w+, not numbers \(columns of numbers: stars"),
        ({"grade": "7"}, "no column holds numbers"),
        ({"stars": 3}, "'grade' is no column of the input; there are id, text, stars"),
    ],
)
def test_a_quality_field_is_a_column_of_numbers(
    planned: Plan, columns: dict[str, Any], wanted: str
) -> None:
    with pytest.raises(DataError, match=wanted) as caught:
        planned(columns, tasks=["distill"], quality_field="grade")
    assert "--quality-field" in str(caught.value)
    assert planned({"grade": 7}, tasks=["distill"], quality_field="grade").parts
