"""Texts of a source: every format returns what was written, every error takes one line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from datasets import Dataset, DatasetDict
from support.paths import ESSAYS, ROOT

from needlework.sources.texts import read_texts

pytestmark = pytest.mark.slow

ROWS = ["First text.", "Zweiter Text: äöü, 文.", "  ", "Third,\nof two lines."]
READ = [row for row in ROWS if row.strip()]
TABLE = pl.DataFrame({"n": range(4), "text": ROWS, "other": list("abcd")})
WRITERS = {
    "parquet": TABLE.write_parquet,
    "jsonl": TABLE.write_ndjson,
    "csv": TABLE.write_csv,
    "json": lambda path: path.write_text(json.dumps(TABLE.to_dicts())),
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_table_returns_its_column(suffix: str, tmp_path: Path):
    WRITERS[suffix](path := tmp_path / f"table.{suffix}")
    assert list(read_texts(path)) == READ
    assert list(read_texts(path, column="other", split="whatever")) == list("abcd")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_folder_of_tables_returns_the_split_in_order(suffix: str, tmp_path: Path):
    for name, column in [("train-1", ["c"]), ("train-0", ["a", "b"]), ("test-0", ["d"])]:
        table = pl.DataFrame({"text": column})
        write = table.write_parquet if suffix == "parquet" else table.write_ndjson
        write(tmp_path / f"{name}.{suffix}")
    (tmp_path / "README.md").write_text("# About these tables")
    before = sorted(tmp_path.rglob("*"))
    assert list(read_texts(tmp_path)) == ["a", "b", "c"]
    assert list(read_texts(tmp_path, split="test")) == ["d"]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_saved_dataset_returns_the_split(tmp_path: Path):
    saved = Dataset.from_dict({"text": ROWS})
    saved.save_to_disk(tmp_path / "one")
    DatasetDict({"train": saved, "test": Dataset.from_dict({"text": ["d"]})}).save_to_disk(
        tmp_path / "several"
    )
    before = sorted(tmp_path.rglob("*"))
    assert list(read_texts(tmp_path / "one")) == READ
    assert list(read_texts(tmp_path / "several")) == READ
    assert list(read_texts(tmp_path / "several", split="test")) == ["d"]
    assert sorted(tmp_path.rglob("*")) == before


def test_text_files_are_sorted_by_path(tmp_path: Path):
    for name in ("b.txt", "a/z.md", "a.TXT", ".hidden.txt", ".git/x.txt", "notes.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    read = list(read_texts(tmp_path))
    assert read == [f"text of {name}" for name in ("a/z.md", "a.TXT", "b.txt")]
    assert list(read_texts(ESSAYS)) == [file.read_text() for file in sorted(ESSAYS.iterdir())]


def test_a_byte_order_mark_is_removed(tmp_path: Path):
    (path := tmp_path / "a.txt").write_bytes("\ufeffA text.".encode())
    assert list(read_texts(path)) == ["A text."]


@pytest.mark.parametrize("gap", ["\n\n", "\r\n\r\n", "\n", " "])
def test_parts_of_a_long_file_join_to_the_file(gap: str, tmp_path: Path):
    whole = gap.join(f"Absatz {i} über {'wörter ' * 20}".strip() for i in range(60_000))
    (path := tmp_path / "long.txt").write_bytes(whole.encode())
    parts = list(read_texts(path))
    assert len(parts) == len(whole.encode()) // (4 * 2**20) + 1
    assert len(parts) > 1
    assert "".join(parts) == whole
    assert all(part.lstrip().startswith("Absatz" if gap != " " else "") for part in parts)


def test_files_are_read_lazily(tmp_path: Path):
    (tmp_path / "a.txt").write_text("A text.")
    (tmp_path / "b.txt").write_bytes(b"\xff")
    reading = read_texts(tmp_path)
    assert next(reading) == "A text."
    with pytest.raises(ValueError, match="not UTF-8"):
        next(reading)


def write(files: dict[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("files", "source", "options", "message"),
    [
        ({}, "none.txt", {}, "none.txt: no such file or folder; write the path of an existing"),
        ({"x/a.pdf": b"a"}, "x", {}, "x: a folder without texts; add files that end in one of"),
        (
            {"a.pdf": b"a"},
            "a.pdf",
            {},
            "a.pdf: neither a text nor a table; write the path of a file",
        ),
        ({"a.txt": b""}, "a.txt", {}, "a.txt: contains no text; write the path of a source"),
        ({"x/a.txt": b"\n"}, "x", {}, "x: contains no text; write the path of a source"),
        ({"a.jsonl": b""}, "a.jsonl", {}, "a.jsonl: empty; write the path of a source with text"),
        ({"a.csv": b"text\n"}, "a.csv", {}, "a.csv: contains no text; write the path of a source"),
        ({"a.txt": "größe".encode("latin-1")}, "a.txt", {}, "a.txt: not UTF-8 at byte 2; save it"),
        (
            {"a.txt": b"x" * (4 * 2**20 - 1) + "ä".encode() + b"y\xc3"},
            "a.txt",
            {},
            f"a.txt: not UTF-8 at byte {4 * 2**20 + 2}; save it",
        ),
        ({"a.csv": b"text,n\nab,1\n\xff,2\n"}, "a.csv", {}, "a.csv: not UTF-8 at byte 12; save it"),
        ({"a.jsonl": b'{"text": "\xff"}\n'}, "a.jsonl", {}, "a.jsonl: not UTF-8 at byte 10; save"),
        ({"a.jsonl": b'{"text" "a"}\n'}, "a.jsonl", {}, "a.jsonl: cannot be read as json: "),
        ({"a.parquet": b"PAR1"}, "a.parquet", {}, "a.parquet: cannot be read as parquet: "),
        (
            {"a.jsonl": b'{"n": 1, "body": "a"}\n'},
            "a.jsonl",
            {},
            "a.jsonl: no column 'text'; write one of n, body",
        ),
        (
            {"a.jsonl": b'{"n": 1, "body": "a"}\n'},
            "a.jsonl",
            {"column": "n"},
            "a.jsonl: column 'n' is not text: row 0 holds 1; write the name of the column",
        ),
        (
            {"x/train.csv": b"text\na\n", "x/test.csv": b"text\na\n"},
            "x",
            {"split": "dev"},
            "x: no split 'dev'; write one of train, test",
        ),
        (
            {"x/a.txt": b"a", "x/b.csv": b"text\na\n"},
            "x",
            {},
            "x: has files of several kinds, such as a.txt and b.csv; write the path of one",
        ),
        ({"x/state.json": b"{}"}, "x", {}, "x: cannot be read as a saved dataset: "),
    ],
)
def test_an_invalid_source_gives_a_one_line_error(files, source, options, message, tmp_path: Path):
    write(files, tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        list(read_texts(tmp_path / source, **options))
    assert str(caught.value).startswith(f"{tmp_path}/{message}")
    assert "\n" not in str(caught.value)


def test_a_saved_dataset_without_the_split_is_rejected(tmp_path: Path):
    DatasetDict({"dev": Dataset.from_dict({"text": ["a"]})}).save_to_disk(tmp_path / "x")
    with pytest.raises(ValueError, match=r"x: no split 'train'; write one of dev$"):
        list(read_texts(tmp_path / "x"))


def test_an_unreachable_hub_gives_a_one_line_error():
    code = "from needlework.sources.texts import read_texts\ntry: next(read_texts('owner/name'))\n"
    code += "except ValueError as error: print(error)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"HF_HUB_OFFLINE": "1", "HOME": "/nonexistent", "PATH": "/usr/bin:/bin"},
        cwd=ROOT,
    )
    expected = "owner/name: no such folder, and the hub does not provide it: "
    assert result.stdout.startswith(expected)
    assert result.stdout.count("\n") == 1
