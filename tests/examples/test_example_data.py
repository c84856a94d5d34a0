"""The example documents and the tokenizer trained on them are what the demo and tests count on."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "examples" / "data"
BUNDLED = ROOT / "nemo_sdg" / "text" / "bundled"
SCRIPT = ROOT / "examples" / "train_tokenizer.py"

# Words that are frequent in one of the languages and absent from the other two.
COMMON_WORDS = {
    "en": {"the", "and", "of", "is", "it", "you"},
    "de": {"der", "und", "das", "ist", "nicht", "ein"},
    "es": {"el", "los", "que", "una", "por", "y"},
}

CHATS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "How long is the Rhine?"}],
    [
        {"role": "system", "content": "Answer in one sentence."},
        {"role": "user", "content": "  <b>¿Qué?</b>\n{{ braces }} {% raw %}\n\n"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "'quotes' and \\n"},
    ],
    [],
]


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in sorted(DATA.glob("*.jsonl"))
        for line in path.read_bytes().split(b"\n")
        if line
    ]


@pytest.fixture(scope="module")
def texts(documents: list[dict[str, Any]]) -> dict[str, str]:
    return {document["id"]: document["text"] for document in documents}


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("train_tokenizer", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def template() -> str:
    config = json.loads((BUNDLED / "tokenizer_config.json").read_text(encoding="utf-8"))
    return str(config["chat_template"])


def test_every_document_has_the_same_fields(documents: list[dict[str, Any]]) -> None:
    types = {"id": str, "title": str, "language": str, "text": str, "bucketed_results": int}
    for document in documents:
        assert {name: type(value) for name, value in document.items()} == types
        assert 0 <= document["bucketed_results"] <= 19


def test_files_are_utf8_with_characters_unescaped() -> None:
    for path in DATA.glob("*.jsonl"):
        raw = path.read_bytes()
        assert raw.endswith(b"}\n")
        assert b"\r" not in raw
    assert "España" in (DATA / "articles-other.jsonl").read_text(encoding="utf-8")


def test_there_are_enough_documents_in_three_languages(documents: list[dict[str, Any]]) -> None:
    languages = Counter(document["language"] for document in documents)
    assert len(documents) >= 64
    assert set(languages) == {"en", "de", "es"}
    assert languages["en"] >= 44
    assert languages["de"] >= 10
    assert languages["es"] >= 10


def test_ids_and_texts_stand_once(documents: list[dict[str, Any]]) -> None:
    for field in ("id", "text", "title"):
        counts = Counter(document[field] for document in documents)
        assert [value for value, count in counts.items() if count > 1] == []
    for document in documents:
        assert re.fullmatch(rf"{document['language']}-\d{{4}}", document["id"])


def test_texts_are_in_the_language_they_claim(documents: list[dict[str, Any]]) -> None:
    for document in documents:
        words = re.findall(r"\w+", document["text"].lower())
        if len(words) < 50 or document["id"] == "en-0049":
            continue
        hits = {
            language: sum(word in common for word in words)
            for language, common in COMMON_WORDS.items()
        }
        assert max(hits, key=lambda language: hits[language]) == document["language"], document[
            "id"
        ]


def test_about_a_third_is_of_low_quality(documents: list[dict[str, Any]]) -> None:
    for language in ("en", "de", "es"):
        scores = [d["bucketed_results"] for d in documents if d["language"] == language]
        low = sum(score <= 11 for score in scores)
        assert 0.25 <= low / len(scores) <= 0.45
    assert {d["bucketed_results"] for d in documents} == set(range(20))


def test_lengths_are_of_several_kinds(texts: dict[str, str]) -> None:
    words = {name: len(text.split()) for name, text in texts.items()}
    assert words["en-0001"] >= 3500
    assert sum(60 <= count <= 120 for count in words.values()) >= 5
    assert sum(200 <= count <= 450 for count in words.values()) > len(words) / 2
    assert sum(600 <= count <= 900 for count in words.values()) >= 6


def test_one_document_has_no_newline_and_most_have_several(texts: dict[str, str]) -> None:
    long_lines = [name for name, text in texts.items() if "\n" not in text and len(text) > 3000]
    assert long_lines == ["en-0005"]
    assert sum(text.count("\n") >= 4 for text in texts.values()) > len(texts) * 0.8
    assert any("\n\n" in text for text in texts.values())
    assert any(text.startswith("# ") for text in texts.values())
    assert any("\n- " in text for text in texts.values())


def test_one_document_is_empty_and_one_is_broken(texts: dict[str, str]) -> None:
    assert [name for name, text in texts.items() if not text.strip()] == ["en-0048"]
    assert texts["en-0048"] == ""
    assert [name for name, text in texts.items() if "\x00" in text] == ["en-0049"]
    broken = texts["en-0049"]
    assert "â€™" in broken
    assert "\ufffd" in broken
    assert "\x1b" in broken
    assert broken.count("Home | News | Sport") >= 5
    strange = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ufffd\u200b\ufeff]")
    assert [name for name, text in texts.items() if strange.search(text)] == ["en-0049"]


def test_the_tokenizer_gives_every_text_back(texts: dict[str, str], script: Any) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == script.VOCABULARY_SIZE
    unseen = [
        "",
        " ",
        "\r\n\t ",
        "日本語のテキスト",
        "🙂\u200d🙂",
        "a  b\n\n\n c ",
        "x" * 999,
        "1234567",
    ]
    for text in [*texts.values(), *unseen]:
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        # No mark is added: a count is that of the text alone.
        assert bool(ids) == bool(text)
        assert not set(ids) & {0, 1, 2, 3}


def test_the_tokenizer_is_of_use(texts: dict[str, str]) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))
    marks = ("<|begin|>", "<|role|>", "<|end_role|>", "<|end|>")
    assert [tokenizer.token_to_id(mark) for mark in marks] == [0, 1, 2, 3]
    text = texts["en-0001"]
    # About 1.4 tokens a word here; bytes alone would make 6.
    assert len(tokenizer.encode(text).ids) < 1.7 * len(text.split())
    assert tokenizer.encode("<|role|>user<|end_role|>\nHi<|end|>").ids.count(1) == 1


def test_transformers_reads_the_folder_and_counts_alike(texts: dict[str, str]) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    fast = AutoTokenizer.from_pretrained(str(BUNDLED))
    plain = Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))
    assert (fast.bos_token, fast.eos_token) == ("<|begin|>", "<|end|>")
    for text in texts.values():
        ids = fast.encode(text, add_special_tokens=False)
        assert ids == plain.encode(text).ids == fast.encode(text)
        assert fast.decode(ids) == text


@pytest.mark.parametrize("chat", CHATS, ids=["user", "several", "none"])
@pytest.mark.parametrize("prompt", [False, True], ids=["closed", "prompt"])
def test_the_chat_template_renders_alike_in_transformers_and_in_a_sandbox(
    template: str, chat: list[dict[str, str]], prompt: bool
) -> None:
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from transformers import AutoTokenizer

    expected = "<|begin|>" + "".join(
        f"<|role|>{message['role']}<|end_role|>\n{message['content']}<|end|>" for message in chat
    )
    if prompt:
        expected += "<|role|>assistant<|end_role|>\n"
    rendered = (
        ImmutableSandboxedEnvironment()
        .from_string(template)
        .render(messages=chat, add_generation_prompt=prompt)
    )
    assert rendered == expected
    fast = AutoTokenizer.from_pretrained(str(BUNDLED))
    # An empty chat is no chat to transformers, which looks into its first message.
    if chat:
        assert (
            fast.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt) == expected
        )


def test_check_finds_a_change(script: Any, tmp_path: Path, capsys: Any) -> None:
    data, output = tmp_path / "data", tmp_path / "bundled"
    data.mkdir()
    line = json.dumps({"text": "Rain falls on the hill and on the mill. " * 3})
    (data / "a.jsonl").write_text(line + "\n", encoding="utf-8")
    arguments = ["--data", str(data), "--output", str(output)]

    assert script.main([*arguments, "--check"]) == 1
    assert not output.exists()
    assert script.main(arguments) == 0
    assert script.main([*arguments, "--check"]) == 0
    for name in ("tokenizer.json", "tokenizer_config.json"):
        content = (output / name).read_bytes()
        (output / name).write_bytes(content + b" ")
        capsys.readouterr()
        assert script.main([*arguments, "--check"]) == 1
        assert name in capsys.readouterr().err
        (output / name).write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["1", "2"])
def test_training_again_gives_the_same_bytes(seed: str) -> None:
    # Another hash seed and another number of threads in a fresh process.
    environment = {**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": seed}
    command = [sys.executable, str(SCRIPT), "--check"]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
