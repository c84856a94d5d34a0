"""The counting kernels: exact on a CPU and in numba's simulator, and built for absent cards."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import text_gpu_rig as rig
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from nemo_sdg.text.gpu.engine import host_buffers
from nemo_sdg.text.gpu.status import HOLDS_ADDED, LONG_WORD
from nemo_sdg.text.hard_strings import hard_strings, hard_strings_for

pytest.importorskip("numba", reason="numba (extra kernels) is not installed")

from nemo_sdg.text.gpu import classes, cpu, kernels, split, target
from nemo_sdg.text.gpu.tables import NotCompiled, compile_tokenizer

pytestmark = [pytest.mark.row("M10"), pytest.mark.fault(38)]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="module")
def tokenizers_by_rules() -> dict[str, Any]:
    return {rules: rig.trained(rules) for rules in rig.RULES}


@pytest.fixture(scope="module")
def tables_by_rules(tokenizers_by_rules: dict[str, Any]) -> dict[str, Any]:
    return {rules: compile_tokenizer(t.to_str()) for rules, t in tokenizers_by_rules.items()}


def wrong(tokenizer: Any, tables: Any, texts: list[str], chunk: int) -> list[str]:
    """Give the texts whose counts differ from those of tokenizers, flagged ones left out."""
    chars, offsets = host_buffers(texts)
    counts = cpu.count(tables, chars, offsets, chunk)
    flagged = cpu.flags(tables, chars, offsets)
    differs = (counts != rig.counts_of(tokenizer, texts)) & ~flagged
    return [texts[row] for row in np.flatnonzero(differs)]


# ---------------------------------------------------------------------- the functions on a CPU


def test_there_are_five_split_rules() -> None:
    assert set(rig.RULES) == {"gpt2", "cl100k", "qwen2", "tekken", "o200k"}


@pytest.mark.parametrize("rules", rig.RULES)
@pytest.mark.parametrize("chunk", [1, 16, 64, 1 << 40])
def test_hard_strings_are_exact(
    rules: str, chunk: int, tokenizers_by_rules: Any, tables_by_rules: Any
) -> None:
    tokenizer = tokenizers_by_rules[rules]
    texts = hard_strings() + hard_strings_for(tokenizer) + rig.odd_strings(500, seed=chunk % 97)
    assert wrong(tokenizer, tables_by_rules[rules], texts, chunk) == []
    flagged = cpu.flags(tables_by_rules[rules], *host_buffers(texts))
    assert 0 < flagged.sum() < len(texts) / 10, "nearly all are counted here"


@pytest.mark.parametrize("rules", rig.RULES)
@pytest.mark.parametrize("chunk", [16, 1 << 40])
def test_words_end_where_tokenizers_ends_them(
    rules: str, chunk: int, tokenizers_by_rules: Any, tables_by_rules: Any
) -> None:
    """Counts do not show all: two words may have the tokens of one."""
    texts = [text for text in hard_strings() + rig.odd_strings(500, seed=11) if text]
    chars, offsets = host_buffers(texts)
    wanted = []
    for place, text in zip(offsets.tolist(), texts, strict=False):
        for word, _ in tokenizers_by_rules[rules].pre_tokenizer.pre_tokenize_str(text):
            place += len(word)  # a letter a byte
            wanted.append(place)
    assert cpu.word_ends(tables_by_rules[rules], chars, offsets, chunk).tolist() == wanted


@pytest.mark.slow
@pytest.mark.parametrize("rules", rig.RULES)
def test_ten_thousand_odd_strings_are_exact(
    rules: str, tokenizers_by_rules: Any, tables_by_rules: Any
) -> None:
    texts = rig.odd_strings(12_000, seed=5)
    for chunk in (1, 48, 1 << 40):
        assert wrong(tokenizers_by_rules[rules], tables_by_rules[rules], texts, chunk) == []


def test_the_comparison_sees_a_wrong_count(tokenizers_by_rules: Any, tables_by_rules: Any) -> None:
    texts = hard_strings()
    assert wrong(tokenizers_by_rules["qwen2"], tables_by_rules["cl100k"], texts, 64)
    assert wrong(tokenizers_by_rules["o200k"], tables_by_rules["tekken"], texts, 64)


_CHARACTERS = st.one_of(
    st.sampled_from(rig._PIECES),
    st.characters(codec="utf-8"),
    st.sampled_from(["\u017f", "'S", "\u0345", "\u1e9e", "\U0001d7d8", "\u2028", "\u180e"]),
)
_TEXTS = st.lists(st.lists(_CHARACTERS, max_size=24).map("".join), min_size=1, max_size=12)


@pytest.mark.parametrize("rules", rig.RULES)
@settings(max_examples=60, deadline=None)
@given(texts=_TEXTS, chunk=st.sampled_from([1, 5, 32, 1 << 40]))
def test_any_text_is_exact(
    texts: list[str], chunk: int, rules: str, tokenizers_by_rules: Any, tables_by_rules: Any
) -> None:
    assert wrong(tokenizers_by_rules[rules], tables_by_rules[rules], texts, chunk) == []


@pytest.mark.parametrize("rules", ["cl100k", "tekken"])
@settings(max_examples=60, deadline=None)
@given(texts=_TEXTS)
def test_rows_with_an_added_token_or_out_of_the_normal_form_are_flagged(
    texts: list[str], rules: str, tokenizers_by_rules: Any
) -> None:
    """With NFC and an added token: what is not flagged is exact."""
    tokenizer = rig.tokenizers.Tokenizer.from_str(tokenizers_by_rules[rules].to_str())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken("the", normalized=False)])
    tables = compile_tokenizer(tokenizer.to_str())
    assert wrong(tokenizer, tables, texts, 64) == []
    flagged = cpu.flags(tables, *host_buffers(texts))
    for text, is_flagged in zip(texts, flagged, strict=True):
        if "the" in text or normalizers.NFC().normalize_str(text) != text:
            assert is_flagged, text
        if text.isascii() and "the" not in text and "<|" not in text:
            assert not is_flagged, text


def test_words_that_no_merge_reaches_are_one_token_with_ignore_merges() -> None:
    tokenizer = rig.trained("cl100k")
    spec = json.loads(tokenizer.to_str())
    vocabulary = spec["model"]["vocab"]
    for word in ("Ġqzqz", "xqzqzqzqzqzqzqzqzqzqz"):
        vocabulary[word] = len(vocabulary)
    texts = ["xqzqzqzqzqzqzqzqzqzqz qzqz", "a qzqz qzq", "xqzqzqzqzqzqzqzqzqzqzq"]
    found = []
    for ignores in (False, True):
        spec["model"]["ignore_merges"] = ignores
        content = json.dumps(spec)
        reference = rig.tokenizers.Tokenizer.from_str(content)
        chars, offsets = host_buffers(texts)
        counts = cpu.count(compile_tokenizer(content), chars, offsets, 64).tolist()
        assert counts == rig.counts_of(reference, texts)
        found.append(counts)
    assert found[1][0] == 2 < found[0][0]


# --------------------------------------------------------------------------- what is not compiled


def bpe(**changes: Any) -> Any:
    tokenizer = rig.trained("cl100k")
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer.to_str()


def edited(change: Callable[[dict[str, Any]], Any]) -> str:
    spec = json.loads(bpe())
    change(spec)
    return json.dumps(spec)


def with_an_added_token_to_normalise(spec: dict[str, Any]) -> None:
    spec["normalizer"] = {"type": "NFC"}
    spec["added_tokens"].append(spec["added_tokens"][0] | {"content": "é"})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: rig.tokenizers.Tokenizer(models.Unigram([("a", 0.0)], 0)).to_str(), "Unigram"),
        (lambda: rig.tokenizers.Tokenizer(models.WordPiece({"a": 0})).to_str(), "WordPiece"),
        (lambda: bpe(pre_tokenizer=pre_tokenizers.Metaspace()), "pre-tokenizer Metaspace"),
        (lambda: bpe(pre_tokenizer=pre_tokenizers.ByteLevel()), "add_prefix_space"),
        (
            lambda: bpe(pre_tokenizer=pre_tokenizers.Sequence(
                [pre_tokenizers.Split(Regex(r"\d"), "isolated"),
                 pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
            )),
            "split pattern",
        ),
        (
            lambda: bpe(pre_tokenizer=pre_tokenizers.Sequence(
                [pre_tokenizers.Split(Regex(rig.RULES["cl100k"]), "removed"),
                 pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
            )),
            "Split Removed",
        ),
        (
            lambda: bpe(pre_tokenizer=pre_tokenizers.Sequence(
                [pre_tokenizers.Split(Regex(rig.RULES["cl100k"]), "isolated", invert=True),
                 pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
            )),
            "invert True",
        ),
        (
            lambda: bpe(pre_tokenizer=pre_tokenizers.Sequence(
                [pre_tokenizers.Split(Regex(rig.RULES["cl100k"]), "isolated"),
                 pre_tokenizers.ByteLevel(add_prefix_space=False)]
            )),
            "use_regex after another",
        ),
        (lambda: edited(with_an_added_token_to_normalise), "added token 'é' with a normalizer"),
        (lambda: bpe(normalizer=normalizers.Lowercase()), "normalizer Lowercase"),
        (lambda: edited(lambda s: s["model"].update(byte_fallback=True)), "byte_fallback"),
        (lambda: edited(lambda s: s["model"].update(dropout=0.1)), "dropout"),
        (lambda: edited(lambda s: s["model"]["vocab"].pop("A")), "bytes without a token"),
    ],
)  # fmt: skip
def test_what_the_kernels_do_not_do_is_refused_by_name(
    content: Callable[[], str], words: str
) -> None:
    with pytest.raises(NotCompiled, match=words):
        compile_tokenizer(content())


@pytest.mark.slow
def test_the_shipped_kinds_of_characters_are_those_of_tokenizers() -> None:
    made = classes.pack(classes.probe())
    with np.load(classes.FILE) as file:
        assert str(file["tokenizers"]) == rig.tokenizers.__version__
        assert np.array_equal(file["blocks"], made.blocks)
        assert np.array_equal(file["kinds"], made.kinds)


def test_what_was_compiled_with_other_sources_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    """Of a function that another one calls, too: each is named after all files."""
    stamp = target.sources(Path(target.__file__).parent)
    assert stamp in str(cpu.walk.__qualname__) and stamp in str(split.char_at.__qualname__)
    assert stamp in kernels.scan.__qualname__
    (tmp_path / "a.py").write_text("LIMIT = 0xBF")
    before = target.sources(tmp_path)
    (tmp_path / "a.py").write_text("LIMIT = 0xBE")
    assert target.sources(tmp_path) != before


# ------------------------------------------------------------------- the simulator, and no card


def program(name: str, *arguments: str, told: str | None = None, **environment: str) -> Any:
    """Run a program beside this file; give the JSON that it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / name), *arguments],
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"} | environment,
        input=told,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def simulated() -> Any:
    return program("text_gpu_simulated.py", NUMBA_ENABLE_CUDASIM="1")


def check_simulated(told: Any, at_least: int) -> None:
    for rules in rig.RULES:
        assert told[rules]["rows"] >= at_least
        assert told[rules]["wrong"] == []
        reasons = dict(told[rules]["left"])
        assert reasons.pop("x<|end|>") == HOLDS_ADDED
        assert reasons.pop("w" * 1100) == LONG_WORD
        assert set(reasons.values()) <= {HOLDS_ADDED}
        assert all("<|" in text for text in reasons)


def test_the_kernels_are_exact_in_the_simulator(simulated: Any) -> None:
    check_simulated(simulated, at_least=300)


def test_a_column_of_cudf_is_counted_by_the_kernels(simulated: Any) -> None:
    told = simulated["wired"]
    assert told["counts"] == told["wanted"]
    assert told["engine"] == "tokenizers, GPU kernels"
    assert told["noted"]["gpu"]["rows"] == 4
    assert told["noted"]["cpu"] == {"added_token": {"rows": 1, "bytes": 11}}


def test_rows_are_left_to_the_processor_for_the_reason_that_is_told(simulated: Any) -> None:
    told = simulated["left"]
    assert told["counts"] == told["wanted"]
    assert told["noted"]["gpu"] == {"rows": 1, "bytes": 8}
    assert told["noted"]["cpu"] == {
        "added_token": {"rows": 1, "bytes": 13},
        "long_word": {"rows": 1, "bytes": 1100},
        "unsettled": {"rows": 2, "bytes": 9 + 11},
    }


def test_a_row_whose_words_find_no_place_in_a_queue_is_left_to_the_processor(
    simulated: Any,
) -> None:
    told = simulated["queue_full"]
    assert told["counts"] == told["wanted"]
    assert told["noted"]["cpu"] == {"queue_full": {"rows": 1, "bytes": 25}}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_more_strings_are_exact_in_the_simulator() -> None:
    check_simulated(program("text_gpu_simulated.py", "all", NUMBA_ENABLE_CUDASIM="1"), at_least=650)


def missing_compilers() -> str:
    """Say why no PTX can be made here, "" where it can."""
    if importlib.util.find_spec("numba_cuda") is None:
        return "numba-cuda (extra kernels) is not installed"
    from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib

    for library in ("nvvm", "nvrtc"):
        try:
            load_nvidia_dynamic_lib(library)
        except DynamicLibNotFoundError:
            return f"lib{library} is not installed (extra gpu-build, see `make test-all`)"
    return ""


@pytest.mark.parametrize("card", ["8.0", "9.0"])
def test_the_kernels_are_built_for_cards_without_one(card: str, simulated: Any) -> None:
    """From the types with which the simulator saw them launched."""
    if why := missing_compilers():
        pytest.skip(why)
    launches = simulated["launches"]
    assert set(launches) == {"locate", "flag", "scan", "merge", "merge_long"}
    told = program("text_gpu_ptx.py", card, told=json.dumps(launches))
    assert len(told) == sum(map(len, launches.values()))
    for kernel in told.values():
        assert kernel["arch"] == f"sm_{card.replace('.', '')}"
        if kernel["machine"] is not None:
            assert kernel["machine"]["spilled"] == 0
            assert kernel["machine"]["registers"] <= 64
