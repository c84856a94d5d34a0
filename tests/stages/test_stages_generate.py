"""Generate: what is asked, what comes back beside the rows, and what a bad row does to others."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import dask.dataframe as dd
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from nemo_sdg.data.backend import to_values
from nemo_sdg.data.dataset import DocumentDataset
from nemo_sdg.errors import ConfigurationError, DataError, ParseError, TooManyFailures
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.faults import Fault
from nemo_sdg.llm.request import Request, Sampling, chat
from nemo_sdg.llm.retry import RetryPolicy
from nemo_sdg.stages.base import Record, Sequential
from nemo_sdg.stages.generate import Generate
from nemo_sdg.stages.select import Modify, ScoreFilter
from nemo_sdg.tasks.task import Task, flow
from nemo_sdg.text.filters import Length

FAST = RetryPolicy(max_tries=2, base_wait_s=0.01, max_wait_s=0.02)
BROKEN = (
    ("bad_request", "bad_request"),
    ("error_500", "server_error"),
    ("reset", "connection"),
    ("truncated_json", "malformed_reply"),
    ("malformed_json", "malformed_reply"),
    ("not_json", "malformed_reply"),
    ("empty_choices", "malformed_reply"),
    ("context_length", "context_exceeded"),
    ("null_content", "empty"),
    ("length_cut", "length"),
    ("refusal", "refused"),
    ("content_filter", "refused"),
    ("tool_call", "empty"),
)
echo = Task(
    name="echo",
    output="answer",
    prompt="Say something about this.\n{document}",
    sampling=Sampling(temperature=0.5, max_output_tokens=64),
    doc="Say something about a text.",
)


@pytest.fixture(scope="module")
def server(scripted: Callable[..., Any]) -> Any:
    """Answers depend on the whole request, the seed too; a text names the fault it meets."""
    return scripted(
        faults=[Fault(kind=kind, pattern=rf"\[{kind}\]") for kind, _ in BROKEN],  # type: ignore[arg-type]
        models=["scripted", "other"],
    )


@pytest.fixture
def log(server: Any) -> Any:
    server.log.clear()
    return server.log


def stage(server: Any, task: Any = echo, **options: Any) -> Generate:
    endpoint = Endpoint(url=server.url, model="scripted", concurrency=16)
    # One engine serves this whole file; tests of the failure rule bring their own.
    return Generate(task, endpoint, **({"max_failures": 1.0, "retry": FAST} | options))


def texts(number: int = 12, **columns: Any) -> pd.DataFrame:
    frame = {"id": [f"d{i}" for i in range(number)], "text": [f"Text {i}." for i in range(number)]}
    return pd.DataFrame(frame | columns)


def parted(frame: pd.DataFrame, *, parts: int) -> Any:
    """A Dask frame that keeps the dtypes of pandas (`dd.from_pandas` alone changes text)."""
    return DocumentDataset.from_pandas(frame, npartitions=parts).df


# --------------------------------------------------------------------------------- columns and meta


@pytest.mark.parametrize("shape", ["text", "several", "list", "numbers", "samples"])
def test_the_columns_are_what_meta_says(server: Any, log: Any, shape: str) -> None:
    task = {
        "text": echo,
        "several": Task(
            name="several",
            output="b",
            columns={"a": "string", "b": "list[string]"},
            parse=lambda text: (text[:3], [text, text]),
            prompt="Two things: {document}",
            doc="x",
        ),
        "list": Task(
            name="list",
            output="words",
            columns={"words": "list[string]"},
            parse=str.split,
            prompt="Words: {document}",
            doc="x",
        ),
        "numbers": Task(
            name="numbers",
            output="good",
            columns={"length": "int64", "good": "bool", "share": "float64"},
            parse=lambda text: (len(text), len(text) > 3, 0.5),
            prompt="Numbers: {document}",
            doc="x",
        ),
        "samples": Task(
            name="samples",
            output="answer",
            prompt="Three: {document}",
            sampling=Sampling(n=3),
            doc="x",
        ),
    }[shape]
    frame = texts(8)
    frame.loc[3, "text"] = None
    frame.loc[5, "text"] = "this one is [bad_request]"
    generate = stage(server, task)
    meta = generate.meta(frame)
    output = task.output
    assert len(meta) == 0
    assert list(meta.columns) == ["id", "text", *task.columns, f"{output}_error", f"{output}_call"]
    assert not log.entries

    def check(made: pd.DataFrame) -> None:
        assert list(made.columns) == list(meta.columns)
        assert made.dtypes.to_dict() == meta.dtypes.to_dict()

    whole = generate(frame)
    check(whole)
    check(generate(frame.iloc[:0]))
    lazy = generate(parted(frame, parts=3))
    assert lazy.dtypes.to_dict() == meta.dtypes.to_dict()
    for part in dask.compute(*lazy.to_delayed(), scheduler="sync"):
        check(part)
    assert_frame_equal(lazy.compute(scheduler="sync"), whole)
    calls = to_values(whole[f"{output}_call"])
    assert [i for i, call in enumerate(calls) if call is None] == [3, 5]
    good = whole.drop(index=[3, 5])
    assert good[output].notna().all()


@pytest.mark.fault(56)
def test_empty_partitions_have_the_columns_and_ask_nothing(server: Any, log: Any) -> None:
    frame = texts(6)
    ddf = parted(frame, parts=3)
    lazy = stage(server)(
        ddf[ddf["text"] != "Text 0."].partitions[:1].map_partitions(lambda f: f.iloc[:0])
    )
    made = lazy.compute(scheduler="sync")
    assert len(made) == 0
    assert made.dtypes.to_dict() == lazy.dtypes.to_dict()
    assert not log.entries


@pytest.mark.row("M11")
def test_no_request_leaves_while_a_graph_is_built(server: Any, log: Any) -> None:
    dataset = DocumentDataset.from_pandas(texts(20), npartitions=4)
    keep = ScoreFilter(Length(min_characters=1), text_field="answer")
    lazy = Sequential([stage(server), keep, Modify(str_upper, text_field="answer")])(dataset)
    assert repr(lazy) and repr(lazy.df) and lazy.columns and lazy.npartitions == 4
    assert list(lazy.df.columns) and lazy.df.dtypes is not None
    lazy.df.optimize()
    lazy.df.__dask_graph__()
    cloudpickle.dumps(lazy.df)
    dd.concat([lazy.df, lazy.df])
    assert not log.entries
    assert len(lazy) == 20
    assert len(log.entries) == 20


def str_upper(column: Any) -> Any:
    return column.str.upper()


@pytest.mark.fault(17)
@pytest.mark.fault(71)
def test_the_callers_frame_stays_as_it_is(server: Any) -> None:
    def check(ask: Callable[[Any], Any]) -> None:
        frame = texts(4)
        before = frame.copy(deep=True)
        ask(frame)
        assert_frame_equal(frame, before)
        dataset = DocumentDataset.from_pandas(texts(4), npartitions=2)
        columns, inner = list(dataset.columns), dataset.df
        ask(dataset)
        assert list(dataset.columns) == columns
        assert dataset.df is inner

    def writes_into_it(data: Any) -> Any:  # the predecessor's way with a batch
        if isinstance(data, DocumentDataset):
            data._df = data.df.assign(answer="x")
            return data
        data["answer"] = "x"
        return data

    check(stage(server))
    with pytest.raises(AssertionError):
        check(writes_into_it)


@pytest.mark.parametrize(
    "index",
    [
        [5, 5, 5, 5],
        ["b", "a", "b", "c"],
        [9, 3, 7, 1],
        pd.MultiIndex.from_product([[1, 2], ["x", "y"]]),
    ],
    ids=["all equal", "twice", "backwards", "two levels"],
)
def test_order_and_index_stay_whatever_the_labels(server: Any, index: Any) -> None:
    frame = texts(4)
    plain = stage(server)(frame)
    frame.index = index
    made = stage(server)(frame)
    assert made.index.equals(frame.index)
    assert_frame_equal(made.reset_index(drop=True), plain)
    assert list(made["text"]) == list(frame["text"])


def test_input_columns_are_neither_changed_nor_reordered(server: Any) -> None:
    frame = texts(4, zeta=[1, 2, 3, 4], alpha=[None, "x", None, "y"])
    made = stage(server)(frame)
    assert_frame_equal(made[list(frame.columns)], frame)
    assert list(made.columns)[:4] == ["id", "text", "zeta", "alpha"]


@pytest.mark.fault(15)
def test_a_missing_column_is_told_before_anything_is_asked(server: Any, log: Any) -> None:
    frame = texts(3).rename(columns={"text": "body"})
    for data in (frame, parted(frame, parts=1)):
        with pytest.raises(DataError, match=r"'text'.*id, body"):
            stage(server)(data)
    assert len(stage(server, text_field="body")(frame)) == 3
    with pytest.raises(DataError, match="'temp'"):
        stage(server, from_columns={"temperature": "temp"})(texts(3))
    assert len(log.entries) == 3


def test_wrong_configuration_is_told_at_once(server: Any) -> None:
    with pytest.raises(ConfigurationError, match="temperature"):
        stage(server, from_columns={"temprature": "t"})
    with pytest.raises(ConfigurationError, match="'n' cannot"):
        stage(server, from_columns={"n": "t"})
    with pytest.raises(ConfigurationError, match="no model"):
        Generate(echo, Endpoint(url=server.url))
    assert Generate(echo, Endpoint(url=server.url), from_columns={"model": "m"})


# ------------------------------------------------------------------------------------ what is asked


@pytest.mark.parametrize("nothing", [None, ""])
def test_a_text_that_is_null_or_empty_is_a_reason_and_costs_nothing(
    server: Any, log: Any, nothing: str | None
) -> None:
    frame = texts(4)
    frame.loc[1, "text"] = nothing
    record = Record(task="echo")
    made = stage(server).apply(frame, record)
    assert list(made["answer_error"].isna()) == [True, False, True, True]
    assert made["answer_error"].iloc[1] == "no_input"
    assert pd.isna(made["answer"].iloc[1]) and pd.isna(made["answer_call"].iloc[1])
    assert len(log.entries) == 3
    assert record.counts["dead.no_input"] == 1
    only_null = stage(server)(frame.iloc[1:2])
    assert list(only_null["answer_error"]) == ["no_input"]


@pytest.mark.row("J4")
def test_sampling_and_model_come_from_columns(server: Any, log: Any) -> None:
    frame = texts(
        4, temp=[0.1, None, 0.9, None], llm=[None, "other", None, "other"], most=[7, 8, None, None]
    )
    columns = {"temperature": "temp", "model": "llm", "max_output_tokens": "most"}
    generate = stage(server, from_columns=columns)
    record = Record(task="echo")
    made = generate.apply(frame, record)
    assert made["answer_error"].isna().all()
    sent = {e.body["messages"][-1]["content"].split()[-1]: e.body for e in log.entries}
    read = [sent[f"{i}."] for i in range(4)]
    assert [body["temperature"] for body in read] == [0.1, 0.5, 0.9, 0.5]
    assert [body["model"] for body in read] == ["scripted", "other", "scripted", "other"]
    assert [body["max_tokens"] for body in read] == [7, 8, 64, 64]
    asked = {row["id"]: row["model_asked"] for row in record.provenance}
    assert asked == {"d0": "scripted", "d1": "other", "d2": "scripted", "d3": "other"}


def test_a_model_from_a_column_alone_is_enough_where_it_is_there(server: Any, log: Any) -> None:
    generate = Generate(
        echo, Endpoint(url=server.url, concurrency=16), from_columns={"model": "llm"}, retry=FAST
    )
    made = generate(texts(2, llm=["other", "scripted"]))
    assert made["answer_error"].isna().all()
    assert sorted(e.body["model"] for e in log.entries) == ["other", "scripted"]


@pytest.mark.fault(14)
def test_all_samples_are_kept_in_lists(server: Any, log: Any) -> None:
    three = Task(
        name="three", output="answer", prompt="Three: {document}", sampling=Sampling(n=3), doc="x"
    )
    frame = texts(3)
    frame.loc[1, "text"] = "this one has [null_content]"
    made = stage(server, three)(frame)
    good, bad = made.iloc[0], made.iloc[1]
    assert len(good["answer"]) == 3 == len(set(good["answer"]))
    assert len(good["answer_call"]) == 3 == len(set(good["answer_call"]))
    assert list(good["answer_error"]) == [None] * 3
    assert list(bad["answer"]) == [None] * 3
    assert list(bad["answer_error"]) == ["empty"] * 3
    assert Counter(e.body["n"] for e in log.entries) == {3: 4}  # the bad one is asked once more


def test_one_bad_sample_of_three_is_a_gap_in_the_list(scripted: Callable[..., Any]) -> None:
    server = scripted(rules=[("Three", ["one", None, "three"])])
    three = Task(
        name="three", output="answer", prompt="Three: {document}", sampling=Sampling(n=3), doc="x"
    )
    made = stage(server, three)(texts(1)).iloc[0]
    assert list(made["answer"]) == ["one", None, "three"]
    assert list(made["answer_error"]) == [None, "empty", None]


# -------------------------------------------------------------------------------------------- flows


@flow(output="verdict", doc="Ask twice at once, then about both.", columns={"verdict": "string"})
def double_check(document: str) -> Any:
    first, second = yield [_question("A", document), _question("B", document)]
    judged = yield _question("C", first.text + second.text)
    return judged.text


def _question(mark: str, text: str) -> Request:
    return Request(messages=chat(None, f"{mark}: {text}"), sampling=Sampling())


def test_a_flow_asks_several_questions_a_row(server: Any, log: Any) -> None:
    made = stage(server, double_check)(texts(5))
    assert made["verdict_error"].isna().all()
    assert made["verdict"].nunique() == 5
    marks = Counter(e.body["messages"][-1]["content"][0] for e in log.entries)
    assert marks == {"A": 5, "B": 5, "C": 5}
    again = stage(server, double_check)(parted(texts(5), parts=5))
    assert_frame_equal(again.compute(scheduler="sync"), made)


def test_a_flows_failure_is_its_rows_alone(server: Any) -> None:
    frame = texts(4)
    frame.loc[2, "text"] = "[refusal]"
    record = Record(task="double_check")
    made = stage(server, double_check).apply(frame, record)
    assert list(made["verdict_error"].fillna("fine")) == ["fine", "fine", "refused", "fine"]
    assert [row["id"] for row in record.dead] == ["d2"]


@flow(output="both", doc="Ask three at once, give up.")
def gives_up(document: str) -> Any:
    yield [_question(mark, document) for mark in "ABC"]
    raise ParseError("no_use", "never any use")


def test_call_and_raw_text_are_of_the_last_question_not_of_the_last_to_come(
    scripted: Callable[..., Any],
) -> None:
    slow = Fault(kind="slow_body", pattern="A: ", duration_s=0.3)
    server = scripted(default="echo", faults=[slow])
    record = Record(task="gives_up")
    made = stage(server, gives_up).apply(texts(1), record)
    assert [row["raw"] for row in record.dead] == ["C: Text 0."]
    [seed] = [e.body["seed"] for e in server.log.entries if "C: " in str(e.body)]
    [call] = [row["call"] for row in record.provenance if row["seed"] == seed]
    assert list(made["both_call"]) == [call]


# ------------------------------------------------------------------------ values that do not fit

MISFITS: dict[str, tuple[dict[str, str], Any, Any, str]] = {
    # columns, a good value, one of no use, its reason
    "int for text": ({"v": "string"}, "\U0001f600", 7, "task_crashed"),
    "half a character": ({"v": "string"}, "x", "\ud83d", "task_crashed"),
    "text for int": ({"v": "int64"}, 3, "three", "task_crashed"),
    "bool for int": ({"v": "int64"}, 3.0, True, "task_crashed"),
    "too large": ({"v": "int64"}, -(2**63), 2**63, "task_crashed"),
    "text for float": ({"v": "float64"}, 1, "0.5", "task_crashed"),
    "int for bool": ({"v": "bool"}, True, 1, "task_crashed"),
    "text for list": ({"v": "list[string]"}, [], "abc", "task_crashed"),
    "number in a list": ({"v": "list[string]"}, ["a", None], ["a", 1], "task_crashed"),
    "set for list": ({"v": "list[string]"}, ["a"], {"a"}, "task_crashed"),
    "too few": ({"v": "string", "n": "int64"}, ("a", 1), ("a",), "task_crashed"),
    "too many": ({"v": "string", "n": "int64"}, ("a", None), ("a", 1, 2), "task_crashed"),
    "no tuple": ({"v": "string", "n": "int64"}, ["a", 1], "ab", "task_crashed"),
    "wrong second": ({"v": "string", "n": "int64"}, ("a", 1), ("a", "b"), "task_crashed"),
    "None": ({"v": "string"}, "x", None, "empty"),
    "NaN": ({"v": "float64"}, 0.5, float("nan"), "empty"),
    "None for all": ({"v": "string", "n": "int64"}, ("a", 1), None, "empty"),
    "None for the output": ({"v": "string", "n": "int64"}, ("a", 1), (None, 1), "empty"),
}


@pytest.fixture(scope="module")
def echoing(scripted: Callable[..., Any]) -> Any:
    return scripted(default="echo")


@pytest.mark.fault(2)
@pytest.mark.parametrize("case", MISFITS)
def test_a_value_that_does_not_fit_fails_its_row_alone(echoing: Any, case: str) -> None:
    columns, good, bad, reason = MISFITS[case]

    def read(text: str) -> Any:
        return bad if "bad" in text else good

    @flow(output="v", columns=columns, doc="x")
    def asking(document: str) -> Any:
        reply = yield _question("Fit", document)
        return read(reply.text)

    parsing = Task(
        name="parsing", output="v", columns=columns, prompt="{document}", parse=read, doc="x"
    )
    frame = texts(4)
    frame.loc[2, "text"] = "bad"
    first, *others = [*good] if len(columns) > 1 else [good]
    for task in (asking, parsing):
        record = Record(task=task.name)
        made = stage(echoing, task).apply(frame, record)
        assert list(made["v_error"].fillna("")) == ["", "", reason, ""]
        assert to_values(made["v"]) == [first, first, None, first]
        for other in others:
            assert to_values(made["n"]) == [other, other, None, other]
        [dead] = record.dead
        assert (dead["id"], dead["reason"]) == ("d2", reason)
        assert "bad" in dead["raw"] and dead["detail"]
        assert made.dtypes.to_dict() == stage(echoing, task).meta(frame).dtypes.to_dict()


def test_a_sample_that_does_not_fit_is_a_gap_in_the_list(scripted: Callable[..., Any]) -> None:
    server = scripted(rules=[("row 1", ["x", "y"]), ("", ["7", "x"])])

    def read(text: str) -> Any:
        return int(text) if text.isdigit() else text

    two = Task(
        name="two", output="v", columns={"v": "int64"}, prompt="row {document}", parse=read,
        sampling=Sampling(n=2), doc="x",
    )  # fmt: skip
    frame = pd.DataFrame({"id": [0, 1], "text": ["0", "1"]})
    made = stage(server, two)(frame)
    assert to_values(made["v"]) == [["7", None], [None, None]]
    assert to_values(made["v_error"]) == [[None, "task_crashed"], ["task_crashed"] * 2]


# ----------------------------------------------------------------------------------------- failures


@pytest.mark.fault(2)
@pytest.mark.fault(56)
@pytest.mark.parametrize(("kind", "code"), BROKEN)
def test_a_bad_row_has_its_reason_and_harms_no_neighbour(server: Any, kind: str, code: str) -> None:
    frame = texts(6)
    frame.loc[3, "text"] = f"this one meets [{kind}]"
    record = Record(task="echo")
    good = stage(server)(texts(6))

    def check(ask: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
        made = ask(frame)
        others = [0, 1, 2, 4, 5]
        assert_frame_equal(made.iloc[others], good.iloc[others])
        assert list(made["answer_error"].fillna("")) == ["", "", "", code, "", ""]

    def gathered(frame: pd.DataFrame) -> pd.DataFrame:  # a plain gather: one error ends them all
        made = stage(server)(frame)
        if made["answer_error"].notna().any():
            made["answer"], made["answer_error"] = None, code
        return made

    check(lambda frame: stage(server).apply(frame, record))
    with pytest.raises(AssertionError):
        check(gathered)
    [dead] = record.dead
    assert (dead["id"], dead["task"], dead["reason"]) == ("d3", "echo", code)
    assert dead["attempts"] >= 1
    assert record.counts[f"dead.{code}"] == 1


@pytest.mark.fault(46)
def test_what_may_pass_is_tried_again(scripted: Callable[..., Any]) -> None:
    """Each of these hits the first try of its row; all rows come right in the end."""
    passing = ["rate_limit", "error_500", "error_503", "reset", "close_before_reply", "not_json"]
    passing += ["truncated_json", "malformed_json", "empty_choices", "hang"]
    frame = texts(len(passing))
    frame["text"] = [f"this one meets [{kind}]" for kind in passing]

    def check(tries: int) -> None:
        server = scripted(
            faults=[
                Fault(kind=kind, pattern=rf"\[{kind}\]", times=1, duration_s=0.1)  # type: ignore[arg-type]
                for kind in passing
            ]
        )
        policy = RetryPolicy(max_tries=tries, base_wait_s=0.01, max_wait_s=0.02)
        made = stage(server, retry=policy)(frame)
        assert made["answer_error"].isna().all()
        assert server.log.faults == dict.fromkeys(passing, 1)
        assert set(server.log.bodies.values()) == {2}, "the same request, once more"

    check(6)
    with pytest.raises(AssertionError):
        check(1)  # what the documents promised was not in the code


@pytest.mark.fault(30)
def test_no_row_is_missing_each_links_back_and_the_stage_stays_as_it_is(server: Any) -> None:
    frame = texts(8)
    frame.loc[2, "text"] = "[refusal]"
    frame.loc[6, "text"] = None

    def check(generate: Callable[[pd.DataFrame], pd.DataFrame], options: Any) -> None:
        before = pickle.dumps(options)
        for _ in range(2):
            made = generate(frame)
            assert list(made["id"]) == list(frame["id"])
        assert pickle.dumps(options) == before

    class Builder:
        """Shared, changed by every use; gives back what succeeded, under new numbers."""

        def __init__(self) -> None:
            self.seeds: list[str] = []

        def preview(self, frame: pd.DataFrame) -> pd.DataFrame:
            self.seeds.extend(frame["id"])
            made = stage(server)(frame)
            good = made[made["answer_error"].isna()].reset_index(drop=True)
            return good.assign(id=range(len(good)))

    generate = stage(server)
    generate(frame)
    check(generate, generate)
    builder = Builder()
    with pytest.raises(AssertionError):
        check(builder.preview, builder.seeds)


def crashes(text: str) -> str:
    raise ZeroDivisionError("in the user's parser")


def test_a_parser_that_crashes_is_a_reason(server: Any) -> None:
    task = Task(name="crash", output="out", prompt="Crash: {document}", parse=crashes, doc="x")
    record = Record(task="crash")
    made = stage(server, task).apply(texts(3), record)
    assert list(made["out_error"]) == ["task_crashed"] * 3
    assert "ZeroDivisionError" in record.dead[0]["detail"]
    assert record.dead[0]["raw"], "what the model said is kept"


def picky(text: str) -> str:
    raise ParseError("not_to_my_taste", "says the parser")


def test_a_wrong_prompt_is_not_paid_for_a_million_times(server: Any, log: Any) -> None:
    task = Task(
        name="picky",
        output="out",
        prompt="Picky: {document}",
        parse=picky,
        sampling=Sampling(temperature=0.0),
        doc="x",
    )
    dataset = DocumentDataset.from_pandas(texts(1000), npartitions=40)
    lazy = stage(server, task, max_failures=0.2)(dataset)
    with pytest.raises(TooManyFailures, match="not_to_my_taste") as caught:
        lazy.df.compute(scheduler="sync")
    assert caught.value.__context__ is None  # a search for a worker is no part of the story
    assert 50 <= len(log.entries) <= 130
    log.clear()
    allowed = stage(server, task, max_failures=1.0)(texts(60))
    assert allowed["out_error"].eq("not_to_my_taste").all()


def test_reasons_that_are_no_fault_stop_nothing(server: Any) -> None:
    task = Task(
        name="nothing",
        output="out",
        prompt="Nothing: {document}",
        parse=picky,
        ordinary=frozenset({"not_to_my_taste"}),
        doc="x",
    )
    made = stage(server, task, max_failures=0.2)(texts(60))
    assert made["out_error"].eq("not_to_my_taste").all()


def test_the_second_try_has_another_seed_and_none_at_temperature_0(server: Any, log: Any) -> None:
    frame = texts(1)
    frame.loc[0, "text"] = "[null_content]"
    stage(server)(frame)
    seeds = [e.body["seed"] for e in log.entries]
    assert len(seeds) == 2 == len(set(seeds))
    log.clear()
    cold = Task(
        name="cold",
        output="answer",
        prompt="Cold: {document}",
        sampling=Sampling(temperature=0.0),
        doc="x",
    )
    stage(server, cold)(frame)
    assert [e.body.get("seed") for e in log.entries] == [None]


# ---------------------------------------------------------------------------------------- the books


def test_the_record_has_a_row_for_every_answer(server: Any) -> None:
    frame = texts(4)
    frame.loc[1, "text"] = "[null_content]"
    record = Record(task="echo")
    generate = Generate(
        echo,
        Endpoint(url=server.url, model="scripted", concurrency=16, price_in=2.0, price_out=4.0),
        max_failures=1.0,
    )
    made = generate.apply(frame, record)
    assert record.counts["requests"] == len(record.provenance) == 5
    by_call = {row["call"]: row for row in record.provenance}
    assert set(made["answer_call"]) <= set(by_call)
    row = by_call[made["answer_call"].iloc[0]]
    assert (row["id"], row["model_served"], row["finish_reason"]) == ("d0", "scripted", "stop")
    tokens = sum(r["input_tokens"] for r in record.provenance)
    assert tokens == record.counts["input_tokens"] > 0
    first = record.provenance[0]
    cost = (2 * first["input_tokens"] + 4 * first["output_tokens"]) / 1e6
    assert first["cost"] == pytest.approx(cost)
    assert record.dead[0]["attempts"] == 2
    free = Record()
    stage(server).apply(texts(1), free)
    assert free.provenance[0]["cost"] is None, "unknown, never 0"


# ---------------------------------------------------------------------- the same whatever the parts


def seeds_by_text(log: Any) -> dict[str, Any]:
    return {e.body["messages"][-1]["content"]: e.body["seed"] for e in log.entries}


@pytest.mark.row("G1")
def test_the_same_seed_gives_the_same_requests_on_any_partitions(server: Any, log: Any) -> None:
    frame = texts(16)
    whole = stage(server, seed=3)(frame)
    wanted = seeds_by_text(log)
    assert len(set(wanted.values())) == 16

    def check(ask: Callable[[pd.DataFrame, int], Any]) -> None:
        for parts in (1, 2, 8):
            log.clear()
            made = ask(frame, parts)
            assert seeds_by_text(log) == wanted
            assert_frame_equal(made, whole)

    def by_position(frame: pd.DataFrame, parts: int) -> pd.DataFrame:
        """Seeds from the place within the partition, as without ids."""
        lazy = stage(server, seed=3, id_field="none")(parted(frame, parts=parts))
        return lazy.compute(scheduler="sync")

    check(
        lambda frame, parts: stage(server, seed=3)(parted(frame, parts=parts)).compute(
            scheduler="threads"
        )
    )
    with pytest.raises(AssertionError):
        check(by_position)
    other = stage(server, seed=4)(frame)
    assert (other["answer"] != whole["answer"]).all()


@pytest.mark.cluster
def test_two_worker_processes_give_the_same_rows(server: Any, log: Any) -> None:
    from distributed import Client, LocalCluster

    frame = texts(24)
    whole = stage(server)(frame)
    log.clear()
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=2, processes=True, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster),
    ):
        lazy = stage(server)(DocumentDataset.from_pandas(frame, npartitions=8))
        assert not log.entries
        made = lazy.to_pandas()
    assert_frame_equal(made.reset_index(drop=True), whole)
    assert len(log.entries) == 24, "each row is asked about once"
    assert log.new_connections >= 2, "both workers took part"
    assert log.max_in_flight <= 16


@pytest.mark.cluster
def test_no_task_is_measured_by_the_meters_of_those_before_it(server: Any) -> None:
    """Or each would take a little more memory and time than the one before, for good."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster),
    ):
        lazy = stage(server)(DocumentDataset.from_pandas(texts(20), npartitions=20))
        meters = lazy.df.map_partitions(_number_of_meters, meta={"meters": "int64"}).compute()
    assert len(meters) == 20
    assert meters["meters"].max() <= meters["meters"].min() + 2


def _number_of_meters(frame: Any) -> pd.DataFrame:
    from distributed.metrics import context_meter

    return pd.DataFrame({"meters": [len(context_meter._callbacks.get())]})


# --------------------------------------------------------------------------------------- the ledger


def test_what_was_paid_is_not_asked_again(server: Any, log: Any, tmp_path: Path) -> None:
    frame = texts(10)
    options = {"ledger": str(tmp_path / "ledger")}
    record = Record()
    first = stage(server, **options).apply(frame, record)
    assert len(log.entries) == 10
    assert record.counts["from_ledger"] == 0
    record = Record()
    again = stage(server, **options).apply(frame, record)
    assert len(log.entries) == 10
    assert record.counts["from_ledger"] == 10
    assert all(row["was_filed"] for row in record.provenance)
    assert_frame_equal(again, first)
    more = stage(server, **options)(texts(12))
    assert len(log.entries) == 12
    assert_frame_equal(more.iloc[:10], first)


@pytest.mark.row("J2")
def test_filters_around_a_stage_are_one_graph_and_each_row_is_asked_once(
    server: Any, log: Any, tmp_path: Path
) -> None:
    dataset = DocumentDataset.from_pandas(texts(12), npartitions=3)
    chain = Sequential(
        [
            ScoreFilter(Length(min_characters=8), text_field="text"),  # "Text 10." and "Text 11."
            stage(server, ledger=str(tmp_path / "ledger")),
            ScoreFilter(Length(min_characters=1), text_field="answer"),
            ScoreFilter(Length(max_characters=10**6), text_field="answer"),
        ]
    )
    lazy = chain(dataset)
    assert not log.entries
    with dask.config.set(scheduler="threads"):
        first = lazy.to_parquet(tmp_path / "parquet")
        second = lazy.to_json(tmp_path / "json")
    assert first["rows"] == second["rows"] == len(log.entries) == 2
    asked = [entry.body["messages"][-1]["content"] for entry in log.entries]
    assert sorted(text.rpartition("\n")[2] for text in asked) == ["Text 10.", "Text 11."]


@pytest.mark.row("J2")
def test_a_graph_computed_twice_is_paid_once(server: Any, log: Any, tmp_path: Path) -> None:
    dataset = DocumentDataset.from_pandas(texts(9), npartitions=3)

    def check(options: dict[str, Any]) -> None:
        log.clear()
        lazy = stage(server, task=echo, **options)(dataset)
        with dask.config.set(scheduler="threads"):
            lazy.to_parquet(tmp_path / f"out-{len(options)}")
            assert len(lazy) == 9
        assert len(log.entries) == 9

    check({"ledger": str(tmp_path / "ledger")})
    with pytest.raises(AssertionError):
        check({})


def test_a_changed_parser_costs_nothing(server: Any, log: Any, tmp_path: Path) -> None:
    ledger = str(tmp_path / "ledger")
    stage(server, ledger=ledger)(texts(3))
    log.clear()
    changed = Task(
        name="echo",
        output="answer",
        prompt=echo.prompt,
        sampling=echo.sampling,
        parse=str.upper,
        doc="x",
    )
    made = stage(server, changed, ledger=ledger)(texts(3))
    assert made["answer"].str.isupper().all()
    assert not log.entries


# --------------------------------------------------------------------------------------------- keys


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("SDG_TEST_KEY", "sk-test-secret")
    yield "sk-test-secret"


@pytest.mark.row("M15")
def test_the_key_is_in_no_graph_no_key_no_repr_and_no_record(
    scripted: Callable[..., Any], key: str, tmp_path: Path
) -> None:
    server = scripted(api_key=key)
    endpoint = Endpoint(url=server.url, model="scripted", api_key_env="SDG_TEST_KEY", concurrency=4)
    generate = Generate(echo, endpoint, ledger=str(tmp_path / "ledger"), retry=FAST)
    lazy = generate(DocumentDataset.from_pandas(texts(4), npartitions=2))
    record = Record()
    made = generate.apply(texts(2), record)
    assert made["answer_error"].isna().all(), "the key was sent"

    def check(said: bytes) -> None:
        assert key.encode() not in said

    for said in (
        cloudpickle.dumps(lazy.df),
        cloudpickle.dumps(dict(lazy.df.__dask_graph__())),
        pickle.dumps(generate),
        repr(lazy.df.__dask_keys__()).encode(),
        repr(generate).encode() + repr(lazy).encode() + repr(endpoint).encode(),
        repr(generate.config()).encode(),
        json.dumps(record.provenance).encode(),
        *(path.read_bytes() for path in (tmp_path / "ledger").rglob("*") if path.is_file()),
    ):
        check(said)
    with pytest.raises(AssertionError):
        check(pickle.dumps({"endpoint": server.url, "api_key": key}))


@pytest.mark.row("M15")
def test_no_text_is_in_a_task_key(server: Any) -> None:
    lazy = stage(server)(DocumentDataset.from_pandas(texts(4), npartitions=2))
    assert "Text 1." not in repr(list(dict(lazy.df.__dask_graph__())))
