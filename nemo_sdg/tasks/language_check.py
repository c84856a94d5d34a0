"""Tell the language of one answer, by the tables and rules of `nemo_sdg.text.language`.

That module works on columns, about 11 ms for a column of one text. An answer is checked by itself,
before a second try is spent or not, so here is the same decision in about 50 µs; a test holds the
two together.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

from nemo_sdg.text.language import _SCRIPTS, LANGUAGES

_BETWEEN_WORDS = re.compile(r"[\s\d.,;:!?\"“”„«»()\[\]{}*_/’'‘…。，、|-]+")
_LETTERS = {script: re.compile(pattern) for script, pattern in _SCRIPTS.items()}
_HEAVY = {"han": 3, "kana": 3, "hangul": 3}


def language_of(text: str) -> str | None:
    """Return the code of the text's language; None where it has no letters or says too little."""
    weights = {
        script: len(pattern.findall(text)) * _HEAVY.get(script, 1)
        for script, pattern in _LETTERS.items()
    }
    if weights["kana"] * 10 >= weights["han"] + weights["kana"]:
        weights["kana"], weights["han"] = weights["kana"] + weights["han"], 0
    else:
        weights["kana"] = 0
    script = max(weights, key=lambda name: weights[name])
    if weights[script] * 2 <= sum(weights.values()):
        return None
    members = [code for code, language in LANGUAGES.items() if language.script == script]
    if len(members) == 1:
        return members[0]
    lower = text.lower()
    words = [word for word in _BETWEEN_WORDS.split(lower) if word]
    by_word, by_letter = _signs(script)
    hits = Counter(dict.fromkeys(members, 0))
    for sign, known in ((Counter(words), by_word), (Counter(lower), by_letter)):
        for found in sign.keys() & known.keys():
            for code in known[found]:
                hits[code] += sign[found]
    (best, first), (_, second) = hits.most_common(2)
    clear = first >= 2 and first * 4 >= second * 5 and first * 12 >= len(words)
    return best if clear else None


@lru_cache(maxsize=16)
def _signs(script: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return word -> languages and letter -> languages of a script."""
    by_word: dict[str, list[str]] = {}
    by_letter: dict[str, list[str]] = {}
    for code, language in LANGUAGES.items():
        if language.script == script:
            for word in dict.fromkeys(language.words.split()):
                by_word.setdefault(word, []).append(code)
            for letter in dict.fromkeys(language.letters):
                by_letter.setdefault(letter, []).append(code)
    return by_word, by_letter
