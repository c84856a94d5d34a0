"""Question-answer pairs out of an answer, in every shape models give them.

    question_answer_pairs("1. **Question:** What rusts? **Answer:** Iron.")
    # [Pair(question="What rusts?", answer="Iron.", type="open")]

`format_pair` writes the canonical text of a pair and `parse_pair_text` reads it back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from nemo_sdg.errors import ParseError
from nemo_sdg.tasks.as_asked import Tag, plain_pairs
from nemo_sdg.tasks.marks import LEAD, bare, close_marks, json_values, unwrap

QUESTION_TYPES = (
    "yes_no",
    "open",
    "multiple_choice",
    "comparison",
    "comprehension",
    "problem_solving",
)
"""The six kinds of question of Nemotron-CC's diverse Q&A (arXiv:2412.02595)."""

QUESTION_WORDS = (
    "question frage pregunta pergunta questão domanda vraag pytanie вопрос запитання питання soru "
    "fråga spørgsmål spørsmål otázka pertanyaan câu~hỏi kysymys kérdés întrebare ερώτηση प्रश्न सवाल "
    "سؤال السؤال שאלה คำถาม 问题 問題 質問 設問 问 問 問い 질문 문제"
)
ANSWER_WORDS = (
    "answer antwort réponse reponse respuesta resposta risposta antwoord odpowiedź odpowiedz ответ "
    "відповідь cevap yanıt svar odpověď jawaban câu~trả~lời trả~lời đáp~án vastaus válasz "
    "răspuns απάντηση उत्तर जवाब جواب الجواب إجابة الإجابة תשובה "
    "คำตอบ 答案 回答 解答 答 答え 답변 대답 정답 답"
)
"""What stands before a question and an answer, in 25 languages; "~" is a blank."""

_SHORT_TAGS = {"q": "a", "f": "ar", "p": "ro", "d": "r", "v": "a", "в": "о"}
"""One-letter tags: Q/A, F/A (de), Q/R and P/R (fr, es, pt), P/O (pl), D/R (it), V/A (nl), В/О."""


class Pair(NamedTuple):
    """A question, its answer, and the kind of question (one of `QUESTION_TYPES`)."""

    question: str
    answer: str
    type: str


def format_pair(pair: Pair) -> str:
    """Return the canonical text of a pair; the kind is not in it, it follows from the rest."""
    return _written(pair.question, pair.answer)


def _written(question: str, answer: str) -> str:
    return f"Question: {question}\nAnswer: {answer}"


def parse_pair_text(text: str) -> Pair:
    r"""Read the canonical text of one pair; the inverse of `format_pair`.

    The answer begins at the first "\nAnswer: ". The kind of question is judged anew.

    Raises:
        ParseError: `no_pairs` when the text is not of this form.
    """
    question, mark, answer = text.removeprefix("Question: ").partition("\nAnswer: ")
    if not (text.startswith("Question: ") and mark):
        raise ParseError("no_pairs", "not of the form Question: ... Answer: ...")
    return Pair(question, answer, question_type(question, answer))


def pair_texts(answer: str | None) -> list[str]:
    """Return the pairs of an answer in canonical text form; see `question_answer_pairs`."""
    text = bare(answer)
    pairs = plain_pairs(text, _QUESTION_TAG, _ANSWER_TAG, _BETWEEN)
    if pairs is None:
        return general_pair_texts(text)
    return [_written(*pair) for pair in dict.fromkeys(pairs)]


def general_pair_texts(text: str) -> list[str]:
    """Return what `pair_texts` does of a bare answer, in its most general way."""
    if found := list(_from_json(text)):
        return [format_pair(pair) for pair in dict.fromkeys(found)]
    # The kinds of pairs in a text follow from the rest, and are not asked for.
    return [_written(*pair) for pair in dict.fromkeys(_required(_from_text(text)))]


def question_answer_pairs(answer: str | None) -> list[Pair]:
    """Return the pairs of an answer in order, exact repetitions once.

    Read are tags ("Question:", "Q1.", "Frage:", "问题：", ...) in any case, with any bullet,
    number, bold or heading marks, on lines of their own or both on one line, questions and answers
    of several lines, and JSON objects with such keys. Text before the first question is passed
    over; a question without an answer is no pair. Stars that mark nothing up stay.

    Raises:
        ParseError: `no_pairs`.
    """
    text = bare(answer)
    plain = plain_pairs(text, _QUESTION_TAG, _ANSWER_TAG, _BETWEEN)
    return general_pairs(text) if plain is None else _judged(plain)


def general_pairs(text: str) -> list[Pair]:
    """Return what `question_answer_pairs` does of a bare answer, in its most general way."""
    if found := list(_from_json(text)):
        return list(dict.fromkeys(found))
    return _judged(_required(_from_text(text)))


def _required(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    if not pairs:
        raise ParseError("no_pairs")
    return pairs


def _judged(pairs: list[tuple[str, str]]) -> list[Pair]:
    return [Pair(q, a, question_type(q, a)) for q, a in dict.fromkeys(pairs)]


# ------------------------------------------------------------------------------------ kinds

_YES_NO = re.compile(
    r"(?:yes|no|true|false|ja|nein|oui|non|sí|si|no|sì|sim|não|nee|tak|nie|да|нет|так|ні|evet|hayır|"
    r"是的?|不是|否|对|不|はい|いいえ|네|예|아니[요오]|نعم|لا|हाँ|हां|नहीं)\s*(?:[.,;:!。，；、！،—–-]|$)",
    re.IGNORECASE,
)
# Was, do, are... are words of other languages too: with them another English word must stand.
_AUXILIARY = re.compile(
    r"(?:is|does|did|could|would|should|might|isn['’]t|aren['’]t|doesn['’]t|don['’]t|didn['’]t|"
    r"(?:was|were|are|am|do|can|has|have|had|will|shall|may|must)"
    r"(?=.*\b(?:the|a|of|to|it|they|you|we|there|this|that|these|be|by|for|with|from|any)\b))\b"
    r"(?!.*\bor\b)",
    re.IGNORECASE | re.DOTALL,
)
_CHOICES = re.compile(r"(?:^|[\s(*])\(?([A-Ea-e])[).:][*\s]")
_COMPARISON = re.compile(
    r"\b(?:compar\w+|contrast\w*|differ|differs|differed|difference|differences|different\s+from|versus|vs|"
    r"distinguish\w*|similarit\w+|in\s+common|than)\b",
    re.IGNORECASE,
)
_PROBLEM = re.compile(
    r"\b(?:calculate|compute|solve|estimate|suppose|imagine\s+that)\b|\bif\b.*\b(?:how|what|which)\b|"
    r"\bhow\s+(?:would|could|can|should|might)\s+(?:you|one|we|i|a|an|someone)\b|"
    r"\bhow\s+(?:many|much|long|far)\b.*\d.*\d|\d.*\d.*\bhow\s+(?:many|much|long|far)\b",
    re.IGNORECASE | re.DOTALL,
)
_COMPREHENSION = re.compile(
    r"\baccording\s+to\b|\bmain\s+(?:idea|point|theme|topic|purpose|argument)\b|\binfer\w*|\bimpl(?:y|ies)\b|"
    r"\bsummar\w+|\b(?:the|this)\s+(?:text|passage|author|article|document|paragraph)\b",
    re.IGNORECASE,
)


def question_type(question: str, answer: str = "") -> str:
    """Judge the kind of a question; the first rule that holds decides, else `open`.

    1. `multiple_choice`: options A and B (or more) are named, or "which of the following".
    2. `yes_no`: the answer begins with yes or no (in 20 languages), or the question with an English
       auxiliary verb and offers no "or".
    3. `comparison`: it compares, contrasts, tells apart, says "than".
    4. `problem_solving`: calculate, solve, suppose, "if ... how", "how would you", how many with
       two numbers.
    5. `comprehension`: it speaks of the text, its author, its main idea, what can be inferred.

    Rules 3 to 5 know English words only.
    """
    letters = [letter.lower() for letter in _CHOICES.findall(question)]
    if {"a", "b"} <= set(letters) or re.search(r"which of the following", question, re.IGNORECASE):
        return "multiple_choice"
    if _YES_NO.match(answer) or _AUXILIARY.match(question):
        return "yes_no"
    for pattern, kind in (
        (_COMPARISON, "comparison"),
        (_PROBLEM, "problem_solving"),
        (_COMPREHENSION, "comprehension"),
    ):
        if pattern.search(question):
            return kind
    return "open"


# --------------------------------------------------------------------------------- from JSON


def _from_json(text: str) -> Iterator[Pair]:
    for value in json_values(text):
        yield from _from_value(value, depth=0)


def _from_value(value: Any, depth: int) -> Iterator[Pair]:
    if isinstance(value, list) and depth < 4:
        for item in value:
            yield from _from_value(item, depth + 1)
    if not isinstance(value, dict) or depth >= 4:
        return
    keys = {str(key).strip().lower(): item for key, item in value.items()}
    question = next((_text(keys[k]) for k in keys if k in _QUESTION_KEYS), "")
    answer = next((_text(keys[k]) for k in keys if k in _ANSWER_KEYS), "")
    if question and answer:
        options = keys.get("options", keys.get("choices"))
        if isinstance(options, dict):
            question += "".join(f"\n{key}) {_text(item)}" for key, item in options.items())
        elif isinstance(options, list):
            question += "".join(
                # The letters A, B, C, unless the options bring their own.
                f"\n{_text(item)}"
                if _CHOICES.match(_text(item))
                else f"\n{chr(65 + i)}) {_text(item)}"
                for i, item in enumerate(options[:26])
            )
        kind = re.sub(r"[\W_]+", "_", str(keys.get("type", ""))).strip("_").lower()
        known = kind in QUESTION_TYPES
        yield Pair(question, answer, kind if known else question_type(question, answer))
        return
    for item in value.values():
        if isinstance(item, list | dict):
            yield from _from_value(item, depth + 1)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "Yes" if value else "No"
    if isinstance(value, list):
        return ", ".join(filter(None, map(_text, value)))
    return bare(str(value)) if isinstance(value, str | int | float) else ""


# --------------------------------------------------------------------------------- from text


def _words(table: str) -> list[str]:
    return sorted((word.replace("~", " ") for word in table.split()), key=len, reverse=True)


_QUESTION_KEYS = frozenset({*_words(QUESTION_WORDS), "q"})
_ANSWER_KEYS = frozenset({*_words(ANSWER_WORDS), "a"})

_KIND = (
    r"(?:(?:yes[ /-]+(?:or[ -])?no|true[ /-]+(?:or[ -])?false|open(?:[ -]ended)?|"
    r"multiple[ -]choice|comparison|comparative|(?:reading[ ])?comprehension|"
    r"problem[ -]solving)[ \t]+)?"
)
_BULLET = r"(?:(?:[-–—−+•·‣◦▪●]|\(?(?:\d{1,3}[.):、．]|[a-zA-Z][.)]))[ \t*_]*)?"
_NUMBER = r"(?:[ \t]*(?:#|no?\.?[ \t]?|n°[ \t]?)?\d{1,3})"
_NOTE = r"(?:[ \t]*[(（][^()（）\n]{1,40}[)）])?"
# After a tag at the start of a line: a colon; a dash between blanks; with a number a dash, "." or
# ")" as well; or the end of the line.
_AFTER = (
    rf"(?:{_NOTE}[ \t*_]*(?:[:：]|[ \t][–—-][ \t])"
    rf"|{_NUMBER}{_NOTE}[*_]*(?:[ \t*_]*[:：–—-]|[.)])"
    rf"|{_NUMBER}?{_NOTE}[*_]*[ \t]*(?=\n|$))"
)


def _pattern(*words: str) -> re.Pattern[str]:
    """Match a tag at the start of a line, or inside one where a sentence has ended."""
    names = "|".join(map(re.escape, words))
    return re.compile(
        rf"^(?P<lead>{LEAD}{_BULLET}){_KIND}(?:{names}){_AFTER}"
        rf"|(?<=[.?!。？！)）…|;*_\"”»])(?:[ \t|]{{1,6}}|(?<=[.?!。？！]))"
        rf"(?P<mark>[*_]{{0,3}})(?:{names}){_NUMBER}?[*_]*[:：]",
        re.IGNORECASE | re.MULTILINE,
    )


_QUESTION = _pattern(*_words(QUESTION_WORDS), "q")
_ANSWER = _pattern(*_words(ANSWER_WORDS))
_QUESTION_TAG = Tag(_QUESTION, _QUESTION_KEYS)
_ANSWER_TAG = Tag(_ANSWER, _words(ANSWER_WORDS))
_TITLES = "|".join(map(str.title, _words(ANSWER_WORDS)))
_LOOSE_ANSWER = re.compile(rf"(?P<lead>)[ \t](?P<mark>[*_]{{0,3}})(?:{_TITLES})[*_]*[:：]")
_AT_END = re.compile(r"\s*|[ \t]*(?:[-*_=]{3,}|`{3,})[ \t]*")
# What may stand between two pairs and belongs to neither.
_BETWEEN = re.compile(
    rf"{_AT_END.pattern}|[ \t]*(?:#{{1,6}}[ \t].*|[-*•]|\(?\d{{1,3}}[.):]|"
    r"[*_]{0,3}(?:pair|q\s?&\s?a|qa)\b.{0,12})[ \t]*",
    re.IGNORECASE,
)


def _from_text(text: str) -> list[tuple[str, str]]:
    pairs = list(_pairs(text, _QUESTION, [_ANSWER, _LOOSE_ANSWER, _pattern("a")]))
    for question, answers in _SHORT_TAGS.items():
        if not pairs:
            pairs = list(_pairs(text, _pattern(question), [_ANSWER, *map(_pattern, answers)]))
    return pairs


def _pairs(
    text: str, questions: re.Pattern[str], answers: list[re.Pattern[str]]
) -> Iterator[tuple[str, str]]:
    tags = list(questions.finditer(text))
    ends = [*(tag.start() for tag in tags), len(text)][1:]
    for i, (tag, end) in enumerate(zip(tags, ends, strict=True)):
        split = _split(text[tag.end() : end], answers)
        if split is None:
            continue
        asked, answer_tag, answered = split
        trailer = _AT_END if i + 1 == len(tags) else _BETWEEN
        lines = answered.split("\n")
        while lines and trailer.fullmatch(lines[-1]):
            lines.pop()
        question, answer = _clean(tag, asked), _clean(answer_tag, "\n".join(lines))
        if re.search(r"\w", question) and answer:
            yield question, answer


def _split(block: str, answers: list[re.Pattern[str]]) -> tuple[str, re.Match[str], str] | None:
    """Cut a block at its answer tag: the first that a pattern, taken in order, finds."""
    for pattern in answers:
        for found in pattern.finditer(block):
            if block[: found.start()].strip(" \t\n*_") and not _is_option(block, found):
                return block[: found.start()], found, block[found.end() :]
    return None


def _is_option(block: str, found: re.Match[str]) -> bool:
    """Tell whether the tag `A:` is the first of the options A, B, C of a question."""
    return bool(
        re.match(r"\W*a\W*$", found[0], re.IGNORECASE)
        and re.match(r"[^\n]*\n\W*b[.):]", block[found.end() :], re.IGNORECASE)
    )


def _clean(tag: re.Match[str], text: str) -> str:
    """Remove the bold mark that closes what stands before the tag, and what wraps the text."""
    lead = tag.group("lead") or tag.group("mark") or ""
    closed_before_colon = re.search(r"[*_]+\s*[:：]?\s*$", tag[0].replace(lead, "", 1))
    return unwrap(bare(text if closed_before_colon else close_marks(lead, text)))
