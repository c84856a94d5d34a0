"""The five techniques of Nemotron-CC (arXiv:2412.02595): rephrase, ask, condense, extract, list.

Figures (budgets, sampling, minimum lengths, the length rule for pairs) are those of the paper and
of NeMo Curator, per task. Prompts are our own; they keep the fixed opening sentences. Instructions
come first and the document last, so that servers can share the prefix of all requests of a task.

Low-quality documents go to `wikipedia_rephrase`, high-quality ones to the other four.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_sdg.errors import ParseError
from nemo_sdg.llm import extractive
from nemo_sdg.tasks.parse import after_prefix, list_items, pair_texts, parse_pair_text, passages
from nemo_sdg.tasks.registry import register
from nemo_sdg.tasks.steps import (
    SampleItems,
    join_lines,
    join_paragraphs,
    join_segments,
    prepend_source,
)
from nemo_sdg.tasks.task import NEMOTRON_CC, Budget, Rows, Task
from nemo_sdg.text.clean import strip_label_lines, strip_markdown, strip_quotes
from nemo_sdg.text.filters import min_tokens

SOURCE = "arXiv:2412.02595"

GENERAL_CHAT = (
    "You are talking with someone who is eager to learn. Be courteous and helpful, and answer with "
    "care and in detail."
)
EXPERT = (
    "You are an expert with a careful mind. What you write is accurate, well founded and finely "
    "distinguished, and your reasoning is sound."
)

WIKIPEDIA_PREFIX = "Here is a paraphrased version:"
PAIRS_PREFIX = "Here are the questions and answers based on the provided text:"
DISTILL_PREFIX = "Paraphrased Text:"
NOTHING = "No useful knowledge."


# ------------------------------------------------------------------------------ wikipedia_rephrase

WIKIPEDIA_PROMPT = f"""\
Rewrite the text below in the clear, neutral prose of a good encyclopedia article, in words of \
your own and with varied sentences. Keep its meaning and its language; leave out menus and \
advertising.

Put this line, exactly as it stands, before the rewritten text:
{WIKIPEDIA_PREFIX}

Text:
{{document}}"""


def _rephrase_offline(values: Mapping[str, str], seed: int) -> str:
    return f"{WIKIPEDIA_PREFIX}\n{extractive.simplify_words(values['document'], seed)}"


wikipedia_rephrase = register(
    Task(
        name="wikipedia_rephrase",
        output="rephrased",
        system=GENERAL_CHAT,
        prompt=WIKIPEDIA_PROMPT,
        parse=after_prefix(WIKIPEDIA_PREFIX),
        clean=(strip_markdown, strip_quotes, join_segments, min_tokens(50)),
        budget=Budget(
            min_document_tokens=5,
            min_segment_tokens=5,
            max_input_tokens=512,
            max_output_tokens=512,
        ),
        sampling=NEMOTRON_CC,
        offline=_rephrase_offline,
        doc="Rewrite a document in the style of an encyclopedia.",
        source=SOURCE,
        published_ratio=0.83,
    )
)


# -------------------------------------------------------------------------------------- diverse_qa

DIVERSE_QA_PROMPT = f"""\
Read the text at the end closely. Then write questions about it, each with its answer.

Questions
- Write up to eight pairs, fewer if the text does not yield more. Cover different parts of the \
text and never ask the same thing twice.
- Mix the kinds of question: some to be answered with yes or no; open ones that begin with what, \
who, when, where, why or how; multiple choice, with the options A) to D) written out within the \
question; ones that compare two things in the text; ones that test whether the text was \
understood; and ones where a small problem has to be solved with what the text says.
- A question must make sense to somebody who does not see the text: name what you ask about.

Answers
- Rely on the text alone, and be correct and specific. Do not ask what the text cannot answer.
- Keep answers short: a few words or a sentence, two where a reason is asked for.

Form
- Write in the language of the text, in plain text without Markdown.
- The first line is exactly: {PAIRS_PREFIX}
- After it, one pair on each line, as a dash bullet with these English tags:
- Question: (the question) Answer: (the answer)

Text:
{{document}}"""


def _pairs_offline(values: Mapping[str, str], seed: int) -> str:
    pairs = extractive.question_answer_pairs(values["document"], seed, most=8)
    lines = [f"- Question: {question} Answer: {answer}" for question, answer in pairs]
    return "\n".join([PAIRS_PREFIX, *lines])


diverse_qa = register(
    Task(
        name="diverse_qa",
        output="diverse_qa",
        columns={"diverse_qa": "list[string]"},
        system=GENERAL_CHAT,
        prompt=DIVERSE_QA_PROMPT,
        parse=pair_texts,
        clean=(
            strip_markdown,
            SampleItems(max_items=1, tokens_per_item=150),
            join_paragraphs,
            prepend_source,
            min_tokens(100),
        ),
        budget=Budget(
            min_document_tokens=30,
            min_segment_tokens=30,
            max_input_tokens=1000,
            max_output_tokens=600,
        ),
        sampling=NEMOTRON_CC,
        rows=Rows(
            columns={"question": "string", "answer": "string", "type": "string"},
            read=parse_pair_text,
        ),
        offline=_pairs_offline,
        doc="Write question-answer pairs of several kinds about a text, and put them behind it.",
        source=SOURCE,
        published_ratio=1.11,
    )
)


# ----------------------------------------------------------------------------------------- distill

DISTILL_PROMPT = f"""\
Condense the text below: say everything that matters in it, in fewer words.

- Keep every important fact, term, name, number, date, example and line of argument, and how they \
depend on one another.
- Add nothing: no knowledge of your own, no opinion, no introduction, no closing remark.
- Rewrite the text itself. Do not describe it from outside ("the text says ..."), and do not \
reduce it to a summary of its headlines.
- Leave out repetition, small talk, navigation and advertising.
- Write flowing plain text in the language of the original, without headings, lists or other \
Markdown. The result must be shorter than the original.

Put this line, exactly as it stands, before the condensed text:
{DISTILL_PREFIX}

Text:
{{document}}"""


def shorter_than_source(value: str, values: Mapping[str, Any]) -> None:
    """Raise `ParseError` `longer_than_source` for a condensed text with more characters."""
    source = str(values["document"])
    if len(value) > len(source):
        raise ParseError(
            "longer_than_source",
            f"{len(value)} characters made of {len(source)}: nothing condensed",
        )


def _distill_offline(values: Mapping[str, str], seed: int) -> str:
    return f"{DISTILL_PREFIX}\n{extractive.condense(values['document'], 0.6)}"


distill = register(
    Task(
        name="distill",
        output="distill",
        system=EXPERT,
        prompt=DISTILL_PROMPT,
        parse=after_prefix(DISTILL_PREFIX),
        check=shorter_than_source,
        clean=(strip_markdown, strip_quotes, min_tokens(50)),
        budget=Budget(
            min_document_tokens=30,
            min_segment_tokens=10,
            max_input_tokens=2000,
            max_output_tokens=1600,
        ),
        sampling=NEMOTRON_CC,
        offline=_distill_offline,
        doc="Condense a text without losing its facts.",
        source=SOURCE,
        published_ratio=0.35,
    )
)


# ------------------------------------------------------------------------------- extract_knowledge

EXTRACT_KNOWLEDGE_PROMPT = f"""\
Rewrite what can be learned from the text below as passages that could stand in a textbook or an \
encyclopedia.

What counts is knowledge of lasting use, for example of mathematics and logic; physics, chemistry \
and astronomy; earth, climate and environment; biology, medicine and health; farming and food; \
engineering and computing; history and archaeology; geography and travel; law, government and \
politics; economy and business; society, psychology and education; philosophy and religion; \
languages, literature, music and art.

- Pass over whatever teaches nothing: advertising, navigation, contact details, private chat.
- Take over facts exactly. Keep the explanations, examples, reasons and evidence given for them, \
and change or add nothing.
- Each passage is about one subject and can be understood on its own.
- Write plain text in the language of the original, with one blank line between passages. No \
titles, labels, numbers, lists or Markdown, no notes and no comments before or after.
- If nothing in the text teaches anything, answer only: {NOTHING}

Text:
{{document}}"""


def _passages_offline(values: Mapping[str, str], seed: int) -> str:
    return extractive.passages(values["document"]) or NOTHING


extract_knowledge = register(
    Task(
        name="extract_knowledge",
        output="extract_knowledge",
        system=GENERAL_CHAT,
        prompt=EXTRACT_KNOWLEDGE_PROMPT,
        parse=passages,
        clean=(strip_markdown, strip_label_lines("Passage", "Passages"), min_tokens(50)),
        budget=Budget(
            min_document_tokens=30,
            min_segment_tokens=30,
            max_input_tokens=1400,
            max_output_tokens=1400,
        ),
        sampling=NEMOTRON_CC,
        ordinary=frozenset({"nothing_to_extract"}),
        offline=_passages_offline,
        doc="Rewrite the knowledge in a text as textbook passages.",
        source=SOURCE,
        published_ratio=0.67,
    )
)


# ---------------------------------------------------------------------------------- knowledge_list

KNOWLEDGE_LIST_PROMPT = """\
List the facts that can be learned from the text below: the concrete details, definitions, \
numbers, names, relations and conclusions that are worth remembering.

- Every item stands in the text; add nothing of your own, and say nothing twice.
- Every item is a full sentence that can be understood alone: name what it is about instead of \
"it" or "this".
- Write one item on each line, as a dash bullet ("- "), all on one level. Start with the first \
item: no title, no headings, no introduction, no closing remark, no Markdown but the dashes.
- Write in the language of the text.

Text:
{document}"""


def _facts_offline(values: Mapping[str, str], seed: int) -> str:
    return "\n".join(f"- {fact}" for fact in extractive.facts(values["document"], 12))


def _as_row(fact: str) -> tuple[str]:
    return (fact,)


knowledge_list = register(
    Task(
        name="knowledge_list",
        output="knowledge_list",
        columns={"knowledge_list": "list[string]"},
        system=GENERAL_CHAT,
        prompt=KNOWLEDGE_LIST_PROMPT,
        parse=list_items,
        clean=(strip_markdown, join_lines, min_tokens(50)),
        budget=Budget(
            min_document_tokens=30,
            min_segment_tokens=30,
            max_input_tokens=1000,
            max_output_tokens=600,
        ),
        sampling=NEMOTRON_CC,
        rows=Rows(columns={"fact": "string"}, read=_as_row),
        offline=_facts_offline,
        doc="List the facts of a text, one sentence each.",
        source=SOURCE,
        published_ratio=0.45,
    )
)
