"""Split, pack and join, against plain loops and against the predecessor's faults."""

from __future__ import annotations

import itertools
import pydoc_data.topics
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_tiny_tokenizer import write_tokenizer

from nemo_sdg.errors import DataError
from nemo_sdg.text import spans
from nemo_sdg.text.segment import join_segments, pack, split_pack
from nemo_sdg.text.tokens import load_tokenizer

TOPICS = [text for _, text in sorted(pydoc_data.topics.topics.items())]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def restored(segments, separator="\n"):
    """Put the segments of each row together again."""
    texts = {}
    rows = (segments.parent, segments.text, segments.continues, segments.index)
    for parent, text, continues, index in zip(*(list(row) for row in rows), strict=True):
        lead = "" if continues or index == 0 else separator
        texts[parent] = texts.get(parent, "") + lead + text
    return texts


def check_segments(texts, segments, tokenizer, budget, separator="\n"):
    assert restored(segments, separator) == {
        row: text for row, text in enumerate(texts) if text is not None
    }
    assert tokenizer.count(segments.text.tolist()).tolist() == segments.tokens.tolist()
    assert len(segments.tokens) == 0 or segments.tokens.max() <= budget
    sizes = pd.Series(segments.parent).groupby(segments.parent).transform("size")
    assert segments.count.tolist() == sizes.tolist()
    numbers = pd.Series(segments.parent).groupby(segments.parent).cumcount()
    assert segments.index.tolist() == numbers.tolist()


# -------------------------------------------------------------------------------------- packing


def pack_by_loop(lengths, parent, costs, budget, adjacent):
    groups, group, total = [], -1, 0
    for i, length in enumerate(lengths):
        apart = i == 0 or parent[i] != parent[i - 1] or not adjacent[i]
        if apart or total + costs[i] + length > budget:
            group, total = group + 1, length
        else:
            total += costs[i] + length
        groups.append(group)
    return groups


def _packed(lengths, parent, costs, budget, adjacent):
    arrays = [np.array(values, dtype=np.int64) for values in (lengths, parent, costs)]
    return pack(*arrays, budget, np.array(adjacent, dtype=bool)).tolist()


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(
    pieces=st.lists(
        st.tuples(
            st.integers(0, 14), st.integers(0, 3).map(lambda n: n == 0), st.integers(0, 3),
            st.integers(0, 5).map(bool),
        ),
        max_size=40,
    ),
    budget=st.integers(1, 20),
)  # fmt: skip
def test_packing_equals_the_loop(pieces, budget):
    lengths = [piece[0] for piece in pieces]
    parent = list(itertools.accumulate(int(piece[1]) for piece in pieces))
    costs = [piece[2] for piece in pieces]
    adjacent = [piece[3] for piece in pieces]
    expected = pack_by_loop(lengths, parent, costs, budget, adjacent)
    assert _packed(lengths, parent, costs, budget, adjacent) == expected


@pytest.mark.row("M10")
def test_packing_equals_the_loop_on_thousands_of_cases():
    random = np.random.default_rng(20)
    for _ in range(3_000):
        n = int(random.integers(0, 60))
        lengths = random.integers(0, int(random.integers(1, 16)) + 1, n).tolist()
        parent = np.cumsum(random.random(n) < 0.2).tolist()
        costs = random.integers(0, 3, n).tolist()
        adjacent = (random.random(n) < 0.9).tolist()
        budget = int(random.integers(1, 24))
        expected = pack_by_loop(lengths, parent, costs, budget, adjacent)
        assert _packed(lengths, parent, costs, budget, adjacent) == expected


def _sums(lengths, groups, separator):
    return [
        sum(part) + separator * (len(part) - 1)
        for _, rows in itertools.groupby(zip(groups, lengths, strict=True), key=lambda row: row[0])
        for part in [[length for _, length in rows]]
    ]


@pytest.mark.row("M10")
@pytest.mark.parametrize(
    ("lengths", "separator", "budget", "sums"),
    [
        ([3, 4, 2, 9, 1], 1, 10, [8, 2, 9, 1]),  # fact sheet 2, after its step 3
        ([3, 4, 12, 2, 9, 1], 1, 10, [8, 12, 2, 9, 1]),  # an overlong piece stands alone
        ([4, 4, 4], 1, 9, [9, 4]),  # fact sheet 10.2
        ([4, 4, 4], 2, 9, [4, 4, 4]),
        ([], 1, 9, []),
        ([0, 0, 0], 0, 1, [0]),
    ],
)
def test_worked_examples(lengths, separator, budget, sums):
    array = np.array(lengths, dtype=np.int64)
    groups = pack(array, np.zeros(len(array), dtype=np.int64), separator, budget).tolist()
    assert _sums(lengths, groups, separator) == sums


def test_neighbours_of_a_dropped_piece_are_not_glued():
    """Fact sheet 2: once the 12 is dropped, the predecessor glues 4 and 2 as if adjacent."""
    lengths = np.array([3, 2, 2, 1])

    def check(packer):
        assert packer(lengths).tolist() == [0, 0, 1, 1]

    adjacent = np.array([True, True, False, True])
    check(lambda n: pack(n, np.zeros(4, dtype=np.int64), 1, 20, adjacent))
    with pytest.raises(AssertionError):
        check(lambda n: pack(n, np.zeros(4, dtype=np.int64), 1, 20))


# ------------------------------------------------------------------------------ splitting


@pytest.mark.row("M10")
@pytest.mark.fault(74)
def test_real_texts_survive_and_fit(tokenizer):
    line = re.sub(r"\s+", " ", " ".join(TOPICS))
    texts = [
        *TOPICS, line[:200_000], "语言模型可以改写文章。很好！" * 900, "", "nul\x00\n\x00\n", None,
        "\n\n\n", "ends\n\n", "  \n\t\n", "🎉" * 900, "one",
    ]  # fmt: skip
    column = pd.Series(texts, index=[3] * len(texts))
    for budget in (64, 512):
        segments = split_pack(column, tokenizer, max_tokens=budget)
        check_segments(texts, segments, tokenizer, budget)
        lines = [text for text in texts if text is not None]
        glued = sum(text.count("\n") for text in segments.text)
        between = int((~segments.continues & (segments.index > 0)).sum())
        assert glued + between == sum(text.count("\n") for text in lines)
        # First fit: a budget is not left half empty when the next piece would have fitted.
        assert segments.tokens[segments.count > 3].mean() > budget * 0.6


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(
    texts=st.lists(
        st.none() | st.text(alphabet=st.sampled_from("ab .\n\x00é語🎉|"), max_size=60), max_size=6
    ),
    budget=st.integers(6, 25),
    separator=st.sampled_from(["\n", "||", "\n\n", ". "]),
)
def test_any_text_survives_and_fits(texts, budget, separator):
    tokenizer = load_tokenizer("bundled")
    segments = split_pack(
        pd.Series(texts, dtype="str"), tokenizer, max_tokens=budget, separator=separator
    )
    check_segments(texts, segments, tokenizer, budget, separator)


def test_a_few_rows_at_a_time_give_the_segments_of_the_whole_column(tokenizer, monkeypatch):
    texts = [*TOPICS[:12], None, "", None, "one", *TOPICS[12:20], "a\n\n", None]
    column = pd.Series(texts, dtype="str")
    whole = split_pack(column, tokenizer, max_tokens=40)
    chunks = pa.chunked_array([texts[:3], [], texts[3:9], texts[9:]], pa.large_string())
    chunked = split_pack(
        pd.Series(chunks, dtype=pd.ArrowDtype(pa.large_string())), tokenizer, max_tokens=40
    )
    pd.testing.assert_series_equal(chunked.text, whole.text)
    assert chunked.parent.tolist() == whole.parent.tolist()
    for num_bytes in (1, 5_000, 20_000):
        monkeypatch.setattr(spans, "_SLICE_BYTES", num_bytes)
        assert len(list(spans.slices_of(column))) > 2
        parts = split_pack(column, tokenizer, max_tokens=40)
        pd.testing.assert_series_equal(parts.text, whole.text)
        for name in ("parent", "index", "count", "tokens", "continues"):
            assert getattr(parts, name).tolist() == getattr(whole, name).tolist(), name


class Growing:
    """A tokenizer whose counts grow when texts are glued: three tokens for every inner newline."""

    def count(self, texts):
        # Columns are counted where they lie: none may come to the host for it.
        assert isinstance(texts, list)
        sizes = [len(text.replace("\n", "")) + 3 * text.strip("\n").count("\n") for text in texts]
        return np.array(sizes, dtype=np.int64)

    def count_column(self, column):
        return pd.Series(self.count(column.tolist()), index=column.index)

    def cut(self, text, max_tokens):
        return [text[i : i + max_tokens] for i in range(0, len(text), max_tokens)]


def test_segments_that_came_out_longer_are_packed_anew():
    texts = ["\n".join(["abc", "de", "fgh", "i", "jkl"] * 7), "x" * 25, "ab"]
    segments = split_pack(pd.Series(texts), Growing(), max_tokens=10)
    check_segments(texts, segments, Growing(), 10)
    assert len(segments.text) <= 25  # packed in twos, not given up


@pytest.mark.parametrize("dtype", ["str", object, pd.ArrowDtype(pa.large_string())])
def test_every_text_dtype_and_an_empty_column(tokenizer, dtype):
    texts = ["a\nb", None, ""]
    segments = split_pack(pd.Series(texts, dtype=dtype), tokenizer, max_tokens=50)
    assert segments.text.tolist() == ["a\nb", ""]
    assert segments.text.dtype == "str"
    assert segments.parent.tolist() == [0, 2]
    empty = split_pack(pd.Series([], dtype=dtype), tokenizer, max_tokens=50)
    assert len(empty.text) == len(empty.count) == len(empty.continues) == 0
    assert (empty.text.dtype, empty.parent.dtype) == (segments.text.dtype, segments.parent.dtype)


def test_wrong_arguments(tokenizer):
    with pytest.raises(ValueError, match="max_tokens"):
        split_pack(pd.Series(["a"]), tokenizer, max_tokens=0)
    with pytest.raises(ValueError, match="separator"):
        split_pack(pd.Series(["a"]), tokenizer, max_tokens=9, separator="")


@pytest.mark.fault(31)
@pytest.mark.fault(69)
def test_separators_of_several_characters_are_literal(tokenizer):
    text = "first part||second part||third"

    def check(split):
        assert split(text) == ["first part", "second part", "third"]

    def as_regular_expression(text):
        return re.split("||", text)

    def ours(text):
        budget = int(tokenizer.count(["second part"])[0])
        return split_pack(
            pd.Series([text]), tokenizer, max_tokens=budget, separator="||"
        ).text.tolist()

    check(ours)
    with pytest.raises(AssertionError):
        check(as_regular_expression)


@pytest.mark.fault(32)
@pytest.mark.fault(69)
def test_equal_index_labels_number_segments_per_row(tokenizer):
    column = pd.Series(["a\nb", "c\nd"], index=[7, 7])
    budget = int(tokenizer.count(["a"])[0])

    def check(segment_numbers):
        assert segment_numbers(column) == [0, 1, 0, 1]

    def counted_by_label(column):
        pieces = column.str.split("\n").explode()
        return pieces.groupby(level=0).cumcount().tolist()

    check(lambda column: split_pack(column, tokenizer, max_tokens=budget).index.tolist())
    with pytest.raises(AssertionError):
        check(counted_by_label)


@pytest.mark.fault(32)
@pytest.mark.fault(69)
def test_segments_split_a_second_time_join_in_order(tokenizer):
    """One document, two segments A and B, each split again."""
    first = pd.Series(["A1|A2", "B1|B2"])
    budget = int(tokenizer.count(["A1"])[0])

    def check(join):
        assert join(first) == "A1|A2\nB1|B2"

    def overwritten_ids(column):
        pieces = column.str.split("|", regex=False).explode()
        order = pieces.groupby(level=0).cumcount().argsort(kind="stable")
        return "\n".join(pieces.iloc[order])

    def ours(column):
        parts = split_pack(column, tokenizer, max_tokens=budget, separator="|")
        inner = join_segments(parts.text, parts.parent, parts.index, parts.count, separator="|")
        outer = join_segments(
            inner.text, np.array(["doc", "doc"]), inner.document, np.array([2, 2])
        )
        assert outer.complete.tolist() == [True]
        return outer.text.iloc[0]

    check(ours)
    with pytest.raises(AssertionError):
        check(overwritten_ids)


@pytest.mark.fault(33)
@pytest.mark.fault(68)
def test_separators_cost_what_the_tokenizer_says(tokenizer):
    dear, cheap = "\n#=%=#\n", "    "
    assert tokenizer.count([dear])[0] > 3
    assert tokenizer.count([cheap])[0] < len(cheap)

    def check(cost):
        for separator in (dear, cheap):
            texts = ["word and word" + str(i % 7) for i in range(60)]
            lengths = tokenizer.count(texts)
            groups = pack(lengths, np.zeros(60, dtype=np.int64), cost(separator), 40).tolist()
            packed = [
                separator.join(text for _, text in rows)
                for _, rows in itertools.groupby(
                    zip(groups, texts, strict=True), key=lambda row: row[0]
                )
            ]
            assert tokenizer.count(packed).max() <= 40
            # One more piece would not have fitted into the first segment.
            more = separator.join(texts[: groups.count(0) + 1])
            assert tokenizer.count([more])[0] > 40 - 2

    check(lambda separator: int(tokenizer.count([separator])[0]))
    for faulty in (len, lambda separator: 1):
        with pytest.raises(AssertionError):
            check(faulty)


# -------------------------------------------------------------------------------------- joining


def _join(frame, **options):
    return join_segments(frame["text"], frame["doc"], frame["index"], frame["count"], **options)


def _frame(rows, index=None):
    frame = pd.DataFrame(rows, columns=["doc", "index", "count", "text"], index=index)
    return frame.astype({"text": "str"})


def test_rows_in_any_order_join_by_index_in_order_of_first_appearance():
    frame = _frame(
        [("b", 1, 2, "b1"), ("a", 2, 3, "a2"), ("b", 0, 2, "b0"), ("a", 0, 3, "a0"),
         ("a", 1, 3, "a1")], index=[4, 4, 4, 0, 1],
    )  # fmt: skip
    joined = _join(frame, separator=" ")
    assert joined.document.tolist() == ["b", "a"]
    assert joined.text.tolist() == ["b0 b1", "a0 a1 a2"]
    assert joined.complete.tolist() == [True, True]
    assert joined.num_present.tolist() == joined.num_expected.tolist() == [2, 3]


GAPS = [
    ("a", 0, 2, "a0"), ("a", 1, 2, None), ("b", 0, 1, "b0"), ("c", 0, 2, "c0"),
    ("d", 0, 1, None), ("e", 0, 1, ""),
]  # fmt: skip


def test_missing_segments_are_marked_dropped_or_filled():
    frame = _frame(GAPS)
    marked = _join(frame)
    assert marked.document.tolist() == ["a", "b", "c", "d", "e"]
    assert marked.text.isna().tolist() == [False, False, False, True, False]
    assert marked.text.fillna("-").tolist() == ["a0", "b0", "c0", "-", ""]
    assert marked.complete.tolist() == [False, True, False, False, True]
    assert marked.num_present.tolist() == [1, 1, 1, 0, 1]
    assert marked.num_expected.tolist() == [2, 1, 2, 1, 1]

    dropped = _join(frame, missing="drop-document")
    assert dropped.document.tolist() == ["b", "e"]
    assert dropped.text.tolist() == ["b0", ""]
    assert dropped.complete.tolist() == [True, True]

    originals = pd.Series([f"source {i}" for i in range(6)], index=[9] * 6)
    kept = _join(frame, missing="keep-original", originals=originals)
    assert kept.text.tolist() == ["a0\nsource 1", "b0", "c0", "source 4", ""]
    assert kept.complete.tolist() == marked.complete.tolist()
    assert kept.num_present.tolist() == marked.num_present.tolist()


def test_wrong_words_and_double_segments_are_errors():
    frame = _frame([("a", 0, 2, "x"), ("a", 0, 2, "y")])
    with pytest.raises(DataError, match="segment 0 of document 'a' stands in two rows"):
        _join(frame)
    with pytest.raises(ValueError, match="choose mark"):
        _join(frame, missing="skip")
    with pytest.raises(ValueError, match="needs the originals"):
        _join(frame, missing="keep-original")


def _check_no_loss(join):
    frame = _frame([("a", 0, 2, "a0"), ("a", 1, 2, None), (None, 0, 2, "x0"), (None, 1, 2, "x1"),
                    (None, 0, 1, "y0"), ("b", 0, 1, "b0")])  # fmt: skip
    assert join(frame) == ["a0", "x0\nx1", "y0", "b0"]
    assert join(frame.iloc[:0]) == []


@pytest.mark.fault(34)
def test_missing_texts_and_missing_ids_lose_no_row():
    def grouped_loop(frame):
        texts = []
        for _, rows in frame.sort_values("index").groupby("doc"):
            texts.append("\n".join(row["text"] for _, row in rows.iterrows()))
        return texts

    def grouped_without_null_texts(frame):
        return grouped_loop(frame[frame["text"].notna()])

    _check_no_loss(lambda frame: _join(frame).text.tolist())
    with pytest.raises(TypeError):
        _check_no_loss(grouped_loop)
    with pytest.raises(AssertionError):
        _check_no_loss(grouped_without_null_texts)


@pytest.mark.fault(34)
def test_an_empty_batch_has_the_same_columns():
    frame = _frame(GAPS)

    def check(join):
        full, empty = join(frame), join(frame.iloc[:0])
        assert [(name, str(values.dtype)) for name, values in vars(full).items()] == [
            (name, str(values.dtype)) for name, values in vars(empty).items()
        ]

    class AsItCame:  # the predecessor gives an empty batch back unchanged
        def __init__(self, frame):
            self.__dict__.update({name: frame[name] for name in frame.columns})

    check(_join)
    with pytest.raises(AssertionError):
        check(lambda frame: _join(frame) if len(frame) else AsItCame(frame))


def test_the_callers_columns_are_not_changed(tokenizer):
    frame = _frame(GAPS)
    before = frame.copy(deep=True)
    _join(frame, missing="keep-original", originals=frame["doc"])
    split_pack(frame["text"], tokenizer, max_tokens=20)
    pd.testing.assert_frame_equal(frame, before)


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(order=st.permutations(range(12)), gone=st.sets(st.integers(0, 11), max_size=5))
def test_join_does_not_depend_on_row_order(order, gone):
    rows = [(i // 3, i % 3, 3, f"t{i}") for i in order if i not in gone]
    joined = _join(_frame(rows))
    expected = {}
    for doc, *_ in rows:
        expected.setdefault(
            doc, "\n".join(f"t{i}" for i in range(doc * 3, doc * 3 + 3) if i not in gone)
        )
    assert dict(zip(joined.document, joined.text, strict=True)) == expected
    assert joined.document.tolist() == list(expected)
    assert joined.complete.tolist() == [not any(i // 3 == doc for i in gone) for doc in expected]
