"""Question sets and RULER samples in the formats of the hub."""

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from needlework.tasks.formats.question_sets import read_hotpotqa, read_squad
from needlework.tasks.formats.ruler_files import read_ruler_jsonl

HOTPOT = {
    "question": "Which one?",
    "answer": "the second",
    "supporting_facts": {"title": ["B"], "sent_id": [0]},
    "context": {"title": ["A", "B"], "sentences": [["a. ", "b."], ["c."]]},
}
SQUAD = {
    "title": "T",
    "context": "It was 1970.",
    "question": "When?",
    "answers": {"text": ["1970"]},
}
SUFFIXES = (".parquet", ".jsonl", ".json", ".jsonl.gz", ".json.gz")


def save(folder: Path, rows: list[dict], suffix: str) -> Path:
    path = folder / f"set{suffix}"
    if suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(path)
        return path
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    content = (lines if "jsonl" in suffix else json.dumps(rows)).encode()
    path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_question_sets_are_read_in_every_format(tmp_path: Path, suffix: str):
    hotpot = read_hotpotqa(save(tmp_path, [HOTPOT], suffix))
    assert hotpot.documents == ["A\na. b.", "B\nc."]
    assert hotpot.questions[0][:3] == ("Which one?", ("the second",), (1,))
    squad = read_squad(save(tmp_path, [SQUAD], suffix))
    assert squad.documents == ["It was 1970."]
    assert squad.questions[0][:3] == ("When?", ("1970",), (0,))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_ruler_samples_are_read_in_every_format(tmp_path: Path, suffix: str):
    (row,) = read_ruler_jsonl(save(tmp_path, [{"input": "Q?", "outputs": ["7"]}], suffix))
    assert (row.index, row.input, row.outputs) == (0, "Q?", ["7"])
    kvpress = {"context": "It is 7.", "question": "Which?", "answer_prefix": " It", "answer": ["7"]}
    (row,) = read_ruler_jsonl(save(tmp_path, [kvpress], suffix))
    assert (row.input, row.prefix, row.outputs) == ("It is 7.\nWhich?", " It", ["7"])


def test_a_missing_column_is_named(tmp_path: Path):
    path = save(tmp_path, [{"prompt": "Q?", "outputs": ["7"]}], ".parquet")
    with pytest.raises(
        ValueError, match=r"row 1: no column input, or context and question, or messages; its"
    ):
        read_ruler_jsonl(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_names_the_missing_column(tmp_path: Path, suffix: str):
    place = ":1" if "jsonl" in suffix else ": row 1"
    for read, row, missing in (
        (read_ruler_jsonl, {"input": "Q?", "output": "7"}, "outputs, or answer"),
        (read_squad, {"context": "It was 1970.", "question": "When?"}, "data, or context and"),
        (read_hotpotqa, {"question": "Q?", "answer": "A"}, "question and answer and supporting"),
    ):
        path = save(tmp_path, [row], suffix)
        with pytest.raises(ValueError, match=f"{place}: no column {missing}") as caught:
            read(path)
        assert f"its columns are {', '.join(row)}" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_lines_are_read_from_a_file_with_another_name(tmp_path: Path):
    rows = [{"input": f"Q{i}?", "outputs": ["7"]} for i in range(3)]
    for name in ("validation", "set.json", "set.txt"):
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
        assert [row.input for row in read_ruler_jsonl(tmp_path / name)] == ["Q0?", "Q1?", "Q2?"]
