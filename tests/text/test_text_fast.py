"""The fast counting engine: as exact as the reference, or not used."""

from __future__ import annotations

import logging
import pickle
import pydoc_data.topics
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tokenizers
from text_tiny_tokenizer import write_tokenizer
from tokenizers import (
    AddedToken,
    Regex,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from nemo_sdg.text import fast
from nemo_sdg.text.cut import cut_once
from nemo_sdg.text.engines import ExactEngine
from nemo_sdg.text.fast import FastEngine, is_failure, open_fast
from nemo_sdg.text.hard_strings import hard_strings, hard_strings_for, unassigned
from nemo_sdg.text.lines import LineTokens
from nemo_sdg.text.segment import split_pack
from nemo_sdg.text.spans import pieces_of
from nemo_sdg.text.tokens import Tokenizer, load_tokenizer

TOPICS = [text for _, text in sorted(pydoc_data.topics.topics.items())]

_CASES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
SPLITS = {
    "gpt2": None,
    "llama3": rf"{_CASES}|{_LEAD}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_TAIL}",
    "qwen2": rf"{_CASES}|{_LEAD}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_TAIL}",
    "tekken": rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_TAIL}",
    "o200k": rf"{_LEAD}{_UPPER}*{_LOWER}+{_CASES}?|{_LEAD}{_UPPER}+{_LOWER}*{_CASES}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_TAIL}",
}


def pre_tokenized(split):
    if split is None:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def train(split):
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenized(split)
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TOPICS[:8] + hard_strings(), trainer)
    return tokenizer


def encode_slowly(tokenizer, texts):
    return [len(tokenizer.encode(text, add_special_tokens=False)) if text else 0 for text in texts]


@pytest.fixture(scope="module")
def reference():
    return ExactEngine(train(SPLITS["llama3"]))


@pytest.fixture(params=[0, 500], ids=["by column", "one by one"])
def engine(reference, request, monkeypatch):
    pytest.importorskip("gigatoken", reason="gigatoken (extra fast) is not installed")
    monkeypatch.setattr(fast, "_FEW_TEXTS", request.param)
    return FastEngine(reference, reference.tokenizer.to_str())


# -------------------------------------------------------------------------------- hard strings


def test_hard_strings_are_the_same_ones_everywhere():
    strings = hard_strings()
    assert 200 <= len(strings) <= 300
    assert strings == hard_strings()
    program = (
        "import hashlib, nemo_sdg.text.hard_strings as h;"
        "print(hashlib.sha256('|'.join(h.hard_strings()).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            check=True, capture_output=True, env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in "12"
    }  # fmt: skip
    assert len(digests) == 1


def test_hard_strings_hold_what_is_hard():
    together = "".join(hard_strings())
    for part in ("don't", "WE'LL", "\r\n", "\x00", "\u200d", "語", "ไทย", "٣٤٥", "\u0301", "   "):
        assert part in together
    assert len({ord(char) >> 16 for char in together}) == 17  # every plane


def test_hard_strings_of_a_tokenizer_hold_its_added_tokens(reference):
    strings = hard_strings_for(reference.tokenizer)
    assert sum("<|end|>" in text for text in strings) >= 3
    assert len(set(strings)) > 20


# ---------------------------------------------------------------------------------- exactness


@pytest.mark.row("M10")
@pytest.mark.parametrize("split", SPLITS)
def test_it_is_exact_under_the_split_rules_of_the_model_families(split):
    pytest.importorskip("gigatoken", reason="gigatoken (extra fast) is not installed")
    tokenizer = train(SPLITS[split])
    engine = open_fast(ExactEngine(tokenizer), tokenizer.to_str())
    assert (engine.name, engine.notes) == ("gigatoken", ())
    rng = random.Random(4)
    characters = "".join(hard_strings())
    texts = TOPICS[:12] + [
        "".join(rng.choices(characters, k=rng.randint(1, 30))) for _ in range(500)
    ]
    counts = engine.count(pa.array(texts, pa.large_string()))
    assert counts.tolist() == encode_slowly(tokenizer, texts)
    assert counts.dtype == np.int64


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_columns_of_every_layout_count_alike(engine, reference, kind):
    texts = ["one two", None, "", "three\r\n", "語言", *TOPICS[:5], None]
    expected = encode_slowly(reference.tokenizer, texts)
    column = pa.array(texts, kind)
    assert engine.count(column).tolist() == expected
    assert engine.count(column.slice(2, 6)).tolist() == expected[2:8]
    assert engine.count(column.slice(4)).tolist() == expected[4:]
    chunks = pa.chunked_array([column.slice(0, 1), column.slice(1, 0), column.slice(1)])
    assert engine.count(chunks).tolist() == expected
    assert engine.count(texts).tolist() == expected
    assert engine.count(texts * 30).tolist() == expected * 30
    assert engine.count(pa.array([None, None], pa.string())).tolist() == [0, 0]
    for empty in ([], pa.array([], kind), pa.chunked_array([], kind)):
        assert engine.count(empty).shape == (0,)
    assert engine.name == "gigatoken"


@pytest.mark.parametrize("size", [1, 50, 4_000])
def test_slices_of_any_size_count_alike(engine, monkeypatch, size):
    texts = [None, "", *(TOPICS[0][i : i + i % 90] for i in range(600)), TOPICS[1], ""]
    expected = engine.count(pa.array(texts)).tolist()
    monkeypatch.setattr(fast, "_BATCH_BYTES", size)
    assert engine.count(pa.array(texts)).tolist() == expected


def test_starts_and_cuts_are_those_of_the_reference(engine, reference):
    rng = random.Random(5)
    characters = "".join(hard_strings())
    texts = [*TOPICS[:3], "", "".join(rng.choices(characters, k=3_000)), "🎉👩‍👩‍👧 " * 200]
    for text in texts:
        text = text or "x"
        starts = engine.starts(text)
        assert starts.dtype == np.int64
        assert starts.tolist() == reference.starts(text).tolist()
        assert cut_once(text, starts, 20) == cut_once(text, reference.starts(text), 20)


def test_starts_of_texts_that_are_normalised_come_from_the_reference():
    pytest.importorskip("gigatoken", reason="gigatoken (extra fast) is not installed")
    tokenizer = train(SPLITS["qwen2"])
    tokenizer.normalizer = normalizers.NFC()
    engine = open_fast(ExactEngine(tokenizer), tokenizer.to_str())
    assert engine.name == "gigatoken"
    text = "Cafe\u0301 and e\u0301 a\u030a. " * 20
    encoding = tokenizer.encode(text, add_special_tokens=False)
    assert engine.count([text]).tolist() == [len(encoding)]
    assert engine.starts(text).tolist() == [start for start, _ in encoding.offsets]


def test_a_long_row_is_counted_whole(engine, reference):
    long = "\n\n".join(TOPICS) * 3
    assert len(long) > 1_000_000
    total, single = engine.count([long, "e" * 300_000]).tolist()
    assert total == len(reference.tokenizer.encode_batch_fast([long], add_special_tokens=False)[0])
    assert single == len(reference.tokenizer.encode("e" * 300_000, add_special_tokens=False))


def test_threads_share_it(engine):
    column = pa.array(TOPICS[:20], pa.large_string())
    expected = engine.count(column).tolist()
    with ThreadPoolExecutor(8) as pool:
        columns = [pool.submit(engine.count, column) for _ in range(24)]
        singles = [pool.submit(engine.count, TOPICS[:20]) for _ in range(24)]
        assert all(future.result().tolist() == expected for future in columns + singles)


def test_the_same_segments_with_it_and_without(tmp_path, monkeypatch):
    pytest.importorskip("gigatoken", reason="gigatoken (extra fast) is not installed")
    texts = pd.Series([*TOPICS[:10], " ".join(TOPICS[10:14]).replace("\n", " "), None, ""])
    quick = load_tokenizer(write_tokenizer(tmp_path / "quick"))
    monkeypatch.setattr("nemo_sdg.text.tokens.open_fast", lambda engine, content: engine)
    slow = load_tokenizer(write_tokenizer(tmp_path / "slow"))
    assert (quick.engine, slow.engine) == ("gigatoken", "tokenizers")
    ours, theirs = (split_pack(texts, one, max_tokens=64) for one in (quick, slow))
    assert ours.text.tolist() == theirs.text.tolist()
    assert ours.tokens.tolist() == theirs.tokens.tolist()


# -------------------------------------------------------------------------------- switching off


class Wrong:
    """Counts as gigatoken does, but for texts with a digit beyond ASCII."""

    def __init__(self, backend):
        self._backend = backend

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def encode(self, text):
        ids = self._backend.encode(text)
        data = text if isinstance(text, bytes) else text.encode()
        return ids[:-1] if "٣".encode() in data else ids


def panic(*_, **__):
    """Do as pyo3 does: an exception that is no `Exception`."""
    raise type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})("oh")


def raises(error):
    def function(*_, **__):
        raise error

    return function


def test_one_difference_switches_it_off(reference, engine, monkeypatch, caplog):
    monkeypatch.setattr(reference, "notes", ())
    assert engine.differences(hard_strings()) == []
    engine._backend = Wrong(engine._backend)
    assert engine.differences(hard_strings())
    monkeypatch.setattr(fast, "FastEngine", lambda *_: engine)
    with caplog.at_level(logging.WARNING):
        assert open_fast(reference, "") is reference
    [note] = reference.notes
    assert "gigatoken is not used: it cuts" in note and "test strings" in note
    assert [record.getMessage() for record in caplog.records] == [note]


@pytest.mark.parametrize("failure", [panic, raises(RuntimeError("no")), raises(ValueError("no"))])
def test_what_fails_at_the_start_is_not_used(reference, monkeypatch, failure):
    class Failing:
        differences = failure

    for stand_in in (failure, lambda *_: Failing()):
        monkeypatch.setattr(reference, "notes", ())
        monkeypatch.setattr(fast, "FastEngine", stand_in)
        assert open_fast(reference, "") is reference
        assert len(reference.notes) == 1


@pytest.mark.parametrize("failure", [panic, raises(RuntimeError("no"))], ids=["panic", "error"])
@pytest.mark.parametrize("form", [list, pa.array])
def test_a_failing_batch_is_counted_by_the_reference(
    engine, reference, monkeypatch, caplog, failure, form
):
    texts = form(["one two", None, "three"])

    class Failing:
        encode = encode_batch = failure

    engine._backend = Failing()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert engine.count(texts).tolist() == reference.count(texts).tolist()
    assert engine.name == "tokenizers"
    assert len(engine.notes) == len(caplog.records) == 1
    assert engine.starts("one two").tolist() == reference.starts("one two").tolist()


def test_a_failing_start_comes_from_the_reference(engine, reference):
    class Failing:
        encode = panic

    engine._backend = Failing()
    assert engine.starts("one two").tolist() == reference.starts("one two").tolist()
    assert engine.name == "tokenizers"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), MemoryError()])
def test_an_interrupt_is_no_failure_of_the_library(engine, error):
    class Stopped:
        encode = encode_batch = raises(error)

    engine._backend = Stopped()
    assert not is_failure(error)
    with pytest.raises(type(error)):
        engine.count(["x"])
    with pytest.raises(type(error)):
        engine.starts("x")
    assert engine.name == "gigatoken"


def test_what_is_no_text_is_refused_and_switches_nothing_off(engine, reference):
    for texts in (["a\ud800"], ["a\ud800"] * 200, [3]):
        with pytest.raises(TypeError):
            reference.count(texts)
        with pytest.raises(TypeError):
            engine.count(texts)
    assert engine.name == "gigatoken"


def test_a_real_panic_is_caught(engine, reference, capfd):
    """A column with a null, which gigatoken cannot bear, as it would come without `_slices`."""
    column = pa.array(["a", None], pa.large_string())
    with pytest.raises(BaseException) as caught:
        engine._backend.encode_batch(engine._from_arrow(column), parallel=False)
    capfd.readouterr()
    assert is_failure(caught.value) and not isinstance(caught.value, Exception)
    assert engine.count(column).tolist() == reference.count(column).tolist()


def test_other_kinds_of_tokenizer_stay_with_the_reference():
    wordpiece = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    reference = ExactEngine(wordpiece)
    assert open_fast(reference, wordpiece.to_str()) is reference
    assert len(reference.notes) == 1


@pytest.mark.parametrize("flags", [{"lstrip": True}, {"rstrip": True}, {"single_word": True}])
def test_added_tokens_that_swallow_blanks_are_exact_or_refused(flags):
    pytest.importorskip("gigatoken", reason="gigatoken (extra fast) is not installed")
    tokenizer = train(SPLITS["llama3"])
    tokenizer.add_tokens([AddedToken("<mark>", **flags)])
    engine = open_fast(ExactEngine(tokenizer), tokenizer.to_str())
    texts = ["a <mark> b", "a<mark>b", " <mark>\n", "<mark><mark>", "a  <mark>  b"]
    assert engine.count(texts).tolist() == encode_slowly(tokenizer, texts)
    for text in texts:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        assert engine.starts(text).tolist() == [start for start, _ in encoding.offsets]


def among_plain_ones(split, token):
    """Put an added token behind a dozen plain ones, and four behind it."""
    tokenizer = train(SPLITS[split])
    tokenizer.add_special_tokens([f"<|r{number}|>" for number in range(12)])
    tokenizer.add_tokens([token])
    tokenizer.add_special_tokens([f"<|s{number}|>" for number in range(4)])
    return tokenizer


def opened(tokenizer):
    pytest.importorskip("gigatoken", reason="gigatoken (extra fast) is not installed")
    return open_fast(ExactEngine(tokenizer), tokenizer.to_str())


@pytest.mark.parametrize(
    ("split", "token", "text"),
    [
        ("llama3", AddedToken("GmbH", single_word=True), "StiftungsGmbHs und GmbHG"),
        ("llama3", AddedToken(" 's  ", rstrip=True, normalized=True), " 's   's  "),
        ("qwen2", AddedToken("\n1a", lstrip=True, rstrip=True, normalized=False), "\n1a\n1a"),
    ],
    ids=["whole words", "blanks around", "a newline before"],
)
def test_an_odd_added_token_among_many_is_exact_or_refused(split, token, text):
    tokenizer = among_plain_ones(split, token)
    engine = opened(tokenizer)
    texts = [text, f"a{text}b", f"x {token.content} y{token.content}{token.content}"]
    assert engine.count(texts).tolist() == encode_slowly(tokenizer, texts)
    assert engine.name == "gigatoken" or len(engine.notes) == 1
    if token.single_word:
        assert "single_word" in engine.notes[0]


@pytest.mark.parametrize("seed", range(3))
def test_odd_added_tokens_of_any_make_are_exact_or_refused(seed):
    rng = random.Random(seed)
    parts = [
        "a",
        "b",
        "<",
        ">",
        " ",
        "  ",
        "\n",
        "é",
        "e\u0301",
        "語",
        "the",
        " the",
        "1",
        "'s",
        ".",
    ]
    for _ in range(8):
        flags = {flag: rng.random() < 0.4 for flag in ("lstrip", "rstrip", "normalized")}
        content = "".join(rng.choices(parts, k=rng.randint(1, 4)))
        tokenizer = among_plain_ones("qwen2", AddedToken(content, **flags))
        if rng.random() < 0.5:
            tokenizer.normalizer = normalizers.NFC()
        engine = opened(tokenizer)
        mixed = [*parts, *[content] * 4]
        texts = ["".join(rng.choices(mixed, k=rng.randint(1, 12))) for _ in range(200)]
        assert engine.count(texts).tolist() == encode_slowly(tokenizer, texts), (content, flags)


@pytest.mark.parametrize("normalized", [True, False])
def test_an_added_token_that_a_mark_changes_is_exact_or_refused(normalized):
    tokenizer = among_plain_ones("qwen2", AddedToken("<x>", normalized=normalized))
    tokenizer.normalizer = normalizers.NFC()
    engine = opened(tokenizer)
    texts = ["a<x>\u0338b", "<x>\u0301 <x>"]
    assert engine.count(texts).tolist() == encode_slowly(tokenizer, texts)
    assert normalized or engine.name == "gigatoken"


def test_added_tokens_that_models_have_stay_with_the_fast_engine():
    blanks = train(None)
    blanks.add_tokens([AddedToken(" " * n, normalized=True) for n in range(31, 1, -1)])
    blanks.add_tokens([AddedToken("\t" * n, normalized=True) for n in range(9, 1, -1)])
    plain = train(SPLITS["llama3"])
    plain.add_special_tokens([f"<|reserved_special_token_{number}|>" for number in range(250)])
    mask = among_plain_ones("llama3", AddedToken("<mask>", lstrip=True, normalized=False))
    for tokenizer in (blanks, plain, mask):
        engine = opened(tokenizer)
        assert (engine.name, engine.notes) == ("gigatoken", ())
    assert len(hard_strings_for(plain)) < 100  # a few of the reserved ones stand for all


def test_every_kind_of_odd_added_token_is_tried_but_not_every_token():
    tokenizer = train(SPLITS["llama3"])
    tokenizer.add_tokens([f"word{number}" for number in range(400)])
    tokenizer.add_tokens([AddedToken("late", rstrip=True), AddedToken("two words")])
    strings = hard_strings_for(tokenizer)
    assert {"latelate", "two words two words"} <= set(strings)
    assert len(strings) < 8_000


@pytest.mark.parametrize("trims", [True, False])
def test_offsets_that_are_only_trimmed_are_no_difference(trims):
    tokenizer = train(SPLITS["llama3"])
    text = "Hello there,   you\n two " * 20
    untrimmed = [start for start, _ in tokenizer.encode(text, add_special_tokens=False).offsets]
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=trims),
            processors.TemplateProcessing(
                single="<|begin|> $A",
                special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))],
            ),
        ]
    )
    reference = ExactEngine(tokenizer)
    engine = open_fast(reference, tokenizer.to_str())
    assert reference.starts(text).tolist() == untrimmed
    assert reference.count([text]).tolist() == [len(untrimmed)]
    pytest.importorskip("gigatoken", reason="gigatoken (extra fast) is not installed")
    assert (engine.name, engine.notes) == ("gigatoken", ())
    assert engine.starts(text).tolist() == untrimmed
    assert engine.count([text]).tolist() == [len(untrimmed)]


def test_without_the_library_everything_works_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    monkeypatch.setitem(sys.modules, "awkward", None)
    tokenizer = load_tokenizer(write_tokenizer(tmp_path))
    assert tokenizer.engine == "tokenizers"
    assert "not installed" in " ".join(tokenizer.notes)
    assert tokenizer.count(["Hello there", None])[0] > 0


def test_the_engine_is_made_anew_in_the_other_process(tmp_path):
    pytest.importorskip("gigatoken", reason="gigatoken (extra fast) is not installed")
    tokenizer = load_tokenizer(write_tokenizer(tmp_path))
    packed = pickle.dumps(tokenizer)
    assert b"gigatoken" not in packed and len(packed) < 1_000
    program = (
        "import pickle, sys;"
        "t = pickle.load(sys.stdin.buffer); print(t.engine, *t.count(['Hello there']))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], input=packed, check=True, capture_output=True
    )
    assert answer.stdout.decode().split() == ["gigatoken", str(tokenizer.count(["Hello there"])[0])]


def test_a_packed_segment_may_be_longer_than_its_sum():
    """Why segments are counted again: a separator may break up the token that it follows."""
    merges = [("=", "Ċ"), ("=", "="), ("==", "==")]
    vocabulary = ["=", "Ċ", "a", *("".join(merge) for merge in merges)]
    tokenizer = tokenizers.Tokenizer(
        models.BPE({token: number for number, token in enumerate(vocabulary)}, merges)
    )
    tokenizer.pre_tokenizer = pre_tokenized(SPLITS["llama3"])
    assert encode_slowly(tokenizer, ["====", "\n", "a"]) == [1, 1, 1]
    assert encode_slowly(tokenizer, ["====\na"]) == [4]


# ---------------------------------------------------------------------- characters of all ages


def byte_pairs(split):
    """Make a tokenizer in which every byte merges with what stands beside it in `in_context`.

    A boundary between two pre-tokens thus shows in the tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", byte) for byte in alphabet] + [(byte, "1") for byte in alphabet]
    merges += [(byte, "B") for byte in alphabet] + [("'", byte) for byte in alphabet]
    vocabulary = dict.fromkeys([*alphabet, *("".join(merge) for merge in merges)])
    tokenizer = tokenizers.Tokenizer(
        models.BPE({token: number for number, token in enumerate(vocabulary)}, merges)
    )
    tokenizer.pre_tokenizer = pre_tokenized(split)
    return tokenizer


def in_context(code):
    return f"a{chr(code)}1 {chr(code)}{chr(code)}B'{chr(code)}"


YOUNG = [0x0C5C, 0xA7CE, 0x10940, 0x11DE0, 0x187F8, 0x18D15, 0x1E6C0, 0x2B73A, 0x323B0, 0x33479]


@pytest.mark.parametrize("few", [0, 500])
@pytest.mark.parametrize("form", [list, pa.array])
def test_characters_on_which_the_tables_differ_go_to_the_reference(form, few, monkeypatch):
    monkeypatch.setattr(fast, "_FEW_TEXTS", few)
    pytest.importorskip("gigatoken", reason="gigatoken (extra fast) is not installed")
    tokenizer = byte_pairs(SPLITS["tekken"])
    engine = FastEngine(ExactEngine(tokenizer), tokenizer.to_str())
    texts = ["plain", *map(in_context, YOUNG), "é", None, "語" + chr(0x1E6C0), ""]

    def check(count):
        assert count(form(texts)).tolist() == encode_slowly(tokenizer, texts)

    def counts_it_all(texts):  # as the engine would if it trusted the library with every character
        known = [text or "" for text in pa.array(texts).to_pylist()]
        return np.array([len(engine._backend.encode(text)) for text in known])

    check(engine.count)
    for text in texts:
        if text:
            assert engine.starts(text).tolist() == ExactEngine(tokenizer).starts(text).tolist()
    if [len(engine._backend.encode(in_context(code))) for code in YOUNG] != encode_slowly(
        tokenizer, map(in_context, YOUNG)
    ):
        with pytest.raises(AssertionError):
            check(counts_it_all)
    assert engine.name == "gigatoken"


def test_characters_that_python_does_not_know_are_found_in_any_row():
    rng = random.Random(6)
    known = np.flatnonzero(~unassigned()).tolist()
    known = [chr(code) for code in known if not 0xD800 <= code < 0xE000]
    missing = [chr(code) for code in np.flatnonzero(unassigned()).tolist()]
    texts, expected = [], []
    for row in range(400):
        text = "".join(rng.choices(known, k=rng.randint(0, 12)))
        if row % 7 == 0:
            at = rng.randint(0, len(text))
            text = text[:at] + rng.choice(missing) + text[at:]
            expected.append(row)
        texts.append(text)
    column = pa.array(["x", *texts, "y"], pa.large_string()).slice(1, 400)
    assert fast._young_rows(column).tolist() == expected
    assert [row for row, text in enumerate(texts) if fast._is_young(text)] == expected
    assert fast._young_rows(pa.array(["", ""], pa.large_string())).tolist() == []


@pytest.mark.slow
@pytest.mark.row("M10")
@pytest.mark.parametrize("split", ["llama3", "tekken"])  # one asks for letters, one for case
def test_every_code_point_is_exact(split):
    pytest.importorskip("gigatoken", reason="gigatoken (extra fast) is not installed")
    tokenizer = byte_pairs(SPLITS[split])
    engine = FastEngine(ExactEngine(tokenizer), tokenizer.to_str())
    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    known = [in_context(code) for code in codes if not unassigned()[code]]
    assert engine.differences(known) == []
    others = pa.array([in_context(code) for code in codes if unassigned()[code]][::37])
    assert engine.count(others).tolist() == encode_slowly(tokenizer, others.to_pylist())


# -------------------------------------------------------------------------------- lines of texts

LINE_ENDS = [
    *"\n\n\n\n\n\n", *"B1B1", "a/", "\n/B", ".\n/1", "\n\n/B",
    "\r\n", "\r", "/", "//", ".", ")", ").", "...", '"', "'", "'s", "'S", " ",
    "  ", "\t", "\xa0", "\u3000", "\u2028", "\x0b", "\x00", "_", "a", "Z", "7", "123", "Words",
    " and", "é", "\u0301", "語", "ſ", "<|end|>", "<|end", "|>", "->", "\\", "{", "}", "\n    ",
    "\n\t", "да", "слово.", "«", "»", "。", "…", "है", "\u093f", "١", "०", "²", "ǅ", "한국", "🎉",
    "\u200d", "\u2003", "ไทย", "נ", "Ελ",
]  # fmt: skip


def test_unknown_characters_are_found_by_their_bytes():
    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    column = pa.array([f"a{chr(code)}" for code in codes], pa.large_string())
    unknown = unassigned()[codes]
    assert fast._young_rows(column).tolist() == np.flatnonzero(unknown).tolist()
    odd = column.take(pa.array([5, 0x41, *np.flatnonzero(unknown)[::5000]]))
    assert fast._young_rows(odd.slice(1)).tolist() == list(range(1, len(odd) - 1))


def lines_of(column):
    return pieces_of(pd.Series(column, dtype=pd.ArrowDtype(column.type)), "\n")[0]


def line_texts(seed, number):
    rng = random.Random(seed)
    return ["".join(rng.choices(LINE_ENDS, k=rng.randint(0, 14))) for _ in range(number)]


@pytest.mark.row("M10")
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("make", ["train", "byte_pairs"])  # the second shows where words end
def test_lines_have_in_their_texts_the_tokens_that_they_have_by_themselves(
    split, make, monkeypatch
):
    pytest.importorskip("gigatoken", reason="gigatoken (extra fast) is not installed")
    reference = ExactEngine({"train": train, "byte_pairs": byte_pairs}[make](SPLITS[split]))
    engine = FastEngine(reference, reference.tokenizer.to_str())
    monkeypatch.setattr(fast.Lines, "are_mostly_told", True)
    monkeypatch.setattr(fast, "_BATCH_BYTES", 3000)
    texts = ["before\n", *line_texts(1, 1500), *TOPICS[:2], "young \u1c89\nrow", "", "\nbehind"]
    column = pa.array(texts, pa.large_string()).slice(1, len(texts) - 2)
    per_text = [text.split("\n") for text in column.to_pylist()]
    lines = [line for some in per_text for line in some]
    counts, told = engine.count_lines(lines_of(column))
    assert counts.tolist() == reference.count(lines).tolist()
    # Every run of lines within a text whose tokens are said to be known.
    runs, expected = [], []
    begin = 0
    for some in per_text:
        for i in range(len(some)):
            for j in range(i if some[i] else i + 1, min(i + 4, len(some))):
                known, tokens = told.of_runs(np.array([begin + i]), np.array([begin + j]))
                if known[0]:
                    runs.append("\n".join(some[i : j + 1]))
                    expected.append(int(tokens[0]))
        begin += len(some)
    assert reference.count(runs).tolist() == expected
    assert len(runs) > 2000
    assert sum(run[:1] == "\n" for run in runs) > 100 < sum(run[-1:] == "\n" for run in runs)


@pytest.mark.parametrize("split", ["llama3", "tekken"])
def test_lines_of_texts_with_characters_on_which_the_tables_differ_are_not_told(split, monkeypatch):
    pytest.importorskip("gigatoken", reason="gigatoken (extra fast) is not installed")
    monkeypatch.setattr(fast.Lines, "are_mostly_told", True)
    reference = ExactEngine(byte_pairs(SPLITS[split]))
    engine = FastEngine(reference, reference.tokenizer.to_str())
    texts = [f"one two\n{in_context(code)} x\nthree" for code in YOUNG]
    counts, told = engine.count_lines(lines_of(pa.array(["a\nb", *texts], pa.large_string())))
    lines = [line for text in ["a\nb", *texts] for line in text.split("\n")]
    assert counts.tolist() == reference.count(lines).tolist()
    assert told.ends.tolist() == [True] * 2 + [False] * 3 * len(texts)


def test_what_is_known_of_lines_holds_where_one_was_cut_no_longer():
    begins = np.array([True, True, True])
    told = LineTokens(np.array([0, 5, 9]), np.array([4, 8, 12]), begins, begins)
    pieces = told.of_pieces(np.array([0, 1, 1, 2]))
    assert pieces.begins.tolist() == pieces.ends.tolist() == [True, False, False, True]
    known, tokens = pieces.of_runs(np.array([0, 0]), np.array([3, 2]))
    assert known.tolist() == [True, False]
    assert tokens[0] == 12


def odd_ones(split="llama3"):
    """Make tokenizers whose lines cannot be told from their texts, each for a reason of its own."""
    normalized = train(SPLITS[split])
    normalized.normalizer = normalizers.NFC()
    stripping = train(SPLITS[split])
    stripping.add_special_tokens([AddedToken("<pad>", lstrip=True)])
    breaking = train(SPLITS[split])
    breaking.add_special_tokens(["<a>\n"])
    prefixed = train(None)
    prefixed.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return [normalized, stripping, breaking, prefixed]


def test_other_tokenizers_count_every_line_by_itself(monkeypatch):
    pytest.importorskip("gigatoken", reason="gigatoken (extra fast) is not installed")
    monkeypatch.setattr(fast.Lines, "are_mostly_told", True)
    column = pa.array(["one\ntwo <pad>\n three<a>\n"], pa.large_string())
    lines = pa.array(column[0].as_py().split("\n"), pa.large_string())
    for tokenizer in odd_ones():
        engine = FastEngine(ExactEngine(tokenizer), tokenizer.to_str())
        counts, told = engine.count_lines(lines_of(column))
        assert told is None
        assert counts.tolist() == encode_slowly(tokenizer, lines.to_pylist())


def test_segments_are_the_same_whichever_engine_counts(reference, engine):
    texts = pd.Series([*TOPICS[:30], None, "", *line_texts(2, 200)], dtype="str")
    quick, slow = (
        Tokenizer(one, name="", fingerprint="", chat=None, estimated=False, origin=("path", ""))
        for one in (engine, reference)
    )
    asked = []
    for budget in (16, 200):
        ours, theirs = (split_pack(texts, one, max_tokens=budget) for one in (quick, slow))
        pd.testing.assert_series_equal(ours.text, theirs.text)
        for name in ("parent", "index", "count", "tokens", "continues"):
            assert getattr(ours, name).tolist() == getattr(theirs, name).tolist()

    def count(rows):
        asked.append(sum(map(len, to_strings(rows))))
        return reference.count(rows)

    engine.count = count
    split_pack(texts, quick, max_tokens=200)
    assert sum(asked) < texts.str.len().sum() / 3  # the rest was read off the texts' tokens


def to_strings(rows):
    return [row for row in (rows if isinstance(rows, list) else rows.to_pylist()) if row]


@pytest.mark.parametrize(("tokens", "kind"), [([0] * 7, np.int32), ([0, 1, 1, 0, 1], np.int64)])
def test_places_take_four_bytes_as_long_as_they_fit(tokens, kind, monkeypatch):
    monkeypatch.setattr(fast, "_SOME_TOKENS", 2)
    engine = FastEngine.__new__(FastEngine)
    engine.__dict__["_sizes"] = np.array([3, 1 << 30], np.int32)
    upto = engine._bytes_upto(np.array(tokens))
    assert upto.dtype == kind
    assert upto.tolist() == [
        sum((3, 1 << 30)[t] for t in tokens[:n]) for n in range(len(tokens) + 1)
    ]
