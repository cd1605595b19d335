"""Read samples in RULER's JSON lines, as NVIDIA's scripts or lm-evaluation-harness write them."""

import json
from pathlib import Path
from typing import Any


def read_ruler_jsonl(path: str | Path) -> list[dict]:
    """The rows of a file, in its order; empty lines are left out.

    Returns:
        Rows with the keys of the file, among them index (int), input (str) and outputs (list of
        str), where given length and max_length (tokens, int), and answer_prefix (str): empty where
        the input ends with it already; lm-evaluation-harness calls it gen_prefix and leaves out
        the space before it, which is put there.

    Raises:
        ValueError: there is no such file, it is empty or not UTF-8, or a line is not such a row;
            the line and the key at fault are named.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; name one in RULER's JSON lines") from None
    rows = [
        _row(line, f"{path}:{number}")
        for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1)
        if line.strip()
    ]
    if not rows:
        raise ValueError(f"{path}: empty; name one in RULER's JSON lines")
    return rows


def _row(line: bytes, where: str) -> dict:
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 at byte {error.start} of the line") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: not an object; write one with index, input and outputs")
    for key, required in (("index", True), ("length", False), ("max_length", False)):
        if (required or key in row) and type(row.get(key)) is not int:
            raise _wrong(where, row, key, "a whole number")
    for key, required in (("input", True), ("answer_prefix", False), ("gen_prefix", False)):
        if (required or key in row) and not isinstance(row.get(key), str):
            raise _wrong(where, row, key, "text")
    outputs = row.get("outputs")
    if not (isinstance(outputs, list) and outputs and all(_is_answer(o) for o in outputs)):
        raise _wrong(where, row, "outputs", "a list of answers, each of them text")
    prefix = row.pop("gen_prefix", "")
    if prefix and not prefix[0].isspace() and not row["input"][-1:].isspace():
        prefix = f" {prefix}"
    return {"answer_prefix": prefix, **row}


def _is_answer(value: Any) -> bool:
    # An empty one would be found in any answer.
    return isinstance(value, str) and value.strip() != ""


def _wrong(where: str, row: dict, key: str, wanted: str) -> ValueError:
    found = f"is {row[key]!r:.40}" if key in row else "is not there"
    return ValueError(f"{where}: {key} {found}; it should be {wanted}")
