"""Whole runs on two worker processes: everything counted, everything where it belongs."""

from __future__ import annotations

import json
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import run_rig as rig

from nemo_sdg.data.parts import INCOMPLETE_NAME, read_manifest
from nemo_sdg.errors import ConfigurationError, RunStopped, TooManyFailures
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.faults import fixed
from nemo_sdg.llm.ledger_segment import Segment
from nemo_sdg.llm.scripted import ScriptedEndpoint
from nemo_sdg.pipelines.folder import TABLES, table_schema
from nemo_sdg.pipelines.recipe import Recipe, load_recipe
from nemo_sdg.pipelines.run import RunResult, run
from nemo_sdg.tasks.plan import LanguagePlan
from nemo_sdg.tasks.registry import get_task
from nemo_sdg.tasks.task import Task

pytestmark = pytest.mark.cluster

FIVE = ("wikipedia_rephrase", "diverse_qa", "distill", "extract_knowledge", "knowledge_list")
SIX = (*FIVE, "multilingual_qa")
EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "data"
MOST_DIGITS = ("requests", "input_tokens", "output_tokens", "rows")


def slice_of_examples(path: Path) -> Path:
    """Articles of three languages, short and long, one empty, one of a single word."""
    english = (EXAMPLES / "articles-en.jsonl").read_text().splitlines()
    others = (EXAMPLES / "articles-other.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in (*english[1:6], others[0], others[-1])]
    kept = [{"id": row["id"], "text": row["text"]} for row in rows]
    kept += [{"id": "empty", "text": ""}, {"id": "word", "text": "Word"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return path


@dataclass(frozen=True)
class Whole:
    """A run of six tasks over the slice."""

    recipe: Recipe
    result: RunResult
    folder: Path
    observer: rig.At
    num_documents: int = 9


@pytest.fixture(scope="module")
def whole(
    client: Any, offline_endpoint: Endpoint, tmp_path_factory: pytest.TempPathFactory
) -> Whole:
    base = tmp_path_factory.mktemp("whole")
    recipe = rig.recipe_for(
        offline_endpoint.url,
        slice_of_examples(base / "in.jsonl"),
        tasks=["nemotron-cc", "multilingual_qa"],
        model=offline_endpoint.model,
        num_samples=10,
        price_in=1.0,
        price_out=2.0,
    )
    observer = rig.At(-1, lambda: None)
    result = run(recipe, base / "out", client=client, observer=observer)
    return Whole(recipe, result, base / "out", observer)


@pytest.mark.row("J1")
@pytest.mark.row("M8")
def test_the_funnel_of_a_whole_run_adds_up(whole: Whole) -> None:
    counts = rig.report(whole.folder)["counts"]
    assert tuple(counts) == SIX and counts == whole.result.counts
    dead, dropped = (rig.table_of(whole.folder, name) for name in ("dead_letters", "dropped"))
    for task in SIX:
        mine = counts[task]
        rig.add_up(mine)
        documents = sum(
            mine.get(f"documents.{state}", 0)
            for state in ("complete", "partial", "empty", "filtered")
        )
        assert documents == (10 if task == "multilingual_qa" else whole.num_documents)
        assert mine["kept"] > 0 and mine["rows"] == len(rig.data_of(whole.folder, task))
        told = Counter(f"dead.{reason}" for reason in dead[dead["task"] == task]["reason"])
        assert told == {k: n for k, n in mine.items() if k.startswith("dead.")}
        removed = dropped[dropped["task"] == task]
        segments = removed[removed["segment_id"].notna()]
        whole_ones = removed[removed["segment_id"].isna()]
        for name, number in Counter(segments["filter"]).items():
            assert mine[f"filtered.{name}"] >= number
        for name, number in Counter(whole_ones["filter"]).items():
            told_where = mine.get(f"documents.filtered.{name}", 0) + mine.get(f"filtered.{name}", 0)
            assert told_where >= number
    for task in FIVE:  # the empty one and the single word are named with the filter that took them
        short = dropped[(dropped["task"] == task) & dropped["id"].isin(["empty", "word"])]
        assert set(short["id"]) == {"empty", "word"} and short["filter"].nunique() == 1


@pytest.mark.row("M12")
@pytest.mark.fault(19)
def test_the_report_says_what_was_run_and_what_it_cost(whole: Whole) -> None:
    report = rig.report(whole.folder)
    assert report["status"] == "complete" and report["exit_code"] == whole.result.exit_code == 0
    tokens = report["tokens"]
    for name in ("input_tokens", "output_tokens"):
        assert tokens[name] == sum(counts[name] for counts in report["counts"].values()) > 0
    cost = (tokens["input_tokens"] * 1.0 + tokens["output_tokens"] * 2.0) / 1e6
    assert report["cost"] == pytest.approx(cost)
    assert report["cost"] == pytest.approx(rig.table_of(whole.folder, "provenance")["cost"].sum())
    assert report["seed"] == 0 and report["tokenizer"]["hash"] and report["versions"]["dask"]
    engine = report["tokenizer"]["engine"].split(", ")[0]
    assert engine in {"gigatoken", "tokenizers"}
    # Where it is not the fast engine that counts, the report and the run say why, once.
    notes = report["tokenizer"]["notes"]
    assert [*filter(whole.observer.notes.__contains__, notes)] == notes
    assert notes or engine == "gigatoken"
    assert set(report["task_seconds"]) == set(SIX)
    (line,) = whole.observer.lines
    requests = sum(counts["requests"] for counts in report["counts"].values())
    told = int(line.split(" rows, ")[1].split(" requests")[0].replace("about ", ""))
    assert told <= requests <= 2 * told  # an answer of no use is asked for once more
    assert whole.recipe.model in line and "127.0.0.1" in line and "cost at most" in line


def test_the_folder_is_private_and_complete(whole: Whole) -> None:
    for path in (whole.folder, *whole.folder.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), f"{path}: {mode:o}"
        assert path.name != INCOMPLETE_NAME and not path.name.startswith(".")
    assert {path.name for path in whole.folder.iterdir()} == {
        *("data", "dead_letters", "dropped", "provenance", "ledger", "state", "tries"),
        *("recipe.yaml", "run.json", "state.json", "report.html"),
    }
    assert {path.name for path in (whole.folder / "data").iterdir()} == set(SIX)
    written = load_recipe(whole.folder / "recipe.yaml")  # tasks stand there in full
    assert written.identity() == whole.recipe.identity()
    assert written.cheap() == whole.recipe.cheap()
    assert (written.workers, written.endpoint) == (whole.recipe.workers, whole.recipe.endpoint)
    for task, place in whole.result.data_folders.items():
        manifest = read_manifest(place)
        assert manifest is not None
        assert manifest["rows"] == whole.result.counts[task]["rows"]
        named = {part["name"]: part["bytes"] for part in manifest["parts"]}
        there = {p.name: p.stat().st_size for p in place.glob("part-*")}
        assert named == there


@pytest.mark.parametrize("name", list(TABLES))
def test_side_tables_have_one_schema_even_when_empty(whole: Whole, name: str) -> None:
    frame = rig.table_of(whole.folder, name)
    assert list(frame.columns) == list(TABLES[name])
    for part in (whole.folder / name).glob("part-*.parquet"):
        assert pq.read_schema(part) == table_schema(name)
    assert not len(frame) or frame["id"].map(type).eq(str).all()


def test_calls_lead_to_their_provenance(whole: Whole) -> None:
    provenance = rig.table_of(whole.folder, "provenance")
    filed = rig.filed_keys(whole.folder)
    assert set(provenance["call"]) == filed
    for task in SIX:
        mine = provenance[provenance["task"] == task]
        assert len(mine) == whole.result.counts[task]["requests"]
        data = rig.data_of(whole.folder, task)
        (column,) = [name for name in data.columns if name.endswith("_call")]
        calls = data[["id", column]].explode(column).dropna()
        joined = calls.merge(mine, left_on=column, right_on="call", how="left")
        assert len(joined) == len(calls) == len(joined["prompt_hash"].dropna())
        assert (joined["id_x"].astype(str) == joined["id_y"]).all()
        assert (joined["model_served"] == whole.recipe.model).all()
        if task == "wikipedia_rephrase":
            assert data[column].map(len).tolist() == data["num_joined_segments"].tolist()


def test_samples_are_shown_with_their_task(whole: Whole) -> None:
    assert whole.result.samples
    assert {row["task"] for row in whole.result.samples} <= set(SIX)


# --- partitions without rows ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedEndpoint]:
    with ScriptedEndpoint() as server:
        yield server


def ten_files(folder: Path, empty: tuple[int, ...]) -> list[Path]:
    """Ten files of equal size, one partition each; in the empty ones all is too short to ask."""
    paths = []
    for number in range(10):
        rows = []
        for i in range(4 * number, 4 * number + 4):
            text = "Short" if number in empty else rig.text_of(i)
            rows.append({"id": f"d{i:04d}", "text": text, "note": "x" * (300 - len(text))})
        path = folder / f"in-{number}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        paths.append(path)
    assert len({path.stat().st_size for path in paths}) == 1
    return paths


@pytest.mark.row("M13")
@pytest.mark.parametrize("file_format", ["parquet", pytest.param("jsonl", marks=pytest.mark.slow)])
def test_partitions_without_rows_have_the_same_schema(
    client: Any, server: ScriptedEndpoint, tmp_path: Path, file_format: str
) -> None:
    paths = ten_files(tmp_path, empty=(3, 7))
    budget = {"max_input_tokens": 512, "max_output_tokens": 64, "min_document_tokens": 5}
    recipe = rig.recipe_for(
        server.url,
        paths,
        tasks=[rig.SUMMARY | {"budget": budget}],
        partition_size=str(paths[0].stat().st_size),
        format=file_format,
    )
    result = run(recipe, tmp_path / "out", client=client)
    manifest = read_manifest(tmp_path / "out" / "data")
    assert manifest is not None
    assert [part["rows"] for part in manifest["parts"]] == [4, 4, 4, 0, 4, 4, 4, 0, 4, 4]
    assert result.counts["summary"]["rows"] == len(rig.data_of(tmp_path / "out")) == 32
    if file_format == "parquet":
        found = [pq.read_schema(p) for p in (tmp_path / "out" / "data").glob("part-*")]
        assert len(found) == 10 and all(schema == found[0] for schema in found)
    assert Counter(rig.table_of(tmp_path / "out", "dropped")["filter"]) == {
        "min_document_tokens": 8
    }


@pytest.mark.row("M13")
def test_an_interrupted_run_leaves_no_half_file_and_never_looks_complete(
    client: Any, server: ScriptedEndpoint, tmp_path: Path
) -> None:
    recipe = rig.recipe_for(server.url, ten_files(tmp_path, empty=()), partition_size="1400")

    def end() -> None:
        raise RunStopped("the test ends it")

    observer = rig.At(8, end)
    with pytest.raises(RunStopped, match="the test ends it"):
        run(recipe, tmp_path / "out", client=client, observer=observer)
    report = rig.report(tmp_path / "out")
    assert report["status"] == "stopped" and report["exit_code"] == 3
    for name in ("data", *TABLES):
        assert read_manifest(tmp_path / "out" / name) is None
        assert (tmp_path / "out" / name / INCOMPLETE_NAME).exists()
    for part in (tmp_path / "out").rglob("part-*.parquet"):
        pq.read_table(part)
    result = run(recipe, tmp_path / "out", client=client)
    assert result.counts["summary"]["kept"] == 40 and not result.was_complete_before
    assert not list((tmp_path / "out").rglob(INCOMPLETE_NAME))


# --- from nothing ---------------------------------------------------------------------------------

SPOKEN = {
    "English": "Question: What is 2 * 3, and why does it matter to us?\nAnswer: It is 2 * 3 = 6, "
    "which is the same as the sum of three and three, and that is all there is to it.",
    "German": "Question: Was ist 2 * 3, und warum ist das für uns wichtig?\nAnswer: Es ist "
    "2 * 3 = 6, und das ist nicht mehr und nicht weniger als die Summe von drei und drei.",
    "French": "Question: Que vaut 2 * 3, et pourquoi est-ce important pour nous?\nAnswer: Cela "
    "vaut 2 * 3 = 6, ce qui est la même chose que la somme de trois et de trois.",
    "Italian": "Question: Quanto fa 2 * 3, e perché è importante per noi?\nAnswer: Fa 2 * 3 = 6, "
    "che è la stessa cosa della somma di tre e di tre, e questo è tutto.",
    "Spanish": "Question: ¿Cuánto es 2 * 3, y por qué es importante para nosotros?\nAnswer: Es "
    "2 * 3 = 6, que es lo mismo que la suma de tres y de tres, y eso es todo.",
}


@pytest.mark.row("N1")
@pytest.mark.row("M3")
def test_a_hundred_samples_in_five_languages(
    client: Any, scripted: Callable[..., Any], tmp_path: Path
) -> None:
    wrong = r"Language: French\nSubject: [a-e]"
    rules = [(wrong, SPOKEN["English"])]
    rules += [(f"Language: {name}\n", text) for name, text in SPOKEN.items()]
    server = scripted(rules=rules)
    recipe = rig.recipe_for(server.url, None, tasks=["multilingual_qa"], max_failures=1.0)
    result = run(recipe, tmp_path / "out", client=client)
    plan = get_task("multilingual_qa").plan
    assert isinstance(plan, LanguagePlan)
    planned = plan.rows(0, 100, total=100, seed=0)
    assert Counter(planned["language"]) == dict.fromkeys(SPOKEN, 20)
    fooled = [
        str(i)
        for i in range(100)
        if planned["language"][i] == "French" and planned["topic"][i][0] in "abcde"
    ]
    assert 2 <= len(fooled) <= 15
    data = rig.data_of(tmp_path / "out")
    assert Counter(data["language"]) == dict.fromkeys(SPOKEN, 20) | {"French": 20 - len(fooled)}
    assert list(data["language"]) == [planned["language"][i] for i in data["id"]]
    assert data["answer"].str.contains("2 * 3 = 6", regex=False).all()
    assert data["question"].str.contains("2 * 3", regex=False).all()
    assert (data["raw"] == data["language"].map(SPOKEN)).all()
    dead = rig.table_of(tmp_path / "out", "dead_letters")
    assert sorted(dead["id"], key=int) == fooled
    assert set(dead["reason"]) == {"wrong_language"} and set(dead["raw"]) == {SPOKEN["English"]}
    assert (dead["attempts"] == 2).all()
    assert result.exit_code == (4 if len(fooled) > 5 else 0)
    assert sum(rig.requests_of(server.log).values()) == 100 + len(fooled)


@pytest.mark.row("M7")
@pytest.mark.row("G1")
def test_a_thousand_rows_from_nothing_on_both_workers(client: Any, tmp_path: Path) -> None:
    rules = [(r"Language: (\w+)", {"expand": r"Question: 7 * 6?\nAnswer: 42"})]
    seen = {}
    with ScriptedEndpoint.start_process(rules=rules) as server:
        for workers in (2, 5):
            server.clear_log()
            recipe = rig.recipe_for(
                server.url,
                None,
                tasks=["multilingual_qa"],
                num_samples=1000,
                workers=workers,
                concurrency=64,
            )
            folder = tmp_path / str(workers)
            result = run(recipe, folder, client=client)
            assert result.counts["multilingual_qa"]["rows"] == 1000
            manifest = read_manifest(folder / "data")
            assert manifest is not None and len(manifest["parts"]) == 4 * workers
            bodies = [entry.body for entry in rig.asked(server.log)]
            seen[workers] = sorted(json.dumps(body, sort_keys=True) for body in bodies)
            assert len({body["seed"] for body in bodies}) == len(bodies) == 1000
            lines = [len(Segment(path)) for path in (folder / "ledger").glob("*")]
            assert len(lines) == 2 and min(lines) > 100
    assert seen[2] == seen[5]
    rig.assert_equal_output(tmp_path / "2", tmp_path / "5")


def test_the_limit_holds_for_the_workers_there_are(client: Any, tmp_path: Path) -> None:
    """The recipe speaks of one worker, and the cluster that it is given has two."""
    with ScriptedEndpoint.start_process(latency=fixed(0.05)) as slow:
        source = rig.documents(tmp_path / "in.jsonl", range(60))
        recipe = rig.recipe_for(slow.url, source, workers=1, concurrency=6, partition_size="2KB")
        run(recipe, tmp_path / "out", client=client)
        assert 3 < slow.log.max_in_flight <= 6


# --- quality --------------------------------------------------------------------------------------


@pytest.mark.row("N9")
@pytest.mark.row("M5")
def test_twenty_rows_are_routed_by_their_quality(
    client: Any, offline_endpoint: Endpoint, tmp_path: Path
) -> None:
    buckets = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0, 11, 12, 14, 15, 17, 18, 19]
    article = json.loads((EXAMPLES / "articles-en.jsonl").read_text().splitlines()[0])["text"]
    flat = " ".join(article.split())
    frame = pd.DataFrame(
        {
            "id": range(1, 21),
            "text": [flat[700 * i : 700 * i + 1070] for i in range(20)],
            "bucketed_results": buckets,
        }
    )
    assert frame["text"].str.len().eq(1070).all()
    frame.to_parquet(tmp_path / "in.parquet")
    recipe = rig.recipe_for(
        offline_endpoint.url,
        tmp_path / "in.parquet",
        tasks=["nemotron-cc"],
        model=offline_endpoint.model,
        quality_field="bucketed_results",
    )
    result = run(recipe, tmp_path / "out", client=client)
    low, *high = (result.counts[task] for task in FIVE)
    assert low["documents.filtered"] == low["documents.filtered.quality_low"] == 6
    assert sum(low.get(f"documents.{s}", 0) for s in ("complete", "partial", "empty")) == 14
    for counts in high:
        assert counts["documents.filtered"] == counts["documents.filtered.quality_high"] == 14
        assert sum(counts.get(f"documents.{s}", 0) for s in ("complete", "partial", "empty")) == 6
    for task in FIVE:
        data = rig.data_of(tmp_path / "out", task)
        assert (data["bucketed_results"] <= 11).eq(task == "wikipedia_rephrase").all()
        assert data["id"].dtype.kind == "i" and len(data)
        assert isinstance(get_task(task), Task)


# --- too much goes wrong --------------------------------------------------------------------------


def test_a_quarter_of_answers_of_no_use_stops_the_run_and_a_mended_one_pays_nothing_twice(
    client: Any, scripted: Callable[..., Any], tmp_path: Path
) -> None:
    source = rig.documents(tmp_path / "in.jsonl", range(160))
    server = scripted(rules=[("number [0-9]*[037] ", "No marks here."), ("number", "Short: text.")])
    strict = rig.SUMMARY | {"parse": {"after_prefix": "Short:"}}
    recipe = rig.recipe_for(server.url, source, tasks=[strict], partition_size="4KB")
    with pytest.raises(TooManyFailures, match="prefix_missing") as caught:
        run(recipe, tmp_path / "out", client=client)
    assert caught.value.exit_code == 3 and "--max-failures" in str(caught.value)
    before = rig.filed_keys(tmp_path / "out")
    assert len(before) >= 50
    num_before = len(rig.asked(server.log))
    mended = recipe.replace(tasks=[rig.SUMMARY])
    result = run(mended, tmp_path / "out", client=client)
    assert result.counts["summary"]["kept"] == 160 and result.exit_code == 0
    later = [rig.key_of(entry.body) for entry in rig.asked(server.log)[num_before:]]
    assert not set(later) & before and len(later) == len(set(later))
    allowed = recipe.replace(max_failures=0.5)
    result = run(allowed, tmp_path / "out", client=client)
    assert result.counts["summary"]["dead.prefix_missing"] == 48 and result.exit_code == 4


def test_a_folder_that_is_gone_is_told_before_workers_cannot_start_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    recipe = Recipe(tasks=["multilingual_qa"], endpoint="offline", num_samples=2)
    with pytest.raises(ConfigurationError, match="the current folder is gone"):
        run(recipe, tmp_path / "out")
