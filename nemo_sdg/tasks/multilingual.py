"""Questions and answers from nothing, in the languages that a plan shares out.

    get_task("multilingual_qa")                                       # five languages, even
    with_languages(multilingual_qa, ["Dutch", "Polish"], weights={"Dutch": 1, "Polish": 3})

Rows: `language` and `topic` of the plan, `question`, `answer`, `raw` (the model's text untouched).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nemo_sdg.errors import ConfigurationError, ParseError
from nemo_sdg.llm import extractive
from nemo_sdg.llm.request import Sampling
from nemo_sdg.tasks.language_check import language_of
from nemo_sdg.tasks.parse import question_answer_pairs
from nemo_sdg.tasks.plan import LanguagePlan, Mode
from nemo_sdg.tasks.registry import register
from nemo_sdg.tasks.task import Budget, Task
from nemo_sdg.text.language import LANGUAGES as KNOWN
from nemo_sdg.text.language import language_code

LANGUAGES = ("English", "French", "Italian", "German", "Spanish")

MULTILINGUAL_SYSTEM = (
    "You are a teacher with a wide general knowledge who writes fluently in many languages."
)

MULTILINGUAL_PROMPT = """\
Think of one question that a curious person might ask about the subject given below, and answer it.

- Write both the question and the answer in {language}, as a native speaker would.
- Pick something particular within the subject, not the first thing that comes to mind. The \
question must be clear without further context.
- Answer correctly and completely in two to five sentences.
- Use exactly this form, with the two English tags, and write nothing before or after it:
Question: (the question)
Answer: (the answer)

Language: {language}
Subject: {topic}"""


def known_language(name: str) -> str:
    """Return the English name of a language whose answers can be verified ("deutsch": German).

    Raises:
        ConfigurationError: it is not known; the message has the nearest name.
    """
    return KNOWN[language_code(name)].names.split()[0].replace("~", " ")


def question_answer_raw(text: str) -> tuple[str, str, str]:
    """Return the first pair of an answer and the answer itself; raise `ParseError` `no_pairs`."""
    pair = question_answer_pairs(text)[0]
    return pair.question, pair.answer, text


def in_language_asked(value: tuple[str, str, str], values: Mapping[str, Any]) -> None:
    """Raise `ParseError` `wrong_language` when an answer is surely in another language.

    An answer that says too little to tell its language passes.
    """
    question, answer, _ = value
    asked = language_code(str(values["language"]))
    found = language_of(f"{question}\n{answer}")
    if found is not None and found != asked:
        raise ParseError("wrong_language", f"asked for {asked}, the answer is {found}")


def _pair_offline(values: Mapping[str, str], seed: int) -> str:
    question, answer = extractive.pair_in_language(values["language"], values["topic"], seed)
    return f"Question: {question}\nAnswer: {answer}"


multilingual_qa = register(
    Task(
        name="multilingual_qa",
        output="raw",
        columns={"question": "string", "answer": "string", "raw": "string"},
        system=MULTILINGUAL_SYSTEM,
        prompt=MULTILINGUAL_PROMPT,
        parse=question_answer_raw,
        check=in_language_asked,
        budget=Budget(max_input_tokens=512, max_output_tokens=512),
        sampling=Sampling(temperature=0.8, top_p=0.95, stop=("</s>",)),
        plan=LanguagePlan(languages=LANGUAGES),
        offline=_pair_offline,
        doc="Write questions and answers from nothing in several languages.",
    )
)


def with_languages(
    task: Task,
    languages: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
    mode: Mode | None = None,
) -> Task:
    """Return the task with other languages, weights or mode; None keeps what the plan has.

    Args:
        task: one whose plan is a `LanguagePlan`.
        languages: names in English, in any case ("german" is "German").
        weights: name -> share, on any scale. New languages alone are shared out evenly.
        mode: "quota" for exact counts, "random" for a draw at every sample.

    Raises:
        ConfigurationError: the task has no language plan, a language or mode is unknown.
    """
    plan = task.plan
    if not isinstance(plan, LanguagePlan):
        raise ConfigurationError(f"task {task.name} has no languages to choose")
    names = plan.languages if languages is None else tuple(known_language(x) for x in languages)
    quota = plan.quota if languages is None else None
    if weights is not None:
        quota = {known_language(name): weight for name, weight in weights.items()}
    changed = replace(plan, languages=names, quota=quota, mode=mode or plan.mode)
    return replace(task, plan=changed)
