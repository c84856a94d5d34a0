"""Datasets made anew from what is filed, and rows that failed asked again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import run_rig as rig

from nemo_sdg.errors import ConfigurationError, EndpointError, RunFolderError, RunStopped
from nemo_sdg.llm.faults import Fault, fixed
from nemo_sdg.llm.scripted import ScriptedEndpoint
from nemo_sdg.pipelines.replay import replay
from nemo_sdg.pipelines.retry import retry
from nemo_sdg.pipelines.run import run

pytestmark = pytest.mark.cluster

NUM_DOCUMENTS = 60
OTHER = "larger"
SEGMENTS = {"name": "wikipedia_rephrase", "budget": {"max_input_tokens": 220}}
ANSWER = ("number (\\d+) is", {"expand": r"Summary of \1."})


def is_other(pattern: str) -> Any:
    """A rule's condition that holds for the other model alone."""
    import re

    def holds(body: dict[str, Any]) -> bool:
        text = " ".join(str(m["content"]) for m in body["messages"])
        return body["model"] == OTHER and re.search(pattern, text) is not None

    return holds


@pytest.fixture
def server() -> Iterator[Any]:
    """One row in ten is refused, and one in ten is answered 400, both by the first model alone."""
    rules = [
        (is_other("."), "By the larger model."),
        (r"number \d*7 is", {"refusal": "I would rather not."}),
        ANSWER,
    ]
    faults = [Fault(kind="bad_request", pattern=r"number \d*3 is", times=1)]
    with ScriptedEndpoint(rules=rules, faults=faults, models=(rig.MODEL, OTHER)) as server:
        yield server


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return rig.documents(tmp_path / "in.jsonl", range(NUM_DOCUMENTS))


@pytest.fixture
def done(client: Any, server: Any, source: Path, tmp_path: Path) -> Path:
    recipe = rig.recipe_for(server.url, source, partition_size="4KB", max_failures=1.0)
    result = run(recipe, tmp_path / "out", client=client)
    assert result.exit_code == 4
    server.log.clear()
    return tmp_path / "out"


REFUSED = [f"d{i:04d}" for i in range(7, NUM_DOCUMENTS, 10)]
UNASKED = [f"d{i:04d}" for i in range(3, NUM_DOCUMENTS, 10)]


def reasons_of(folder: Path) -> dict[str, str]:
    dead = rig.table_of(folder, "dead_letters")
    return dict(zip(dead["id"], dead["reason"], strict=True))


def test_a_replay_needs_no_endpoint_and_gives_the_same(
    client: Any, server: Any, done: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    server.__exit__(None, None, None)
    result = replay(done, output=again, client=client)
    assert result.exit_code == 4 and not server.log.entries
    rig.assert_equal_output(again, done)
    assert reasons_of(done) == dict.fromkeys(REFUSED, "refused") | dict.fromkeys(
        UNASKED, "bad_request"
    )
    columns = ["id", "call", "model_served", "input_tokens", "latency_s", "endpoint"]
    pd.testing.assert_frame_equal(
        rig.table_of(again, "provenance")[columns], rig.table_of(done, "provenance")[columns]
    )
    assert rig.table_of(again, "provenance")["was_filed"].all()
    before = {path: path.read_bytes() for path in (done / "data").iterdir()}
    for path in before:
        path.unlink()
    replay(done, client=client)
    rig.assert_equal_output(again, done)
    assert {path: path.read_bytes() for path in (done / "data").iterdir()} == before


def test_what_is_not_filed_is_a_dead_letter_until_the_next_run(
    client: Any, source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "half"

    def enough() -> None:
        raise RunStopped("enough")

    with ScriptedEndpoint(rules=[ANSWER], latency=fixed(0.2)) as slow:
        recipe = rig.recipe_for(slow.url, source, partition_size="2KB", concurrency=8)
        with pytest.raises(RunStopped):
            run(recipe, folder, client=client, observer=rig.At(20, enough))
        filed = rig.filed_keys(folder)
        slow.log.clear()
        result = replay(folder, client=client)
        counts = dict(result.counts["summary"])
        assert result.exit_code == 4 and not rig.asked(slow.log)
        assert counts["kept"] == len(filed)
        assert counts["dead.not_filed"] == NUM_DOCUMENTS - len(filed) > 5
        rig.add_up(counts)
        result = run(recipe, folder, client=client)
        assert result.exit_code == 0 and not result.was_complete_before
        assert result.counts["summary"]["kept"] == NUM_DOCUMENTS
        asked = [rig.key_of(entry.body) for entry in rig.asked(slow.log)]
        assert len(asked) == NUM_DOCUMENTS - len(filed) and not filed & set(asked)


def test_a_replay_says_what_changed_and_loses_nothing(
    client: Any, server: Any, source: Path, done: Path, tmp_path: Path
) -> None:
    source.write_text(source.read_text().replace("number 12 is", "number 12 was"))
    with pytest.raises(RunFolderError, match=r"gone or changed: .*in\.jsonl.*--output") as caught:
        replay(done, client=client)
    assert caught.value.exit_code == 2
    assert len(rig.data_of(done)) == NUM_DOCUMENTS - len(REFUSED) - len(UNASKED)
    observer = rig.At(-1, lambda: None)
    replay(done, output=tmp_path / "new", client=client, observer=observer)
    assert any("in.jsonl" in note and "not_filed" in note for note in observer.notes)
    assert reasons_of(tmp_path / "new") == reasons_of(done) | {"d0012": "not_filed"}
    assert not rig.asked(server.log)


def test_a_replay_can_change_what_is_cheap(
    client: Any, server: Any, done: Path, tmp_path: Path
) -> None:
    replay(done, output=tmp_path / "lines", format="jsonl.gz", client=client)
    assert {p.suffix for p in (tmp_path / "lines" / "data").glob("part-*")} == {".gz"}
    assert list(rig.data_of(tmp_path / "lines")["id"]) == list(rig.data_of(done)["id"])


def test_no_folder_and_a_folder_of_something_else(client: Any, tmp_path: Path) -> None:
    for command in (replay, retry):
        with pytest.raises(RunFolderError, match=r"no run folder: it holds no recipe\.yaml"):
            command(tmp_path / "nowhere", client=client)


def test_a_retry_asks_dead_letters_alone_and_they_move_to_the_data(
    client: Any, server: Any, done: Path, source: Path, tmp_path: Path
) -> None:
    """Refused rows go to another model; 400s had no answer at all and are asked as they were."""
    before = rig.report(done)
    kept = rig.data_of(done)
    result = retry(done, model=OTHER, sampling={"temperature": 0.9}, client=client)
    asked = rig.asked(server.log)
    assert len(asked) == len(REFUSED) + len(UNASKED)
    assert {(e.body["model"], e.body["temperature"]) for e in asked} == {(OTHER, 0.9)}
    assert result.exit_code == 0 and result.counts["summary"]["kept"] == NUM_DOCUMENTS
    rig.add_up(dict(result.counts["summary"]))
    data = rig.data_of(done).set_index("id")
    assert (data.loc[REFUSED + UNASKED, "summary"] == "By the larger model.").all()
    assert list(data.loc[list(kept["id"]), "summary"]) == list(kept["summary"])
    assert not reasons_of(done)
    provenance = rig.table_of(done, "provenance")
    new = provenance[provenance["model_asked"] == OTHER]
    assert sorted(new["id"]) == sorted(REFUSED + UNASKED)
    # What was paid in vain is still told: two refusals a row, and the row's answer.
    report = rig.report(done)
    assert Counter(provenance["id"])[REFUSED[0]] == 3
    assert report["counts"]["summary"]["requests"] == before["counts"]["summary"]["requests"] + 12
    assert report["tokens"]["input_tokens"] == provenance["input_tokens"].sum()
    assert report["model"] == rig.MODEL and report["status"] == "complete"
    assert [r["answered"] for r in report["retries"]] == [12]
    assert report["retries"][0]["model"] == OTHER and report["retries"][0]["ended"]

    # Found again by whoever makes the rows later, and nothing is asked for it.
    server.log.clear()
    recipe = rig.recipe_for(server.url, source, partition_size="4KB", max_failures=1.0)
    assert run(recipe, done, client=client).was_complete_before
    replay(done, output=tmp_path / "again", client=client)
    rig.assert_equal_output(tmp_path / "again", done)
    run(recipe.replace(format="jsonl", partition_size="1KB"), done, client=client)
    assert list(rig.data_of(done)["summary"]) == list(data["summary"])
    assert rig.report(done)["tokens"] == report["tokens"]
    assert not rig.asked(server.log)


def test_a_retry_without_changes_keeps_keys_where_nothing_was_answered(
    client: Any, server: Any, done: Path
) -> None:
    result = retry(done, reasons=["bad_request"], client=client)
    assert len(rig.asked(server.log)) == len(UNASKED)
    assert not (done / "retries" / "round-001" / "summary-part-00000.json").exists()
    assert reasons_of(done) == dict.fromkeys(REFUSED, "refused")
    assert result.counts["summary"]["dead.refused"] == len(REFUSED)
    server.log.clear()
    first = {rig.key_of(e.body) for e in rig.asked(server.log)}
    retry(done, client=client)  # the refused ones, drawn anew: other seeds, two tries each
    asked = [rig.key_of(e.body) for e in rig.asked(server.log)]
    assert len(asked) == len(set(asked)) == 2 * len(REFUSED) and not first & set(asked)
    assert reasons_of(done) == dict.fromkeys(REFUSED, "refused")
    report = rig.report(done)
    assert [r["failed_again"] for r in report["retries"]] == [{}, {"refused": len(REFUSED)}]
    # The tokens of answers that were of no use do not vanish.
    provenance = rig.table_of(done, "provenance")
    assert Counter(provenance["id"])[REFUSED[0]] == 4
    assert report["tokens"]["input_tokens"] == provenance["input_tokens"].sum()
    server.log.clear()
    retry(done, client=client)
    asked_again = {rig.key_of(e.body) for e in rig.asked(server.log)}
    assert len(asked_again) == 2 * len(REFUSED) and not asked_again & set(asked)


def test_a_retry_that_is_interrupted_goes_on(client: Any, server: Any, done: Path) -> None:
    """Stopped after some answers: they are filed, and the same call finds them."""

    def enough() -> None:
        raise RunStopped("enough")

    with pytest.raises(RunStopped):
        retry(done, model=OTHER, client=client, observer=rig.At(0, enough))
    asked = len(rig.asked(server.log))
    result = retry(done, model=OTHER, client=client)
    assert result.exit_code == 0 and not reasons_of(done)
    keys = [rig.key_of(e.body) for e in rig.asked(server.log)]
    assert len(keys) == 12 or asked, "what was in flight is asked again, at most"
    assert len(set(keys)) == 12
    assert [r["number"] for r in rig.report(done)["retries"]] == [1]


def test_a_retry_that_cannot_be_changes_nothing(
    client: Any, server: Any, source: Path, done: Path
) -> None:
    report = (done / "run.json").read_bytes()
    with pytest.raises(EndpointError, match="does not serve the model 'nobody'"):
        retry(done, model="nobody", client=client)
    with pytest.raises(ConfigurationError, match="address"):
        retry(done, endpoint="nowhere", client=client)
    assert (done / "run.json").read_bytes() == report
    assert not list((done / "retries").glob("*")) and not rig.asked(server.log)
    source.write_text(source.read_text().replace("number 12 is", "number 12 was"))
    with pytest.raises(RunFolderError, match=r"in\.jsonl: the rows that failed"):
        retry(done, client=client)


def test_joined_documents_are_whole_after_a_retry(client: Any, server: Any, tmp_path: Path) -> None:
    text = " ".join(rig.text_of(i) + "\n" for i in range(5, 15))
    source = tmp_path / "long.jsonl"
    pd.DataFrame({"id": ["a", "b"], "text": [text, text.replace("7 is", "8 is")]}).to_json(
        source, orient="records", lines=True
    )
    with ScriptedEndpoint(
        rules=[
            (is_other("."), "Here is a paraphrased version:\nBy the larger model."),
            (r"number \d*7 is", {"refusal": "no"}),
            (r"(?s)Text:\n(.*)", {"expand": r"Here is a paraphrased version:\n\1"}),
            (r"(?s)(.*)", {"expand": r"Here is a paraphrased version:\n\1"}),
        ],
        models=(rig.MODEL, OTHER),
    ) as other:
        recipe = rig.recipe_for(other.url, source, tasks=[SEGMENTS], max_failures=1.0)
        folder = tmp_path / "joined"
        first = run(recipe, folder, client=client)
        name = "wikipedia_rephrase"
        assert first.counts[name]["documents.partial"] == 1
        other.log.clear()
        result = retry(folder, model=OTHER, client=client)
        assert result.counts[name]["documents.complete"] == 2
        assert len(rig.asked(other.log)) == first.counts[name]["dead.refused"] == 1
        assert "By the larger model." in rig.data_of(folder)["rephrased"][0]


@pytest.mark.cluster
def test_a_replay_that_cannot_cut_texts_as_the_server_did_leaves_the_run_complete(
    client: Any, tmp_path: Path
) -> None:
    source = rig.documents(tmp_path / "in.jsonl", range(6))
    with ScriptedEndpoint(kind="vllm", default="A sum.") as server:
        recipe = rig.recipe_for(server.url, source, tokenizer=None)
        run(recipe, tmp_path / "out", client=client)
        replay(tmp_path / "out", client=client)  # it counts once more
    code, _, told = rig.ended(rig.start("replay", "out", cwd=tmp_path))
    assert code == 2 and "does not count them now" in " ".join(told.split())
    assert rig.report(tmp_path / "out")["status"] == "complete"
