"""The five tasks: figures of the fact sheet, format contracts, chains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nemo_sdg.errors import AnswerError, ParseError
from nemo_sdg.llm.drive import run_flow
from nemo_sdg.llm.request import Choice, Reply, Request, Sampling
from nemo_sdg.tasks import nemotron_cc
from nemo_sdg.tasks.nemotron_cc import (
    DISTILL_PREFIX,
    EXPERT,
    GENERAL_CHAT,
    NOTHING,
    PAIRS_PREFIX,
    WIKIPEDIA_PREFIX,
    distill,
    diverse_qa,
    extract_knowledge,
    knowledge_list,
    wikipedia_rephrase,
)
from nemo_sdg.tasks.steps import JoinItems, JoinSegments, PrependSource, SampleItems
from nemo_sdg.tasks.task import Task, stamp_of
from nemo_sdg.text.filters import TokenCount
from nemo_sdg.text.tokens import load_tokenizer

FIVE = (wikipedia_rephrase, diverse_qa, distill, extract_knowledge, knowledge_list)
# Fact sheet 1: system prompt, minimum tokens of document and segment, input and output tokens,
# and the minimum of the final column; Wikipedia's 5/5 as DESIGN 10 has them.
SHEET = {
    "wikipedia_rephrase": (GENERAL_CHAT, 5, 5, 512, 512, 50),
    "diverse_qa": (GENERAL_CHAT, 30, 30, 1000, 600, 100),
    "distill": (EXPERT, 30, 10, 2000, 1600, 50),
    "extract_knowledge": (GENERAL_CHAT, 30, 30, 1400, 1400, 50),
    "knowledge_list": (GENERAL_CHAT, 30, 30, 1000, 600, 50),
}
DOCUMENT = (
    "The Loire is the longest river in France. It rises in the Ardèche at 1,350 metres and flows "
    "for 1,006 kilometres into the Atlantic Ocean near Saint-Nazaire. Its valley is known for its "
    "castles, and part of it has been a World Heritage site since 2000. Because its level changes "
    "so much with the seasons, large ships cannot use it, unlike the Seine."
)


def asked(task: Task, document: str, *answers: str | Choice) -> tuple[Any, list[Request]]:
    requests: list[Request] = []

    def ask(request: Request) -> Reply:
        requests.append(request)
        answer = answers[min(len(requests), len(answers)) - 1]
        return Reply(choices=(Choice(text=answer) if isinstance(answer, str) else answer,))

    stamp = stamp_of(task.name, model="m", seed=0, row_id=0)
    return run_flow(task.flow({"document": document}), ask, stamp), requests


# ------------------------------------------------------------------------------------- figures

Limits = Callable[[Task], int | None]


def each_task_has_its_own_limit(sent: Limits) -> None:
    assert [sent(task) for task in FIVE] == [512, 600, 1600, 1400, 600]


@pytest.mark.row("J4")
@pytest.mark.row("N2")
@pytest.mark.row("N3")
@pytest.mark.row("N4")
@pytest.mark.row("N5")
@pytest.mark.row("N6")
@pytest.mark.parametrize("task", FIVE, ids=lambda task: task.name)
def test_defaults_equal_the_fact_sheet(task: Task) -> None:
    system, document, segment, given, limit, final = SHEET[task.name]
    assert task.budget is not None
    assert task.system == system
    assert (task.budget.min_document_tokens, task.budget.min_segment_tokens) == (document, segment)
    assert (task.budget.max_input_tokens, task.budget.max_output_tokens) == (given, limit)
    request = task.request({"document": DOCUMENT})
    assert request.sampling == Sampling(
        temperature=0.5, top_p=0.9, stop=("</s>",), max_output_tokens=limit
    )
    filters = [step for step in task.clean if isinstance(step, TokenCount)]
    assert [step.min_tokens for step in filters] == [final]
    assert task.clean[-1] is filters[0]
    assert task.variables == ("document",)
    assert task.source == "arXiv:2412.02595"


@pytest.mark.fault(41)
def test_the_limit_of_the_task_is_the_one_that_is_sent() -> None:
    def shared(task: Task) -> int:
        """One limit of 1600 for all tasks, whatever each declares."""
        return 512 if task is wikipedia_rephrase else 1600

    each_task_has_its_own_limit(lambda t: t.request({"document": "x"}).sampling.max_output_tokens)
    with pytest.raises(AssertionError):
        each_task_has_its_own_limit(shared)


@pytest.mark.fault(40)
def test_stop_is_a_mark_and_not_the_text_of_a_list() -> None:
    def check(stop: Callable[[Task], Any]) -> None:
        assert all("</s>" in list(stop(task)) for task in FIVE)

    check(lambda task: task.request({"document": "x"}).sampling.stop)
    with pytest.raises(AssertionError):
        check(lambda task: ["['</s>']"])


@pytest.mark.fault(44)
def test_every_task_has_its_system_prompt() -> None:
    def check(messages: Callable[[Task], Any]) -> None:
        for task in FIVE:
            assert [m["role"] for m in messages(task)] == ["system", "user"]

    check(lambda task: task.request({"document": "x"}).messages)
    with pytest.raises(AssertionError):
        check(lambda task: task.request({"document": "x"}).messages[task is not distill :])
    assert GENERAL_CHAT != EXPERT
    assert [task.system == EXPERT for task in FIVE] == [False, False, True, False, False]


# -------------------------------------------------------------------------------------- chains


def test_only_paraphrases_are_joined_to_documents() -> None:
    assert [any(isinstance(s, JoinSegments) for s in task.clean) for task in FIVE] == [
        True, False, False, False, False,
    ]  # fmt: skip


@pytest.mark.fault(24)
@pytest.mark.fault(25)
def test_the_length_rule_for_pairs_is_declared_and_limits() -> None:
    def check(rule: Callable[[int], int]) -> None:
        """Give at most 1 pair of a text of 150 tokens, 2 of 300: sheet 3.2 for max_num_pairs 1."""
        assert [rule(tokens) for tokens in (10, 150, 300, 450)] == [1, 1, 2, 3]

    (sample,) = (step for step in diverse_qa.clean if isinstance(step, SampleItems))
    assert sample == SampleItems(max_items=1, tokens_per_item=150)

    def ours(tokens: int) -> int:
        assert sample.tokens_per_item is not None
        return max(1, sample.max_items * tokens // sample.tokens_per_item)

    check(ours)
    with pytest.raises(AssertionError):
        check(lambda tokens: max(1, 10 * tokens // 150))  # its default of 10
    with pytest.raises(AssertionError):
        check(lambda tokens: 10)  # parameters that nobody reads


@pytest.mark.row("N3")
def test_pairs_stand_behind_their_source() -> None:
    kinds = [type(s) for s in diverse_qa.clean if not callable(s)]
    assert kinds == [SampleItems, JoinItems, PrependSource, TokenCount]
    assert [s.separator for s in diverse_qa.clean if isinstance(s, JoinItems | PrependSource)] == [
        "\n\n", "\n\n",
    ]  # fmt: skip


# ------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("task", FIVE, ids=lambda task: task.name)
def test_prompts_keep_the_format_contract(task: Task) -> None:
    prefix = {
        wikipedia_rephrase.name: WIKIPEDIA_PREFIX,
        diverse_qa.name: PAIRS_PREFIX,
        distill.name: DISTILL_PREFIX,
    }.get(task.name, "")
    assert prefix in task.prompt
    assert "language" in task.prompt
    # The document comes last: servers share the prefix of all requests, and the text cannot
    # push the instructions out of sight.
    assert task.prompt.endswith("Text:\n{document}")
    assert f"  {DOCUMENT} {{x}}" in str(
        task.request({"document": f"  {DOCUMENT} {{x}}"}).messages[1]["content"]
    )


@pytest.mark.row("I2")
@pytest.mark.parametrize("task", FIVE, ids=lambda task: task.name)
def test_prompts_leave_most_of_the_budget_to_the_text(task: Task) -> None:
    # The bundled tokenizer is small and counts high; real ones leave more.
    assert task.budget is not None
    overhead = load_tokenizer("bundled").overhead(task.request({"document": ""}).messages)
    assert 50 < overhead < task.budget.max_input_tokens / 2


def test_what_the_single_prompts_must_say() -> None:
    assert WIKIPEDIA_PREFIX == "Here is a paraphrased version:"
    assert PAIRS_PREFIX == "Here are the questions and answers based on the provided text:"
    assert DISTILL_PREFIX == "Paraphrased Text:"
    assert "dash bullet" in knowledge_list.prompt
    assert "one blank line between passages" in extract_knowledge.prompt
    assert NOTHING in extract_knowledge.prompt
    for word in ("Question:", "Answer:", "yes or no", "multiple choice", "compare", "eight"):
        assert word in diverse_qa.prompt


# ------------------------------------------------------------------------------------- answers


@pytest.mark.row("N2")
def test_a_paraphrase_is_read_through_a_greeting() -> None:
    for opening in (WIKIPEDIA_PREFIX, f"**{WIKIPEDIA_PREFIX}**", f"Sure!\n\n{WIKIPEDIA_PREFIX}"):
        value, requests = asked(wikipedia_rephrase, DOCUMENT, f"{opening}\nThe Loire is long.")
        assert value == "The Loire is long."
        assert len(requests) == 1
    with pytest.raises(ParseError) as caught:
        asked(wikipedia_rephrase, DOCUMENT, "The Loire is long.")
    assert caught.value.code == "prefix_missing"


PAIRS = (
    f"{PAIRS_PREFIX}\n- Question: Which is the longest river in France? Answer: The Loire.\n"
    "- Question: Is the Loire used by large ships? Answer: No, its level changes too much."
)


@pytest.mark.row("N3")
def test_pairs_become_texts_and_rows() -> None:
    value, _ = asked(diverse_qa, DOCUMENT, PAIRS)
    assert value == [
        "Question: Which is the longest river in France?\nAnswer: The Loire.",
        "Question: Is the Loire used by large ships?\nAnswer: No, its level changes too much.",
    ]
    rows = diverse_qa.rows
    assert rows is not None
    assert list(rows.columns) == ["question", "answer", "type"]
    read = [tuple(rows.read(text)) for text in value]
    assert read[0] == ("Which is the longest river in France?", "The Loire.", "open")
    assert read[1][2] == "yes_no"


@pytest.mark.fault(27)
@pytest.mark.parametrize("task", FIVE, ids=lambda task: task.name)
def test_a_null_answer_is_a_reason(task: Task) -> None:
    def check(read: Callable[[str | None], Any]) -> None:
        try:
            outcome = read(None)
        except AnswerError as error:
            outcome = error.code
        except (AttributeError, TypeError):
            outcome = "batch lost"
        assert outcome == "empty"

    def ours(content: str | None) -> Any:
        choice = Choice.from_body({"message": {"content": content}})
        return asked(task, DOCUMENT, choice)[0]

    def splits_it_unseen(content: str | None) -> Any:
        return [line.strip() for line in content.split("\n")]  # type: ignore[union-attr]

    check(ours)
    with pytest.raises(AssertionError):
        check(splits_it_unseen)


@pytest.mark.row("N4")
def test_a_condensed_text_is_shorter_than_its_source() -> None:
    good = f"{DISTILL_PREFIX}\nThe Loire, 1,006 km, is France's longest river."
    long = f"{DISTILL_PREFIX}\n{DOCUMENT} And more."
    assert asked(distill, DOCUMENT, good)[0].startswith("The Loire, 1,006 km")
    value, requests = asked(distill, DOCUMENT, long, good)
    assert value.startswith("The Loire, 1,006 km")
    assert len({request.seed for request in requests}) == 2
    with pytest.raises(ParseError) as caught:
        asked(distill, DOCUMENT, long)
    assert caught.value.code == "longer_than_source"


@pytest.mark.row("N5")
def test_nothing_to_extract_is_a_reason() -> None:
    assert asked(extract_knowledge, DOCUMENT, "One passage.\n\nAnother.")[0] == (
        "One passage.\n\nAnother."
    )
    with pytest.raises(ParseError) as caught:
        asked(extract_knowledge, DOCUMENT, NOTHING)
    assert caught.value.code == "nothing_to_extract"


@pytest.mark.row("N6")
def test_facts_become_rows() -> None:
    value, _ = asked(knowledge_list, DOCUMENT, "- The Loire is long.\n- It ends in the sea.")
    assert value == ["The Loire is long.", "It ends in the sea."]
    rows = knowledge_list.rows
    assert rows is not None
    assert [rows.read(fact) for fact in value] == [(fact,) for fact in value]
    assert dict(rows.columns) == {"fact": "string"}


# ------------------------------------------------------------------------- built-in endpoint


@pytest.mark.parametrize("task", FIVE, ids=lambda task: task.name)
def test_the_model_free_answer_is_one_that_the_task_reads(task: Task) -> None:
    assert task.offline is not None
    values = {"document": DOCUMENT}
    answer = task.offline(values, 3)
    assert answer == task.offline(values, 3)
    value, requests = asked(task, DOCUMENT, answer)
    assert value
    assert len(requests) == 1


@pytest.mark.parametrize("task", FIVE, ids=lambda task: task.name)
@pytest.mark.parametrize(
    "document", ["", " \n", "x", "12 34", "\x00", "汉字没有空格。" * 30, "a " * 5000]
)
def test_the_model_free_answer_to_any_text_is_text(task: Task, document: str) -> None:
    assert task.offline is not None
    assert isinstance(task.offline({"document": document}, 1), str)


def test_the_module_declares_five() -> None:
    declared = [v for v in vars(nemotron_cc).values() if isinstance(v, Task)]
    assert declared == list(FIVE)
