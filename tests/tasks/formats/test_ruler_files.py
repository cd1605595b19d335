"""RULER's JSON lines: both dialects are read, and an invalid line is named."""

import json
from pathlib import Path

import pytest

from needlework.tasks.formats.ruler_files import RulerRow, read_ruler_jsonl

NVIDIA = {"index": 2169, "input": "A text. What?", "outputs": ["7"], "length": 30}
LM_EVAL = {**NVIDIA, "index": 0, "max_length": 4096, "gen_prefix": "The number is"}


def jsonl(*rows: dict) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def test_reads_the_lines_of_nvidia_and_lm_eval(tmp_path: Path):
    (path := tmp_path / "x.jsonl").write_bytes(
        b"\xef\xbb\xbf"
        + jsonl(NVIDIA, {**NVIDIA, "answer_prefix": " It is"}, LM_EVAL).replace(b"\n", b"\r\n\r\n")
        + b"\n\n"
    )
    plain, prefixed, lm_eval = read_ruler_jsonl(path)
    assert plain == RulerRow(**NVIDIA)
    assert (plain.index, plain.input, plain.outputs, plain.length) == tuple(NVIDIA.values())
    assert (plain.prefix, plain.max_length) == ("", None)
    assert (prefixed.prefix, prefixed.input) == (" It is", NVIDIA["input"])
    assert (lm_eval.prefix, lm_eval.max_length, lm_eval.index) == (" The number is", 4096, 0)


@pytest.mark.parametrize(
    ("keys", "prefix"),
    [
        ({"gen_prefix": "It is"}, " It is"),
        ({"gen_prefix": " It is"}, " It is"),
        ({"gen_prefix": "It is", "input": "What?\n"}, "It is"),
        ({"gen_prefix": "It is", "answer_prefix": ""}, ""),
        ({"gen_prefix": ""}, ""),
    ],
)
def test_prefix_follows_the_input_after_one_space(keys: dict, prefix: str):
    assert RulerRow(**{**NVIDIA, **keys}).prefix == prefix


def test_a_null_is_the_same_as_no_column(tmp_path: Path):
    (path := tmp_path / "x.jsonl").write_bytes(
        jsonl({**LM_EVAL, "max_length": None, "gen_prefix": None})
    )
    (row,) = read_ruler_jsonl(path)
    assert (row.max_length, row.prefix) == (None, "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, ": no such file; write a JSON lines, JSON or Parquet file with samples"),
        (b"\n \n", ": empty; write a JSON lines, JSON or Parquet file with samples"),
        (jsonl(NVIDIA) + b"\n{", ":2: not JSON: EOF while parsing an object at column 1; write a"),
        (
            jsonl(NVIDIA) + b'\n{"input": "\xff"}',
            ":2: not JSON: invalid unicode code point at colu",
        ),
        (
            jsonl(NVIDIA, [1]),
            ":2: the line is [1]; it should be an object; write a JSON lines, JS",
        ),
        (
            b'{"index": 1, "outputs": ["7"]}',
            ":1: no column input, or context and question, or messages; its columns are index, out",
        ),
        (b'{"index": 1, "input": "Q?"}', ":1: no column outputs, or answer; its columns are index"),
        (jsonl({**NVIDIA, "index": "1"}), ":1: index is '1'; it should be a valid integer"),
        (jsonl({**NVIDIA, "index": True}), ":1: index is True; it should be a valid integer"),
        (jsonl({**NVIDIA, "length": 3.5}), ":1: length is 3.5; it should be a valid integer"),
        (jsonl({**NVIDIA, "outputs": "7"}), ":1: outputs is '7'; it should be a valid list"),
        (jsonl({**NVIDIA, "outputs": []}), ":1: outputs is []; it needs 1 or more items"),
        (jsonl({**NVIDIA, "outputs": [7]}), ":1: outputs[0] is 7; it should be a valid string"),
        (jsonl({**NVIDIA, "outputs": [" "]}), ":1: outputs[0] is blank; write some text"),
    ],
)
def test_an_invalid_line_is_named(content: bytes | None, message: str, tmp_path: Path):
    path = tmp_path / "x.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.jsonl") as caught:
        read_ruler_jsonl(path)
    assert str(caught.value).removeprefix(str(path)).startswith(message)
    assert "\n" not in str(caught.value)
