"""Packed text: every token once and in order, each document ended, bounded memory."""

import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from datasets import Dataset
from support.paths import PYTHONPATH
from support.toy_tokenizers import merging_newlines

from needlework.config.finetune_data import TextExamples
from needlework.finetune_data.text import make_examples
from needlework.sources import texts
from needlework.sources.added_tokens import prompt_tokenizer

pytestmark = pytest.mark.slow

TEXTS = [
    f"The pass key is {n}. Remember it, or the grass is green. " * (n % 3 + 1) for n in range(40)
]
END = 7


def make_rows(path: Path, tokenizer, count, length, end=END, **keys) -> list[list[int]]:
    config = TextExamples(path=str(path), examples=count, length=length, **keys)
    table = make_examples(config, tokenizer, 0, end=end)
    assert table.schema == {"input_ids": pl.List(pl.Int32)}
    return table["input_ids"].to_list()


def reference_ids(tokenizer, texts=TEXTS, end=END) -> list[int]:
    """Token ids of all documents, each tokenized separately."""
    joined = []
    for text in texts:
        ids = prompt_tokenizer(tokenizer).encode(text).ids
        joined += ids if ids[-1] == end else [*ids, end]
    return joined


WRITERS = {
    "rows.parquet": pl.DataFrame({"text": TEXTS}).write_parquet,
    "rows.jsonl": pl.DataFrame({"text": TEXTS}).write_ndjson,
    "saved": lambda path: Dataset.from_dict({"text": TEXTS}).save_to_disk(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_joined_rows_equal_the_joined_documents(name, tmp_path, tokenizer):
    WRITERS[name](tmp_path / name)
    whole = reference_ids(tokenizer)
    full_rows = len(whole) // 64
    assert full_rows > 9
    rows = make_rows(tmp_path / name, tokenizer, full_rows, 64)
    assert [len(row) for row in rows] == [64] * full_rows
    assert [token for row in rows for token in row] == whole[: 64 * full_rows]
    assert make_rows(tmp_path / name, tokenizer, 3, 64) == rows[:3]


def test_does_not_repeat_an_end_token_that_the_tokenizer_adds(tmp_path):
    tokenizer = merging_newlines()
    WRITERS["rows.parquet"](tmp_path / "rows.parquet")
    (row,) = make_rows(tmp_path / "rows.parquet", tokenizer, 1, 640, end=1)
    assert row == reference_ids(tokenizer, end=1)[:640]
    assert all(row[i + 1] == 0 for i, token in enumerate(row[:-1]) if token == 1)


def test_lengths_alternate_without_losing_tokens(tmp_path, byte_tokenizer):
    WRITERS["rows.parquet"](tmp_path / "rows.parquet")
    rows = make_rows(tmp_path / "rows.parquet", byte_tokenizer, 5, [64, 100])
    assert [len(row) for row in rows] == [64, 100, 64, 100, 64]
    assert [t for row in rows for t in row] == reference_ids(byte_tokenizer)[:392]


def test_each_text_file_is_one_document(tmp_path, byte_tokenizer, metaspace_tokenizer, monkeypatch):
    monkeypatch.setattr(texts, "_PART_BYTES", 4096)
    for n, text in enumerate(TEXTS[:8]):
        (tmp_path / f"{n}.txt").write_text(text)
    whole = reference_ids(byte_tokenizer, TEXTS[:8])
    assert make_rows(tmp_path, byte_tokenizer, 1, len(whole))[0] == whole
    # A file longer than one read still has a single end token ...
    long = "The grass is green.\n\n" * 2000
    (tmp_path / "long.txt").write_text(long)
    whole = reference_ids(byte_tokenizer, [long])
    assert make_rows(tmp_path / "long.txt", byte_tokenizer, 1, len(whole))[0] == whole
    assert END not in whole[:-1]
    # ... and a single beginning.
    (row,) = make_rows(tmp_path / "long.txt", metaspace_tokenizer, 1, 8000)
    assert row.count(metaspace_tokenizer.token_to_id("<s>")) == 1


def test_error_says_how_many_rows_the_text_fills(tmp_path, byte_tokenizer):
    path = tmp_path / "rows.parquet"
    WRITERS["rows.parquet"](path)
    full_rows = len(reference_ids(byte_tokenizer)) // 64
    with pytest.raises(
        ValueError, match=f"rows.parquet: its text fills only {full_rows} of 9999 rows; wr"
    ):
        make_rows(path, byte_tokenizer, 9999, 64)
    assert len(make_rows(path, byte_tokenizer, full_rows, 64)) == full_rows
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(
        ValueError, match=r"empty\.txt: its text has 1 tokens, fewer than one row of l"
    ):
        make_rows(tmp_path / "empty.txt", byte_tokenizer, 1, 64)
    with pytest.raises(ValueError, match="no column 'prose'; write one of text"):
        make_rows(path, byte_tokenizer, 1, 64, column="prose")


_PEAK = """
import resource, sys
from support.toy_tokenizers import byte_level
from needlework.config.finetune_data import TextExamples
from needlework.finetune_data.text import make_examples
tokenizer = byte_level()
config = TextExamples(path=sys.argv[1], examples=50, length=64)
import datasets
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
make_examples(config, tokenizer, 0, end=7)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_text(tmp_path):
    """Of 200 MB of text only one row group is read."""
    path = tmp_path / "large.parquet"
    text = "The grass is green. " * 1000
    table = pl.DataFrame({"n": range(10_000)}).select(pl.format("{} " + text, "n").alias("text"))
    table.write_parquet(path, row_group_size=100)
    assert table.estimated_size() > 190e6
    result = subprocess.run(
        [sys.executable, "-c", _PEAK, str(path)],
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(result.stdout) * 1024 < 100e6


def test_special_tokens_in_text_are_text_unless_allowed(tmp_path, caplog):
    tokenizer, path = merging_newlines(), tmp_path / "a.txt"
    path.write_text("The end.</s> It goes on. " * 20)
    end = tokenizer.token_to_id("</s>")
    for how, found in (("text", 0), ("allow", 1)):
        (row,) = make_rows(path, tokenizer, 1, 64, end=end, special_tokens=how)
        assert (end in row) == found
    assert "a.txt: spells special tokens (</s> 20 times), encoded as text" in caplog.text
