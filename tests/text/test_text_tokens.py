"""Counting, chat rendering, cutting and finding the tokenizer."""

from __future__ import annotations

import json
import pickle
import pydoc_data.topics
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tokenizers
from text_tiny_tokenizer import write_tokenizer

from nemo_sdg.errors import DataError, TokenizerError
from nemo_sdg.text import cut, engines, tokens
from nemo_sdg.text.hard_strings import hard_strings
from nemo_sdg.text.tokens import load_tokenizer

CHAT = [{"role": "system", "content": "Be exact."}, {"role": "user", "content": "Hello there"}]
PROSE = " ".join(re.sub(r"\s+", " ", text) for text in pydoc_data.topics.topics.values())
CHINESE = "语言模型可以改写文章。这样得到的文本更清楚！是吗？我们来看一看" * 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def reference(folder):
    plain = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain.no_truncation()
    plain.no_padding()
    return plain


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


def count_remotely(texts):
    """A server's tokenize route: three characters are one token."""
    return [-(-len(text) // 3) for text in texts]


# ------------------------------------------------------------------------------------ counting


def test_counts_equal_the_plain_tokenizer(tokenizer, reference):
    texts = [
        "",
        "a",
        "Hello  there,\n\n world",
        "naïve 語言 🎉",
        "nul\x00 in it",
        "<|end|>",
        "x" * 500,
    ]
    expected = [len(reference.encode(text, add_special_tokens=False)) for text in texts]
    counts = tokenizer.count(texts)
    assert counts.dtype == np.int64
    assert counts.tolist() == expected
    assert expected[5] == 1 and expected[-1] > 8


def test_null_counts_zero_in_lists_and_arrow(tokenizer):
    texts = ["one two", None, "", "three"]
    expected = tokenizer.count(["one two"])[0], tokenizer.count(["three"])[0]
    for form in (texts, pa.array(texts), pa.chunked_array([texts[:1], texts[1:]]), pa.array(texts)):
        assert tokenizer.count(form).tolist() == [expected[0], 0, 0, expected[1]]
    assert tokenizer.count([]).shape == (0,)


@pytest.mark.parametrize("dtype", ["str", object, pd.ArrowDtype(pa.string())])
def test_count_column_keeps_the_index(tokenizer, dtype):
    column = pd.Series(["one two", None, "x"], index=[5, 5, 9], dtype=dtype, name="text")
    counted = tokenizer.count_column(column)
    assert counted.dtype == np.int64
    assert counted.index.tolist() == [5, 5, 9]
    assert counted.tolist() == tokenizer.count(["one two", "", "x"]).tolist()


def test_batches_of_any_size_count_alike(tokenizer, monkeypatch):
    texts = [PROSE[i : i + 37 * (i % 5)] for i in range(0, 20_000, 97)]
    expected = tokenizer.count(texts).tolist()
    monkeypatch.setattr(engines, "_BATCH_CHARS", 500)
    assert tokenizer.count(texts).tolist() == expected


@pytest.mark.parametrize(
    "text",
    [PROSE[:60_000], CHINESE, "🎉 and " * 4_000],
    ids=["en", "zh", "emoji"],
)
def test_long_texts_are_counted_exactly_in_windows(reference, monkeypatch, text):
    monkeypatch.setattr(engines, "_BATCH_CHARS", 5_000)
    monkeypatch.setattr(engines, "_OVERLAP_CHARS", 400)
    exact = len(reference.encode(text, add_special_tokens=False))
    assert engines.ExactEngine(reference).count(["a", text, "b"]).tolist()[1] == exact


@pytest.mark.parametrize("before", ["a", "ab", "abc"])
def test_groups_of_digits_are_in_step_from_window_to_window(monkeypatch, before):
    bundled = tokenizers.Tokenizer.from_file(str(tokens._BUNDLED_FOLDER / "tokenizer.json"))
    monkeypatch.setattr(engines, "_BATCH_CHARS", 5_000)
    monkeypatch.setattr(engines, "_OVERLAP_CHARS", 400)
    text = before + "1234567890" * 3_000
    exact = len(bundled.encode(text, add_special_tokens=False))
    assert engines.ExactEngine(bundled).count([text])[0] == exact


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["a", "\ud800b"], "row 1 is not Unicode"),
        (["a", None, 3], "row 2 holds int"),
        (pa.array([1, 2]), "the column holds int64"),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(tokenizer, texts, told):
    with pytest.raises(DataError, match=told):
        tokenizer.count(texts)


def test_no_call_encodes_more_than_one_window_of_a_long_text(reference, monkeypatch):
    sizes = []
    plain = engines.ExactEngine.tokens
    monkeypatch.setattr(engines, "_BATCH_CHARS", 10_000)
    monkeypatch.setattr(
        engines.ExactEngine,
        "tokens",
        lambda self, text: sizes.append(len(text)) or plain(self, text),
    )
    engines.ExactEngine(reference).count([PROSE[:100_000]])
    assert len(sizes) > 10 and max(sizes) <= 10_000


def test_an_endless_word_is_counted_within_a_token_per_window(reference, monkeypatch):
    monkeypatch.setattr(engines, "_BATCH_CHARS", 5_000)
    monkeypatch.setattr(engines, "_OVERLAP_CHARS", 400)
    word = "e" * 30_001
    exact = len(reference.encode(word, add_special_tokens=False))
    assert abs(int(engines.ExactEngine(reference).count([word])[0]) - exact) <= 7


def test_threads_share_one_tokenizer(tokenizer):
    texts = [PROSE[i : i + 200] for i in range(0, 8_000, 200)]
    expected = tokenizer.count(texts).tolist()
    with ThreadPoolExecutor(8) as pool:
        for counts in pool.map(lambda _: tokenizer.count(texts).tolist(), range(16)):
            assert counts == expected


# ------------------------------------------------------------------------------ chat, overhead


def test_chat_is_rendered_with_the_answer_header_and_one_begin_mark(tokenizer, reference):
    rendered = tokenizer.render(CHAT)
    assert rendered == (
        "<|bos|><|role|>system\nBe exact.<|end|>\n<|role|>user\nHello there<|end|>\n"
        "<|role|>assistant\n"
    )
    assert tokenizer.chat_tokens(CHAT) == len(reference.encode(rendered, add_special_tokens=False))
    assert tokenizer.has_chat_template


def test_chat_rendering_equals_transformers(folder, tokenizer):
    transformers = pytest.importorskip("transformers")
    auto = transformers.PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    rendered = auto.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert tokenizer.render(CHAT) == rendered
    ids = auto(rendered, add_special_tokens=False, truncation=False, padding=False)["input_ids"]
    assert tokenizer.chat_tokens(CHAT) == len(ids)


def test_templates_have_the_names_they_expect(tmp_path):
    template = (
        "{%- set ns = namespace(n=0) -%}{%- for m in messages -%}{%- if loop.index > 1 -%}"
        "{%- break -%}{%- endif -%}{%- set ns.n = ns.n + 1 -%}{{ m | tojson }}{%- endfor -%}"
        "{{ ns.n }}{{ strftime_now('%Y')|length }}{% generation %}G{% endgeneration %}"
    )
    folder = write_tokenizer(tmp_path, vocab_size=300, template=template)
    rendered = load_tokenizer(folder).render([{"role": "user", "content": "<é>"}, CHAT[1]])
    assert rendered == '{"role": "user", "content": "<é>"}14G'


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('System role not supported') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% set ns = namespace() %}{% set ns.__x__ = 1 %}",
        "{% for m in messages %}",
    ],
    ids=["refuses", "escapes", "namespace", "syntax"],
)
def test_a_template_that_refuses_or_reaches_out_is_one_plain_error(tmp_path, template):
    folder = write_tokenizer(tmp_path, vocab_size=300, template=template)
    with pytest.raises(TokenizerError, match="chat template cannot render"):
        load_tokenizer(folder).chat_tokens(CHAT)


def test_template_file_and_named_templates(tmp_path):
    folder = write_tokenizer(tmp_path, vocab_size=300, template=None)
    plain = load_tokenizer(folder)
    assert not plain.has_chat_template
    assert plain.render(CHAT) == "Be exact.\n\nHello there"
    named = [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert load_tokenizer(folder).render(CHAT) == "D"
    (folder / "chat_template.jinja").write_text("J {{ messages|length }}")
    jinja = load_tokenizer(folder)
    assert jinja.render(CHAT) == "J 2"
    assert jinja.fingerprint != plain.fingerprint


PROMPT = "Rewrite the text below.\n\nText: {document}\n\nAnswer with the new text only."


def _prompt(text):
    return [CHAT[0], {"role": "user", "content": PROMPT.replace("{document}", text)}]


@pytest.mark.fault(39)
@pytest.mark.fault(73)
def test_overhead_and_text_add_up_to_the_prompt(tokenizer, reference):
    text = "A short document about clocks."

    def check(overhead):
        prompt = reference.encode(tokenizer.render(_prompt(text)), add_special_tokens=False)
        body = reference.encode(text, add_special_tokens=False)
        assert overhead(text) + len(body) == len(prompt)

    def wrong_placeholder(text):  # removes {text} where the template says {document}; no roles
        joined = CHAT[0]["content"] + "\n" + PROMPT.replace("{text}", "")
        return len(reference.encode(joined, add_special_tokens=False))

    def length_of_a_mapping(text):  # what a template call of transformers 5 gives back
        return len({"input_ids": [1, 2, 3], "attention_mask": [1, 1, 1]})

    check(lambda text: tokenizer.overhead(_prompt(text), text))
    for faulty in (wrong_placeholder, length_of_a_mapping):
        with pytest.raises(AssertionError):
            check(faulty)


def test_the_planning_overhead_is_near_the_exact_one(tokenizer):
    planned = tokenizer.overhead(_prompt(""))
    for text in (PROSE[:90], CHINESE[:90], "x", "  indented", "ends with a blank "):
        assert abs(tokenizer.overhead(_prompt(text), text) - planned) <= 2


def test_overhead_wants_the_text_in_the_messages(tokenizer):
    with pytest.raises(ValueError, match="in none of the messages"):
        tokenizer.overhead([{"role": "user", "content": PROMPT}], "A short document")


# ------------------------------------------------------------------------------------- cutting


@pytest.mark.row("M10")
@pytest.mark.fault(74)
def test_two_megabytes_without_newline_lose_nothing(tokenizer, reference):
    line = (PROSE * 5)[:2_000_000]
    assert len(line) == 2_000_000 and "\n" not in line
    budget = 512

    def check(cut):
        pieces = cut(line)
        assert "".join(pieces) == line
        assert (
            max(map(len, reference.encode_batch_fast(pieces, add_special_tokens=False))) <= budget
        )

    def drops_long_lines(text):
        return [part for part in text.split("\n") if len(part) <= budget] or [""]

    check(lambda text: tokenizer.cut(text, budget))
    with pytest.raises(AssertionError):
        check(drops_long_lines)


@pytest.mark.parametrize(
    "text",
    [
        PROSE[:20_000],
        CHINESE,
        "🎉👩‍👩‍👧 " * 700,
        "e" * 5_000,
        "\x00" * 300,
        " " * 4_000,
        "a\u0301" * 900,
    ],
    ids=["en", "zh", "emoji", "word", "nul", "blank", "marks"],
)
@pytest.mark.parametrize("budget", [5, 31, 400])
def test_pieces_are_the_text_and_fit(tokenizer, text, budget):
    pieces = tokenizer.cut(text, budget)
    assert "".join(pieces) == text
    assert all(pieces)
    assert tokenizer.count(pieces).max() <= budget


def test_cuts_prefer_sentences_then_words(tokenizer):
    sentences = tokenizer.cut("The clock is old. It still runs well! Does it? " * 60, 100)
    assert all(piece.rstrip().endswith((".", "!", "?")) for piece in sentences)
    for piece in tokenizer.cut(CHINESE, 100)[:-1]:
        assert piece[-1] in "。！？"
    words = "alpha beta gamma delta " * 200
    cut = tokenizer.cut(words, 50)
    assert [word for piece in cut for word in piece.split()] == words.split()
    assert tokenizer.count(cut[:-1]).min() > 40


def test_a_text_that_fits_stays_whole_and_one_character_may_stand_over(tokenizer):
    assert tokenizer.cut("Fits.", 50) == ["Fits."]
    assert tokenizer.cut("", 1) == [""]
    assert tokenizer.count(["🎉"])[0] > 1
    assert tokenizer.cut("🎉🎉x", 1) == ["🎉", "🎉", "x"]
    with pytest.raises(ValueError, match="at least 1"):
        tokenizer.cut("x", 0)


def test_words_end_where_the_regular_expression_finds_it(monkeypatch):
    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    texts = ["".join(f"a{chr(code)}b{chr(code)} " for code in codes), *hard_strings(), "", " ", "x"]
    for window in (cut._WINDOW, 7):
        monkeypatch.setattr(cut, "_WINDOW", window)
        for text in texts[window == 7 :]:
            expected = [match.end() for match in re.finditer(r"(?<=\S)(?=\s)", text)]
            assert cut._word_ends(text).tolist() == expected


def test_remote_counts_cut_as_well():
    remote = load_tokenizer(model="not/here", remote=count_remotely)
    pieces = remote.cut(PROSE[:20_000], 100)
    assert "".join(pieces) == PROSE[:20_000]
    assert max(count_remotely(pieces)) <= 100
    assert np.mean(count_remotely(pieces)) > 70


# ------------------------------------------------------------------------------------- loading


def test_file_and_folder_are_the_same_tokenizer_opened_once(folder):
    first, again = load_tokenizer(folder), load_tokenizer(str(folder))
    file = load_tokenizer(folder / "tokenizer.json")
    assert first._engine is again._engine
    assert first.fingerprint == file.fingerprint
    assert not first.estimated


def test_it_pickles_by_source_and_notices_a_changed_file(tmp_path):
    folder = write_tokenizer(tmp_path, vocab_size=300)
    tokenizer = load_tokenizer(folder)
    packed = pickle.dumps(tokenizer)
    assert len(packed) < 1_000
    back = pickle.loads(packed)
    assert back.count(["Hello there"]).tolist() == tokenizer.count(["Hello there"]).tolist()
    assert (back.name, back.fingerprint) == (tokenizer.name, tokenizer.fingerprint)
    write_tokenizer(tmp_path, vocab_size=310)
    with pytest.raises(TokenizerError, match="not the one the run began with"):
        pickle.loads(packed)


def test_remote_tokenizers_pickle():
    remote = load_tokenizer(remote=count_remotely)
    assert pickle.loads(pickle.dumps(remote)).count(["abcd", None]).tolist() == [2, 0]
    assert not remote.estimated
    assert remote.chat_tokens(CHAT) == -(-len("Be exact.\n\nHello there") // 3)


def test_the_bundled_one_stands_in_and_says_so():
    stand_in = load_tokenizer(model="some-org/some-model")
    named = load_tokenizer("bundled")
    assert (stand_in.estimated, named.estimated) == (True, False)
    assert load_tokenizer().estimated
    assert stand_in.fingerprint == named.fingerprint
    assert stand_in.has_chat_template
    assert pickle.loads(pickle.dumps(stand_in)).estimated


def test_the_models_own_files_go_before_the_bundled_one(tmp_path, folder, monkeypatch):
    cache = tmp_path / "hub"
    snapshot = cache / "models--org--model" / "snapshots" / "0123456789abcdef"
    write_tokenizer(snapshot, vocab_size=300)
    refs = cache / "models--org--model" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("0123456789abcdef")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    cached = load_tokenizer(model="org/model", remote=count_remotely)
    assert not cached.estimated
    assert cached.fingerprint == load_tokenizer(snapshot).fingerprint
    assert load_tokenizer(model=str(folder)).fingerprint == load_tokenizer(folder).fingerprint


def test_only_a_named_source_may_reach_the_hub(monkeypatch):
    calls = []

    def refuse(name, *, local_files_only=False, **_):
        calls.append((name, local_files_only))
        raise FileNotFoundError("not cached")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    assert load_tokenizer(model="org/model", remote=count_remotely).name.startswith("org/model")
    assert calls == [("org/model", True)]
    calls.clear()
    with pytest.raises(TokenizerError, match="give a folder"):
        load_tokenizer("org/other")
    assert calls == [("org/other", True), ("org/other", False)]


@pytest.mark.parametrize("content", ["{", '{"version": "1.0"}', "\xff"])
def test_a_broken_file_is_a_plain_error(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(TokenizerError, match="cannot be read"):
        load_tokenizer(tmp_path)


def test_an_empty_folder_is_a_plain_error(tmp_path):
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_other_formats_go_through_transformers(tmp_path, tokenizer):
    words = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "hello", "there", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    bert = load_tokenizer(tmp_path)
    assert bert.count(["hello theres", None]).tolist() == [3, 0]
    assert not bert.has_chat_template


def test_importing_loads_no_tokenizer_library():
    heavy = "{'transformers', 'tokenizers', 'huggingface_hub', 'jinja2', 'torch', 'cudf'}"
    program = f"import sys, nemo_sdg.text.segment; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
