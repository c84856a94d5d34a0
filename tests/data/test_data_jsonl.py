import numpy as np
import orjson
import pyarrow as pa
import pytest

from nemo_sdg.data import jsonl
from nemo_sdg.data.jsonl import LineError, infer_types, parse_block, parse_line

TEXT = pa.schema([("text", pa.large_string())])
MIXED = pa.schema([("text", pa.large_string()), ("n", pa.int64()), ("tags", pa.list_(pa.string()))])


def texts(data: bytes, **options: str) -> list[str | None]:
    return parse_block(data, TEXT, **options)[0]["text"].to_pylist()


def test_types_widen_over_the_sample() -> None:
    records = [
        {"id": 1, "score": 2, "tags": [], "meta": {"a": 1}, "odd": "x", "none": None, "ok": True},
        {
            "late": [1],
            "id": None,
            "score": 2.5,
            "tags": ["a"],
            "meta": None,
            "odd": 3,
            "none": None,
        },
        {"big": 2**63, "deep": [[1]], "things": [{"a": 1}], "late": [0.5]},
    ]
    assert {k: str(v) for k, v in infer_types(records).items()} == {
        "id": "int64",
        "score": "double",
        "tags": "list<item: string>",
        "meta": "large_string",
        "odd": "large_string",
        "none": "large_string",
        "ok": "bool",
        "late": "list<item: double>",
        "big": "large_string",
        "deep": "large_string",
        "things": "large_string",
    }


def test_whole_block_and_line_by_line_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        {"text": f"{i} äöü 文 \u2028 \u0000 \n", "n": i - 2**62, "tags": ["a", None], "extra": [i]}
        for i in range(20)
    ]
    lines += [{"n": None, "tags": None}, {}]
    data = b"\n\r\n".join(orjson.dumps(line) for line in lines)
    quick, where = parse_block(data, MIXED)
    with monkeypatch.context() as patch:
        patch.setattr(jsonl, "_parse_at_once", lambda data, schema: None)
        slow, where_slow = parse_block(data, MIXED)
    with monkeypatch.context() as patch:
        patch.setattr(jsonl, "_parse_by_line", None)
        patch.setattr(jsonl, "PIECE_BYTES", 100)
        cut, where_cut = parse_block(data, MIXED)
    assert quick.equals(slow)
    assert quick.equals(cut.combine_chunks()) or quick.to_pylist() == cut.to_pylist()
    assert where.tolist() == where_slow.tolist() == where_cut.tolist()
    assert [orjson.loads(data[i:].split(b"\n")[0]) for i in where] == lines


def test_surrogates_nul_and_nan_are_mended() -> None:
    data = (
        b'{"text": "half \\ud83d pair"}\n{"text": "\\ud83d\\ude00 whole"}\n'
        b'{"text": "escaped \\\\ud800"}\n{"text": "bare \x00 and \t"}\n{"text": NaN}\n'
    )
    assert texts(data) == [
        "half \ufffd pair",
        "\U0001f600 whole",
        "escaped \\ud800",
        "bare \x00 and \t",
        None,
    ]


def test_values_of_other_types_become_json_text_but_not_in_the_text_field() -> None:
    data = b'{"text": "a"}\n{"text": {"k": ["\xc3\xa4", 1]}}\n{"text": 7}\n'
    assert texts(data) == ["a", '{"k":["ä",1]}', "7"]
    with pytest.raises(LineError, match="object in the text field 'text'") as caught:
        texts(data, text_field="text")
    assert caught.value.offset == data.index(b"\n") + 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a"', "broken JSON"),
        (b'{"text": "a"} {"text": "b"}', "broken JSON"),
        (b'{"text": "\xff"}', "not valid UTF-8"),
        (b"null", "not a JSON object but null"),
        (b'[{"text": "a"}]', "list; a file that is one list"),
        (b"{", "on one line of its own"),
        (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
@pytest.mark.parametrize("before", [b"", b'{"text": "fine"}\n\n'])
def test_a_broken_line_is_placed(line: bytes, reason: str, before: bytes) -> None:
    with pytest.raises(LineError) as caught:
        parse_block(before + line + b'\n{"text": "fine"}\n', TEXT)
    assert caught.value.offset == len(before)
    assert reason in caught.value.reason


def test_numbers_that_do_not_fit_are_placed() -> None:
    fits = parse_block(b'{"n": 3.0}\n{"n": null}\n', MIXED)[0]
    assert fits["n"].to_pylist() == [3, None]
    for value in (b"3.5", b'"3"', b"true", b"9223372036854775808"):
        with pytest.raises(LineError) as caught:
            parse_block(b'{"n": ' + value + b"}\n", MIXED)
        assert "in field 'n', which is int64 in the sample" in caught.value.reason


def test_the_last_of_equal_keys_counts_on_both_ways() -> None:
    assert parse_line(b'{"text": "a", "text": "b"}') == {"text": "b"}
    assert texts(b'{"text": "a", "text": "b"}\n') == ["b"]


def test_an_empty_block_has_the_schema() -> None:
    for data in (b"", b"\n \r\n\n"):
        table, where = parse_block(data, MIXED)
        assert table.schema.equals(MIXED)
        assert table.num_rows == 0
        assert where.dtype == np.int64
