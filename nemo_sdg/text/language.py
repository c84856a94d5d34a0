"""Tell the language of texts, well enough to check that an answer is in the language asked for.

    detect_language(frame["answer"])        # column of codes: "de", "zh", ... or null where unsure
    language_code("Deutsch")                # "de"

Scripts decide where they can (Chinese, Japanese, Korean, Greek, ...); languages that share Latin,
Cyrillic or Arabic letters are told apart by the share of their most frequent short words. Works
from about ten words on; a name or a number has no language. Loops over languages, never rows.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any

from nemo_sdg.data.backend import array_module, from_values, replace_regex
from nemo_sdg.errors import ConfigurationError


@dataclass(frozen=True)
class _Language:
    names: str  # English name first, then native and other names; "~" is a blank
    iso3: str  # ISO 639-2 and 639-3
    script: str
    words: str = ""  # frequent words that the other languages of the script hardly have
    letters: str = ""  # letters that they do not have


_SCRIPTS = {
    "latin": "[a-zA-Z\u00c0-\u024f\u1e00-\u1eff]",
    "cyrillic": "[\u0400-\u052f]",
    "greek": "[\u0370-\u03ff]",
    "arabic": "[\u0600-\u06ff]",
    "hebrew": "[\u05d0-\u05ea]",
    "devanagari": "[\u0900-\u097f]",
    "thai": "[\u0e00-\u0e7f]",
    "hangul": "[\uac00-\ud7a3]",
    "kana": "[\u3041-\u309f\u30a1-\u30ff]",
    "han": "[\u4e00-\u9fff\u3400-\u4dbf]",
}

LANGUAGES: dict[str, _Language] = {
    "en": _Language(
        "English",
        "eng",
        "latin",
        "the and of to is that it was for with as are this be at from by have which not you "
        "his her they were has been their its would what when there can about more also had "
        "but how does do",
    ),
    "de": _Language(
        "German Deutsch",
        "deu ger",
        "latin",
        "der die das und ist nicht ein eine einen dem den des mit sich auf für auch von zu "
        "im wird als sind es bei aus nach wie oder werden zum zur wurde dass kann nur über "
        "durch sie ich wir was hat",
        "ßä",
    ),
    "fr": _Language(
        "French français Francais",
        "fra fre",
        "latin",
        "le les des et est une du dans que qui pour pas sur au avec ce il sont par plus ne "
        "se aux cette été comme mais ou elle nous vous ils leur ses même être fait était "
        "quelle peut très l d qu où depuis la de",
        "œèêùëç",
    ),
    "es": _Language(
        "Spanish español Espanol Castilian castellano",
        "spa",
        "latin",
        "el los las del que y es por con de para una su al lo como más pero sus se en fue "
        "son ha está también entre cuando muy sin sobre ser hay este desde esta puede qué "
        "cuál cómo tiene",
        "ñ¿¡",
    ),
    "it": _Language(
        "Italian italiano",
        "ita",
        "latin",
        "il di che è e la per una sono con non del della si da più come anche dei nel alla "
        "gli le delle ma ha questo questa nella essere lo al dal quale cosa può perché tra "
        "degli viene stato l dell nell un",
        "ìò",
    ),
    "pt": _Language(
        "Portuguese português Portugues Brazilian~Portuguese",
        "por",
        "latin",
        "o os do da que e não um uma com para em é as dos mais no na por se ao como mas foi "
        "das pelo ou são ele ela também seu sua muito nos já está qual pode quando isso "
        "pela até num",
        "ãõ",
    ),
    "nl": _Language(
        "Dutch Nederlands Flemish Vlaams",
        "nld dut",
        "latin",
        "het een van en de is dat niet op te zijn voor met die er aan door ook naar wordt "
        "werd bij uit deze maar om dan nog kan worden hebben heeft meer wat hoe als over "
        "tot geen",
    ),
    "pl": _Language(
        "Polish polski",
        "pol",
        "latin",
        "i w na się nie jest z do to że jak o od są przez dla po oraz który która które "
        "może czy ale był była przy tym jego co także ich tego być",
        "łąężśćńź",
    ),
    "sv": _Language(
        "Swedish svenska",
        "swe",
        "latin",
        "och att det som är en på för av med den till inte har ett om var från kan eller "
        "vad hur men de vid när också sin finns bland",
        "å",
    ),
    "cs": _Language(
        "Czech čeština cesky český",
        "ces cze",
        "latin",
        "a je se na v že to s z do jsou který která které jako pro od po nebo ale by ve si "
        "být jeho byl co není při také může jaký",
        "řěůčšťď",
    ),
    "ro": _Language(
        "Romanian română Romana",
        "ron rum",
        "latin",
        "și în de la este cu pe care nu din un o pentru sunt mai ce au fost sau prin dar "
        "între acest această se ca fi poate",
        "șțăşţ",
    ),
    "tr": _Language(
        "Turkish Türkçe Turkce",
        "tur",
        "latin",
        "ve bir bu için ile de da olarak olan daha çok gibi ne kadar en sonra ancak veya "
        "her değil var olduğu nedir nasıl hem hiç arasında bütün tüm eder",
        "ığşİ",
    ),
    "id": _Language(
        "Indonesian Bahasa~Indonesia Malay",
        "ind",
        "latin",
        "yang dan di dari untuk dengan ini adalah itu pada tidak dalam dapat oleh atau juga "
        "sebagai ke akan lebih karena bahwa ada apa telah",
    ),
    "vi": _Language(
        "Vietnamese Tiếng~Việt Tieng~Viet",
        "vie",
        "latin",
        "và của là có cho không được trong một các với những này người đã để khi từ như ở về cũng",
        "đơưạảấầậắặẹếềểệịọốồộớờợụủứừựỳ",
    ),
    "ru": _Language(
        "Russian русский",
        "rus",
        "cyrillic",
        "и в не на что с по это как к из от для его но так же или был было которые является",
        "ыэёъ",
    ),
    "uk": _Language(
        "Ukrainian українська",
        "ukr",
        "cyrillic",
        "і в не на що з до це як та від для його але у або був було які є",
        "іїєґ",
    ),
    "ar": _Language(
        "Arabic العربية عربي",
        "ara",
        "arabic",
        "في من على أن إلى هذا هذه التي الذي هو هي ما عن كان مع بين إذا ذلك",
        "ةىأإ",
    ),
    "fa": _Language(
        "Persian Farsi فارسی", "fas per", "arabic", "و در به از که این است را با آن برای", "پچژگ"
    ),
    "zh": _Language(
        "Chinese 中文 汉语 漢語 Mandarin Simplified~Chinese Traditional~Chinese 简体中文 繁體中文",
        "zho chi",
        "han",
    ),
    "ja": _Language("Japanese 日本語 nihongo", "jpn", "kana"),
    "ko": _Language("Korean 한국어 조선말", "kor", "hangul"),
    "hi": _Language("Hindi हिन्दी हिंदी", "hin", "devanagari"),
    "el": _Language("Greek Ελληνικά", "ell gre", "greek"),
    "he": _Language("Hebrew עברית", "heb", "hebrew"),
    "th": _Language("Thai ไทย ภาษาไทย", "tha", "thai"),
}
"""Languages that are told apart; to add one is to add a line."""

_CODES = {
    name.replace("~", " ").casefold(): code
    for code, language in LANGUAGES.items()
    for name in (code, *language.names.split(), *language.iso3.split())
}


def language_code(name: str) -> str:
    """Return the two-letter code of a language that is told apart.

    Args:
        name: English or native name, or ISO 639 code of two or three letters, in any case; a
            region or script may follow a code ("pt-BR", "zh_Hans").

    Raises:
        ConfigurationError: the language is unknown here.
    """
    given = name.strip().casefold()
    code = _CODES.get(given) or _CODES.get(re.split(r"[-_(]", given)[0].strip())
    if code is None:
        near = difflib.get_close_matches(given, _CODES, n=1)
        known = ", ".join(language.names.split()[0] for language in LANGUAGES.values())
        hint = f"; did you mean {near[0].title()}?" if near else ""
        raise ConfigurationError(f"the language {name!r} cannot be told{hint} Known are: {known}.")
    return code


def detect_language(texts: Any) -> Any:
    """Tell the language of each text.

    Args:
        texts: text column (pandas or cuDF).

    Returns:
        Text column of codes (keys of `LANGUAGES`) with the same index; null where the text is
        null, has no letters, or does not say enough.
    """
    if len(texts) == 0:
        return from_values([], like=texts, dtype="string")
    xp = array_module(texts)
    given = texts.fillna("")
    letters = {script: _count(given, pattern) for script, pattern in _SCRIPTS.items()}
    # A character of Chinese says as much as three letters. Japanese mixes both; kana tells.
    weights = {
        name: n * (3 if name in {"han", "kana", "hangul"} else 1) for name, n in letters.items()
    }
    japanese = letters["kana"] * 10 >= letters["han"] + letters["kana"]
    weights["kana"] = xp.where(japanese, weights["kana"] + weights["han"], 0)
    weights["han"] = xp.where(japanese, 0, weights["han"])
    total = sum(weights.values())

    # Two blanks between words: each has its own on either side, matches need not share one.
    words = replace_regex(given.str.lower(), r"[\s\d.,;:!?\"“”„«»()\[\]{}*_/’'‘…。，、|-]+", "  ")
    words = "  " + words + "  "
    best = xp.full(len(texts), -1)
    for script in _SCRIPTS:
        members = [c for c, language in LANGUAGES.items() if language.script == script]
        here = (weights[script] * 2 > total) & (weights[script] > 0)
        if len(members) == 1:
            best = xp.where(here, list(LANGUAGES).index(members[0]), best)
            continue
        best = xp.where(here, _by_words(words, members, xp), best)
    names = [*LANGUAGES, None]
    return from_values([names[i] for i in best.tolist()], like=texts, dtype="string")


def _count(texts: Any, pattern: str) -> Any:
    return texts.str.count(pattern).values.astype("int64")


def _by_words(words: Any, members: list[str], xp: Any) -> Any:
    """Give the number of the language whose words are most frequent, -1 where it is not clear."""
    first = xp.zeros(len(words), dtype="int64")
    second = xp.zeros(len(words), dtype="int64")
    best = xp.full(len(words), -1)
    for code in members:
        language = LANGUAGES[code]
        hits = _count(words, " (?:" + "|".join(language.words.split()) + ") ")
        if language.letters:
            hits = hits + _count(words, f"[{language.letters}]")
        better = hits > first
        second = xp.where(better, first, xp.maximum(second, hits))
        best = xp.where(better, list(LANGUAGES).index(code), best)
        first = xp.where(better, hits, first)
    number = _count(words, " [^ ]+ ")
    clear = (first >= 2) & (first * 4 >= second * 5) & (first * 12 >= number)
    return xp.where(clear, best, -1)
