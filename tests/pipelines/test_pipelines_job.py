"""From a recipe to work: partitions, samples, and what a run will take; nothing is asked."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import run_rig as rig

from nemo_sdg.data import backend
from nemo_sdg.errors import BackendError, ConfigurationError, DataError
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.faults import Fault
from nemo_sdg.pipelines.count import estimate
from nemo_sdg.pipelines.job import (
    MOST_ROWS,
    Job,
    choose_tokenizer,
    fingerprint_inputs,
    fingerprint_of,
    plan_job,
    planned_rows,
)
from nemo_sdg.pipelines.recipe import Recipe
from nemo_sdg.tasks.registry import get_task
from nemo_sdg.text.tokens import load_tokenizer

NOWHERE = "http://127.0.0.1:9/v1"


def plan(recipe: Recipe, block_bytes: int | None = None, tokenizer: Any = None) -> Job:
    return plan_job(
        recipe,
        recipe.endpoint_for(recipe.endpoint or ""),
        tokenizer=tokenizer or load_tokenizer("bundled"),
        ledger="nowhere",
        fingerprint="f",
        block_bytes=block_bytes,
    )


def rows_of(job: Job) -> pd.DataFrame:
    first = job.chains[0]
    frames = [part.frame.compute() for part in job.parts if part.chain is first]
    return pd.concat(frames, ignore_index=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return rig.documents(tmp_path / "in.jsonl", range(90))


def test_every_document_is_in_one_part_of_each_task(source: Path) -> None:
    recipe = rig.recipe_for(NOWHERE, source, tasks=["nemotron-cc"], partition_size="2KB")
    job = plan(recipe)
    assert [chain.task.name for chain in job.chains] == [t.name for t in recipe.resolved_tasks()]
    for chain in job.chains:
        mine = [part for part in job.parts if part.chain is chain]
        assert [part.number for part in mine] == list(range(len(mine))) and len(mine) > 5
        ids = [i for part in mine for i in part.frame.compute()["id"]]
        assert sorted(ids) == [f"d{i:04d}" for i in range(90)]


FIELDS = pytest.mark.parametrize(
    "fields",
    [{}, {"tasks": ["multilingual_qa"], "num_samples": 40, "input": []}],
    ids=["documents", "planned"],
)


@pytest.mark.row("M9")
@FIELDS
def test_a_gpu_that_is_asked_for_and_is_not_there_is_an_error(
    source: Path, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "gpu_problem", lambda: "no NVIDIA driver")
    with pytest.raises(BackendError, match="no NVIDIA driver"):
        plan(rig.recipe_for(NOWHERE, source, **({"device": "gpu"} | fields)))
    for device in ("auto", "cpu"):
        assert not plan(rig.recipe_for(NOWHERE, source, **({"device": device} | fields))).is_on_gpu


@FIELDS
def test_a_part_that_shares_no_rows_reads_them_itself(source: Path, fields: dict[str, Any]) -> None:
    job = plan(rig.recipe_for(NOWHERE, source, **({"partition_size": "2KB"} | fields)))
    assert len(job.parts) > 3
    for part in job.parts:
        assert part.read is not None
        pd.testing.assert_frame_equal(pickle.loads(pickle.dumps(part.read))(), part.frame.compute())


@pytest.mark.parametrize("fields", [{"tasks": ["nemotron-cc"]}, {"sample": 30}, {"limit": 30}])
def test_rows_that_are_shared_or_made_of_others_are_read_by_dask(
    source: Path, fields: dict[str, Any]
) -> None:
    job = plan(rig.recipe_for(NOWHERE, source, **({"partition_size": "2KB"} | fields)))
    assert [part.read for part in job.parts] == [None] * len(job.parts)


def test_partitions_stay_when_a_run_goes_on(source: Path) -> None:
    recipe = rig.recipe_for(NOWHERE, source)
    job = plan(recipe)
    again = plan(recipe.replace(workers=7), block_bytes=job.block_bytes)
    assert [p.fingerprint for p in again.parts] == [p.fingerprint for p in job.parts]


@pytest.mark.parametrize(
    ("fields", "changes"),
    [
        ({"partition_size": "2KB"}, {"partition_size": "3KB"}),
        ({"limit": 60}, {"workers": 5}),
        ({"tasks": ["multilingual_qa"]}, {"workers": 5}),
    ],
)
def test_a_part_of_other_borders_is_another_part(
    source: Path, fields: dict[str, Any], changes: dict[str, Any]
) -> None:
    recipe = rig.recipe_for(NOWHERE, None if "tasks" in fields else source, **fields)
    before, after = plan(recipe), plan(recipe.replace(**changes))
    assert len(before.parts) != len(after.parts)
    assert not {p.fingerprint for p in before.parts} & {p.fingerprint for p in after.parts}
    one, other = (rows_of(job).sort_values("id", ignore_index=True) for job in (before, after))
    pd.testing.assert_frame_equal(one, other)


@pytest.mark.row("M7")
def test_a_sample_is_the_same_under_any_partitioning(source: Path) -> None:
    recipe = rig.recipe_for(NOWHERE, source, sample=17)
    drawn = [
        set(rows_of(plan(recipe.replace(partition_size=size)))["id"])
        for size in ("1KB", "5KB", "1MB")
    ]
    assert drawn[0] == drawn[1] == drawn[2] and len(drawn[0]) == 17
    other = set(rows_of(plan(recipe.replace(seed=1)))["id"])
    assert len(other) == 17 and other != drawn[0]
    assert len(rows_of(plan(recipe.replace(sample=1000)))) == 90


def test_a_limit_takes_the_first_documents(source: Path) -> None:
    recipe = rig.recipe_for(NOWHERE, source, limit=13, partition_size="1KB")
    assert list(rows_of(plan(recipe))["id"]) == [f"d{i:04d}" for i in range(13)]
    assert len(rows_of(plan(recipe.replace(limit=1000)))) == 90


def test_planned_rows_do_not_depend_on_where_they_are_cut() -> None:
    task = get_task("multilingual_qa")
    whole = planned_rows(task, 0, 100, 100, 3, "id")
    cut = pd.concat([planned_rows(task, i, i + 20, 100, 3, "id") for i in range(0, 100, 20)])
    pd.testing.assert_frame_equal(whole, cut.reset_index(drop=True))
    assert list(whole.columns) == ["id", "language", "topic"]


# --- what is wrong --------------------------------------------------------------------------------


def test_an_id_twice_names_both_places(tmp_path: Path) -> None:
    rows = [{"id": i % 3, "text": rig.text_of(i)} for i in range(4)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as caught:
        plan(rig.recipe_for(NOWHERE, tmp_path / "in.jsonl"))
    assert "in.jsonl" in str(caught.value) and "1" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"quality_field": "grade", "tasks": ["distill"]}, "grade.*there are id, text"),
        ({"text_field": "body"}, "body"),
        ({"tasks": [rig.SUMMARY | {"prompt": "{document} by {author}"}]}, "author"),
        ({"from_columns": {"temperature": "heat"}}, "heat"),
    ],
)
def test_a_column_that_is_not_there_is_told_before_anything_is_asked(
    source: Path, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        plan(rig.recipe_for(NOWHERE, source, **fields))


def test_a_prompt_that_fills_the_budget_is_told(source: Path) -> None:
    task = rig.SUMMARY | {"budget": {"max_input_tokens": 16}}
    with pytest.raises(ConfigurationError, match="no room for text"):
        plan(rig.recipe_for(NOWHERE, source, tasks=[task]))


# --- what it will take ----------------------------------------------------------------------------


def test_the_estimate_of_a_small_input_is_exact(source: Path) -> None:
    task = rig.SUMMARY | {"budget": {"max_input_tokens": 500, "max_output_tokens": 40}}
    job = plan(rig.recipe_for(NOWHERE, source, tasks=[task], partition_size="3KB"))
    found = estimate(job)
    tokenizer = load_tokenizer("bundled")
    prompts = [f"Sum up in a line: {rig.text_of(i)}" for i in range(90)]
    chat = [tokenizer.chat_tokens([{"role": "user", "content": prompt}]) for prompt in prompts]
    assert found.is_exact and (found.rows, found.requests) == (90, 90)
    assert found.input_tokens == sum(chat)
    assert found.output_tokens_at_most == 40 * 90
    priced = Endpoint(url=NOWHERE, model="m", price_in=3.0, price_out=5.0)
    spent = (found.input_tokens * 3.0 + 3600 * 5.0) / 1e6
    assert found.cost_at_most(priced) == pytest.approx(spent)
    assert found.cost_at_most(Endpoint(url=NOWHERE, model="m", price_in=3.0)) is None


def test_the_estimate_of_a_large_input_is_scaled_up(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_sdg.pipelines.count.ESTIMATE_BYTES", 8 << 10)
    for module in ("job", "count"):
        monkeypatch.setattr(f"nemo_sdg.pipelines.{module}.SMALLEST_BLOCK", 2 << 10)
    job = plan(rig.recipe_for(NOWHERE, source))
    assert job.block_bytes and len(job.parts) > 4
    found = estimate(job)
    assert not found.is_exact and found.requests == pytest.approx(90, rel=0.2)


# --- tokenizer, fingerprints, what travels --------------------------------------------------------


def test_the_servers_own_tokenizer_counts_where_there_is_no_other(
    source: Path, scripted: Callable[..., Any]
) -> None:
    server = scripted(kind="vllm")
    recipe = rig.recipe_for(server.url, source, tokenizer=None)
    found = choose_tokenizer(recipe, recipe.endpoint_for(server.url), is_offline=False)
    assert not found.estimated and list(found.count(["two words"])) == [2]
    plain = scripted(kind="openai", faults=[Fault(kind="error_500", times=0)])
    recipe = rig.recipe_for(plain.url, source, tokenizer=None)
    found = choose_tokenizer(recipe, recipe.endpoint_for(plain.url), is_offline=False)
    assert found.estimated


def test_the_fingerprint_holds_what_decides_the_output(source: Path) -> None:
    recipe = rig.recipe_for(NOWHERE, source)
    inputs = fingerprint_inputs(recipe)
    mine = fingerprint_of(recipe, inputs)
    for changes in ({"seed": 1}, {"format": "jsonl"}, {"missing": "drop-document"}, {"limit": 5}):
        assert fingerprint_of(recipe.replace(**changes), inputs) != mine
    for changes in (
        {"workers": 5},
        {"endpoint": "http://127.0.0.1:10/v1"},
        {"concurrency": 3},
        {"partition_size": "1KB"},
        {"max_failures": 0.9},
    ):
        assert fingerprint_of(recipe.replace(**changes), inputs) == mine
    source.write_text(source.read_text().replace("bread", "bread!"))
    assert fingerprint_of(recipe, fingerprint_inputs(recipe)) != mine


def test_a_chain_travels_to_a_worker(source: Path) -> None:
    (chain,) = plan(rig.recipe_for(NOWHERE, source)).chains
    assert pickle.loads(pickle.dumps(chain)).task == chain.task


def test_no_part_is_larger_than_what_one_worker_should_hold(source: Path) -> None:
    recipe = Recipe(tasks=["multilingual_qa"], endpoint="offline", num_samples=30_001)
    job = plan(recipe.replace(endpoint=NOWHERE, model="m"))
    sizes = [len(part.frame.compute()) for part in (job.parts[0], job.parts[-1])]
    assert max(sizes) <= MOST_ROWS
    assert len(job.parts) == -(-30_001 // MOST_ROWS)
    first = plan(rig.recipe_for(NOWHERE, source, limit=90))
    assert sum(len(part.frame.compute()) for part in first.parts) == 90


def test_the_estimate_reads_little_whatever_the_partitions(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_sdg.pipelines.count.ESTIMATE_BYTES", 4096)
    read: list[int] = []
    from nemo_sdg.pipelines import count as module

    count = module.counted
    monkeypatch.setattr(module, "counted", lambda *a: read.append(1) or count(*a))
    job = plan(rig.recipe_for(NOWHERE, source, partition_size="1KB"))
    assert len(job.parts) > 8
    planned = estimate(job)
    assert len(read) <= 5 and not planned.is_exact


def test_another_tokenizer_makes_other_parts(source: Path) -> None:
    recipe, other = rig.recipe_for(NOWHERE, source), load_tokenizer("bundled")
    other.fingerprint = "of another"
    usual = {part.fingerprint for part in plan(recipe).parts}
    assert usual.isdisjoint(part.fingerprint for part in plan(recipe, tokenizer=other).parts)
