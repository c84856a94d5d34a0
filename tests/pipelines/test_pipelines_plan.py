"""A plan: what a run asks for, counted before it; what it costs and takes, measured by a pilot."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import run_rig as rig

from nemo_sdg.errors import ConfigurationError, RecipeError, RunFolderError
from nemo_sdg.llm.faults import Fault, growing
from nemo_sdg.pipelines import plan as plan_module
from nemo_sdg.pipelines.count import estimate
from nemo_sdg.pipelines.job import own_tokenizer, plan_job
from nemo_sdg.pipelines.plan import plan
from nemo_sdg.pipelines.recipe import Recipe
from nemo_sdg.pipelines.run import run
from nemo_sdg.text import tokens as text_tokens

ARTICLES = Path(__file__).parent.parent.parent / "examples" / "data"
NOWHERE = "http://127.0.0.1:9/v1"
LIMITED = rig.SUMMARY | {"budget": {"max_input_tokens": 2000, "max_output_tokens": 400}}

FLOW = """
from nemo_sdg import Request, Sampling, chat, flow, register

def ask(words, text):
    return Request(messages=chat(None, words + "\\n\\nText:\\n" + text),
                   sampling=Sampling(temperature=0.0, max_output_tokens=60))

@flow(output="title", doc="A summary, then two titles for it.")
def titled(document):
    summary = yield ask("Sum this text up.", document)
    first, second = yield [ask("Give it a title.", summary.text),
                           ask("Give it another title.", summary.text)]
    return first.text

register(titled)
"""


def varied(path: Path, number: int, seed: int = 1) -> Path:
    """Write documents of very different lengths: median 60 words, sigma 0.8."""
    draw = random.Random(seed)
    rows = []
    for i in range(number):
        words = max(5, round(60 * draw.lognormvariate(0, 0.8)))
        text = " ".join(rig.text_of(i).split()[0] + f"{draw.randrange(90)}" for _ in range(words))
        rows.append({"id": f"d{i:04d}", "text": f"Document {i}. {text}"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def retold(body: dict[str, Any]) -> str:
    """Answer with 12 words and a good third of the document's, give or take by its hash."""
    words = body["messages"][-1]["content"].split()[5:]
    draw = int(hashlib.blake2b(" ".join(words).encode(), digest_size=4).hexdigest(), 16) / 2**32
    return " ".join(["so"] * round(12 + len(words) * (0.25 + 0.2 * draw)))


@pytest.fixture
def talker(scripted: Callable[..., Any]) -> Any:
    """A server whose answers grow with the text, and whose latency grows with both."""
    return scripted(rules=[("Sum up", retold)], latency=growing(0.002, 0.004))


# --- counted, nothing asked -----------------------------------------------------------------------


@pytest.mark.cluster
@pytest.mark.row("I1")
def test_requests_and_tokens_are_those_of_the_run(client: Any, tmp_path: Path) -> None:
    recipe = Recipe(
        tasks=["nemotron-cc", "multilingual_qa"],
        input=[str(ARTICLES / "articles-en.jsonl")],
        limit=6,
        num_samples=8,
        workers=1,
        endpoint="offline",
    )
    planned = plan(recipe)
    counts = run(recipe, tmp_path / "out", client=client).counts
    assert list(planned.tasks) == list(counts) and not planned.total.is_least
    for name, one in planned.tasks.items():
        assert one.requests == counts[name]["requests"] == one.rows
        assert one.input_tokens == pytest.approx(counts[name]["input_tokens"], rel=0.001)
        made = counts[name]["output_tokens"]
        assert (one.output_tokens.low or 0) < one.output_tokens.expected
        assert one.output_tokens.high is not None and made <= one.output_tokens.high
    assert planned.total.requests == sum(one["requests"] for one in counts.values()) > 40
    used = sum(path.stat().st_size for path in rig.files_of(tmp_path / "out"))
    assert used / 3 < planned.total.disk.all < 3 * used


@pytest.mark.cluster
@pytest.mark.row("I1")
def test_what_answers_decide_is_planned_as_a_least(client: Any, tmp_path: Path) -> None:
    source = rig.documents(tmp_path / "in.jsonl", range(12))
    (tmp_path / "flow.py").write_text(FLOW)
    recipe = Recipe(
        task_file=str(tmp_path / "flow.py"), input=[str(source)], endpoint="offline", price_in=1.0,
        price_out=2.0,
    )  # fmt: skip
    planned = plan(recipe)
    (counts,) = run(recipe, tmp_path / "out", client=client).counts.values()
    (one,) = planned.tasks.values()
    assert one.is_least and planned.total.is_least
    assert one.requests == 12 and counts["requests"] == 36
    assert 0 < one.input_tokens < counts["input_tokens"]
    assert one.output_tokens.high is None and one.cost is not None and one.cost.high is None


def test_second_tries_are_not_counted_and_nothing_is_planned_for_a_null(tmp_path: Path) -> None:
    lines = [{"id": "a", "text": rig.text_of(1)}, {"id": "b", "text": None}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    planned = plan(rig.recipe_for(NOWHERE, tmp_path / "in.jsonl")).total
    assert (planned.documents, planned.rows, planned.requests) == (2, 1, 1)


@pytest.mark.row("I1")
def test_a_plan_contacts_nobody(
    scripted: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = scripted(kind="vllm")
    source = rig.documents(tmp_path / "in.jsonl", range(5))
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    recipe = rig.recipe_for(server.url, source, tokenizer=None, api_key_env="NO_SUCH_KEY")
    planned = plan(recipe, output=tmp_path / "out")
    assert planned.total.requests == 5 and server.log.entries == []
    assert not (tmp_path / "out").exists()
    # The server would count; its route is not asked, and the plan says what counts in its place.
    assert (planned.tokenizer, planned.is_estimate) == ("bundled", True)
    assert not plan(recipe.replace(tokenizer="bundled")).is_estimate
    assert planned.pilot is None and planned.seconds is None
    assert planned.free_bytes and planned.free_bytes > 0


def test_a_flow_whose_chat_the_template_refuses_is_counted_plainly(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(Path(text_tokens.__file__).parent / "bundled", folder)
    refuses = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(refuses)
    flow = FLOW.replace("titled", "titled_kindly").replace("chat(None", 'chat("Be kind."')
    (tmp_path / "flow.py").write_text(flow)
    source = rig.documents(tmp_path / "in.jsonl", [3])
    recipe = rig.recipe_for(
        NOWHERE, source, tasks=[], task_file=str(tmp_path / "flow.py"), tokenizer=str(folder)
    )
    prompt = f"Be kind.\n\nSum this text up.\n\nText:\n{rig.text_of(3)}"
    (count,) = text_tokens.load_tokenizer("bundled").count([prompt])
    assert plan(recipe).total.input_tokens == count


def test_without_both_prices_the_cost_is_unknown(tmp_path: Path) -> None:
    recipe = rig.recipe_for(
        NOWHERE, rig.documents(tmp_path / "in.jsonl", range(5)), tasks=[LIMITED]
    )
    for prices in ({}, {"price_in": 1.0}, {"price_out": 1.0}):
        planned = plan(recipe.replace(**prices))
        assert planned.total.cost is None and planned.tasks["summary"].cost is None
    planned = plan(recipe.replace(price_in=3.0, price_out=5.0))
    tokens, cost = planned.total.output_tokens, planned.total.cost
    assert cost is not None and tokens.high == 5 * 400
    for spent, made in ((cost.expected, tokens.expected), (cost.high, tokens.high)):
        assert spent == pytest.approx((planned.total.input_tokens * 3 + made * 5) / 1e6)


def test_a_guess_says_what_it_stands_on(tmp_path: Path) -> None:
    source = varied(tmp_path / "in.jsonl", 30)
    tasks = ["distill", "diverse_qa", LIMITED]
    planned = plan(rig.recipe_for(NOWHERE, source, tasks=tasks)).tasks
    assert "0.35" in planned["distill"].ground and "published" in planned["distill"].ground
    # Its published figure has the source in front and most pairs left out.
    assert planned["diverse_qa"].ground == "half of its limit of 600"
    expected = planned["diverse_qa"].output_tokens.expected
    assert expected == 300 * planned["diverse_qa"].requests
    assert planned["summary"].output_tokens.expected == 200 * 30


@pytest.mark.cluster
def test_a_large_input_is_counted_on_the_cluster_alike(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = varied(tmp_path / "in.jsonl", 200)
    recipe = rig.recipe_for(NOWHERE, source, tasks=[LIMITED, "distill"], partition_size="8KB")
    heard: list[tuple[int, int]] = []
    here = plan(recipe, heard=lambda done, of: heard.append((done, of)))
    parts = len(heard)
    assert parts > 5 and heard == [(i + 1, parts) for i in range(parts)]
    monkeypatch.setattr(plan_module, "COUNT_HERE_BYTES", 0)
    heard.clear()
    there = plan(recipe, client=client, heard=lambda done, of: heard.append((done, of)))
    assert there == here and heard[-1] == (parts, parts)


def test_the_line_before_a_run_says_the_same(tmp_path: Path) -> None:
    recipe = rig.recipe_for(NOWHERE, varied(tmp_path / "in.jsonl", 40), tasks=[LIMITED, "distill"])
    endpoint = recipe.endpoint_for(NOWHERE)
    job = plan_job(recipe, endpoint, tokenizer=own_tokenizer(recipe), ledger="", fingerprint="")
    line, planned = estimate(job), plan(recipe).total
    assert (line.requests, line.input_tokens) == (planned.requests, planned.input_tokens)
    assert line.output_tokens_at_most == planned.output_tokens.high


def test_what_a_run_would_refuse_a_plan_refuses(tmp_path: Path) -> None:
    source = rig.documents(tmp_path / "in.jsonl", range(3))
    with pytest.raises(ConfigurationError, match="body"):
        plan(rig.recipe_for(NOWHERE, source, text_field="body"))
    (tmp_path / "out" / "data").mkdir(parents=True)
    (tmp_path / "out" / "data" / "part-00000.parquet").touch()
    with pytest.raises(RunFolderError, match="no run folder"):
        plan(rig.recipe_for(NOWHERE, source), output=tmp_path / "out")


# --- a pilot --------------------------------------------------------------------------------------


@pytest.mark.cluster
@pytest.mark.row("I1")
def test_a_pilot_foretells_the_cost_and_is_part_of_the_run(
    client: Any, talker: Any, tmp_path: Path
) -> None:
    recipe = rig.recipe_for(
        talker.url,
        varied(tmp_path / "in.jsonl", 400),
        tasks=[LIMITED],
        partition_size="16KB",
        price_in=1.0,
        price_out=4.0,
    )
    out = tmp_path / "out"
    guessed = plan(recipe)
    planned = plan(recipe, output=out, pilot=40)
    assert planned.pilot is not None and planned.seconds is not None
    assert (planned.pilot.rows, planned.pilot.requests, planned.pilot.filed) == (40, 40, 0)
    assert len(rig.asked(talker.log)) == 40
    result = run(recipe, out, client=client)
    assert len(rig.asked(talker.log)) == 400 and max(rig.requests_of(talker.log).values()) == 1

    tokens, cost = planned.total.output_tokens, planned.total.cost
    assert cost is not None and result.cost is not None
    assert cost.expected == pytest.approx(result.cost, rel=0.1)
    assert tokens.expected == pytest.approx(result.tokens["output_tokens"], rel=0.1)
    # The server counts words, not tokens: the pilot has found out by how much that is off.
    assert planned.total.input_tokens == pytest.approx(result.tokens["input_tokens"], rel=0.02)
    assert guessed.total.input_tokens > 1.2 * result.tokens["input_tokens"]
    assert tokens.error is not None and 0 < tokens.error < 0.1
    assert planned.seconds.low is not None and planned.seconds.high is not None
    assert 0 < planned.seconds.low < planned.seconds.expected < planned.seconds.high


@pytest.mark.cluster
def test_the_same_pilot_again_asks_nothing(talker: Any, tmp_path: Path) -> None:
    source = varied(tmp_path / "in.jsonl", 100)
    recipe = rig.recipe_for(talker.url, source, tasks=[LIMITED], price_in=1.0, price_out=4.0)
    first = plan(recipe, output=tmp_path / "out", pilot=10)
    # Other partitions, the same rows.
    second = plan(recipe.replace(partition_size="4KB"), output=tmp_path / "out", pilot=10)
    assert len(rig.asked(talker.log)) == 10
    assert second.pilot is not None and first.pilot is not None
    assert (second.pilot.filed, second.pilot.output_tokens, second.pilot.cost) == (10, 0, 0.0)
    assert first.pilot.output_tokens > 0 and first.total.cost == second.total.cost
    numbers = sorted(int(e.body["messages"][0]["content"].split()[6][:-1]) for e in
                     rig.asked(talker.log))  # fmt: skip
    assert [number // 10 for number in numbers] == list(range(10)), "one of every ten"


def test_a_pilot_has_to_say_where_its_answers_go(talker: Any, tmp_path: Path) -> None:
    source = rig.documents(tmp_path / "in.jsonl", range(9))
    recipe = rig.recipe_for(talker.url, source)
    with pytest.raises(RecipeError, match="--output"):
        plan(recipe, pilot=3)
    assert talker.log.entries == []
    shared = recipe.replace(ledger=str(tmp_path / "ledger"))
    for filed in (0, 3):
        planned = plan(shared, pilot=3)
        assert planned.pilot is not None and planned.pilot.filed == filed
        assert planned.pilot.ledger == str(tmp_path / "ledger")
    assert len(rig.asked(talker.log)) == 3


def test_a_pilot_sees_second_tries_and_further_questions(
    scripted: Callable[..., Any], tmp_path: Path
) -> None:
    source = rig.documents(tmp_path / "in.jsonl", range(40))
    cut = scripted(faults=[Fault(kind="length_cut", times=1)])
    planned = plan(rig.recipe_for(cut.url, source), output=tmp_path / "cut", pilot=10)
    assert planned.total.requests == 80 and planned.pilot is not None
    assert (planned.pilot.rows, planned.pilot.requests) == (10, 20)

    (tmp_path / "flow.py").write_text(FLOW.replace("titled", "titled_otherwise"))
    recipe = rig.recipe_for(
        scripted().url, source, tasks=[], task_file=str(tmp_path / "flow.py"), concurrency=4
    )
    planned = plan(recipe, output=tmp_path / "flow", pilot=5)
    assert planned.total.requests == 120 and not planned.total.is_least


def test_a_rate_that_is_given_makes_it_longer(talker: Any, tmp_path: Path) -> None:
    recipe = rig.recipe_for(talker.url, rig.documents(tmp_path / "in.jsonl", range(30)))
    assert plan(recipe, output=tmp_path / "out", pilot=5).seconds is not None
    for rates in ({"requests_per_minute": 30.0}, {"tokens_per_minute": 1e9}):
        paced = plan(recipe.replace(**rates), output=tmp_path / "out", pilot=5)
        assert paced.seconds is not None
        is_slow = "requests_per_minute" in rates
        assert (paced.seconds.expected == 60.0) == is_slow


def test_a_pilot_of_everything_is_no_estimate(talker: Any, tmp_path: Path) -> None:
    source = varied(tmp_path / "in.jsonl", 12)
    planned = plan(rig.recipe_for(talker.url, source), output=tmp_path / "out", pilot=50)
    assert planned.pilot is not None and planned.pilot.rows == 12
    assert planned.total.output_tokens.expected == planned.pilot.output_tokens
    assert planned.total.output_tokens.error == 0


@pytest.mark.cluster
def test_a_server_that_counts_is_asked_by_a_pilot(
    client: Any, scripted: Callable[..., Any], tmp_path: Path
) -> None:
    server = scripted(kind="vllm", rules=[("Sum up", retold)])
    source = varied(tmp_path / "in.jsonl", 120)
    task = rig.SUMMARY | {"budget": {"max_input_tokens": 60, "max_output_tokens": 100}}
    recipe = rig.recipe_for(server.url, source, tasks=[task], tokenizer=None, partition_size="16KB")
    counted_here = plan(recipe).total.requests
    planned = plan(recipe, output=tmp_path / "out", pilot=15)
    assert planned.is_estimate and planned.pilot is not None
    assert planned.pilot.rows == len(rig.asked(server.log)) >= 12
    run(recipe, tmp_path / "out", client=client)
    sent = len(rig.asked(server.log))
    assert counted_here > 1.3 * sent, "the server's tokenizer makes fewer segments"
    assert planned.total.requests == planned.total.rows == pytest.approx(sent, rel=0.05)
