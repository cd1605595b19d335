"""Packed text: every token once and in order, each document with its end, nothing held."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from datasets import Dataset
from support.paths import PYTHONPATH
from support.toy_tokenizers import TINY, merging_newlines

from needlework.config.tasks import TextExamples
from needlework.finetune_data.text import examples
from needlework.sources import texts
from needlework.tasks.prompts.tokenizer import end_token, open_tokenizer

TEXTS = [
    f"The pass key is {n}. Remember it, or the grass is green. " * (n % 3 + 1) for n in range(40)
]
END = 7


def made(path: Path, tokenizer, count, length, end=END, **keys) -> list[list[int]]:
    config = TextExamples(path=str(path), examples=count, length=length, **keys)
    table = examples(config, tokenizer, 0, end=end)
    assert table.schema == {"input_ids": pl.List(pl.Int32)}
    return table["input_ids"].to_list()


def joined(tokenizer, texts=TEXTS, end=END) -> list[int]:
    """All documents, the slow way."""
    found = []
    for text in texts:
        ids = tokenizer.encode(text).ids
        found += ids if ids[-1] == end else [*ids, end]
    return found


WRITERS = {
    "rows.parquet": pl.DataFrame({"text": TEXTS}).write_parquet,
    "rows.jsonl": pl.DataFrame({"text": TEXTS}).write_ndjson,
    "saved": lambda path: Dataset.from_dict({"text": TEXTS}).save_to_disk(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_rows_joined_are_the_documents_joined(name, tmp_path, tokenizer):
    WRITERS[name](tmp_path / name)
    whole = joined(tokenizer)
    most = len(whole) // 64
    assert most > 9
    rows = made(tmp_path / name, tokenizer, most, 64)
    assert [len(row) for row in rows] == [64] * most
    assert [token for row in rows for token in row] == whole[: 64 * most]
    assert made(tmp_path / name, tokenizer, 3, 64) == rows[:3]


def test_an_end_that_the_tokenizer_puts_is_not_put_twice(tmp_path):
    tokenizer = merging_newlines()
    WRITERS["rows.parquet"](tmp_path / "rows.parquet")
    (row,) = made(tmp_path / "rows.parquet", tokenizer, 1, 640, end=1)
    assert row == joined(tokenizer, end=1)[:640]
    assert all(row[i + 1] == 0 for i, token in enumerate(row[:-1]) if token == 1)


def test_lengths_take_turns_and_waste_nothing(tmp_path, byte_tokenizer):
    WRITERS["rows.parquet"](tmp_path / "rows.parquet")
    rows = made(tmp_path / "rows.parquet", byte_tokenizer, 5, [64, 100])
    assert [len(row) for row in rows] == [64, 100, 64, 100, 64]
    assert [t for row in rows for t in row] == joined(byte_tokenizer)[:392]


def test_a_text_file_is_one_document_and_a_folder_has_one_a_file(
    tmp_path, byte_tokenizer, metaspace_tokenizer, monkeypatch
):
    monkeypatch.setattr(texts, "_PART_BYTES", 4096)
    for n, text in enumerate(TEXTS[:8]):
        (tmp_path / f"{n}.txt").write_text(text)
    whole = joined(byte_tokenizer, TEXTS[:8])
    assert made(tmp_path, byte_tokenizer, 1, len(whole))[0] == whole
    # Longer than a part that is read at once: no end within.
    long = "The grass is green.\n\n" * 2000
    (tmp_path / "long.txt").write_text(long)
    whole = joined(byte_tokenizer, [long])
    assert made(tmp_path / "long.txt", byte_tokenizer, 1, len(whole))[0] == whole
    assert END not in whole[:-1]
    # And one beginning.
    (row,) = made(tmp_path / "long.txt", metaspace_tokenizer, 1, 8000)
    assert row.count(metaspace_tokenizer.token_to_id("<s>")) == 1


def test_too_little_text_tells_how_much_there_is(tmp_path, byte_tokenizer):
    path = tmp_path / "rows.parquet"
    WRITERS["rows.parquet"](path)
    most = len(joined(byte_tokenizer)) // 64
    with pytest.raises(
        ValueError, match=f"rows.parquet: its text fills {most} rows and 9999 are a"
    ):
        made(path, byte_tokenizer, 9999, 64)
    assert len(made(path, byte_tokenizer, most, 64)) == most
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(
        ValueError, match=r"empty\.txt: its text has 1 tokens, fewer than a row of le"
    ):
        made(tmp_path / "empty.txt", byte_tokenizer, 1, 64)
    with pytest.raises(ValueError, match="no column 'prose'; write one of text"):
        made(path, byte_tokenizer, 1, 64, column="prose")


def test_the_end_is_the_checkpoints(tmp_path):
    tokenizer = open_tokenizer(TINY)
    assert end_token(TINY) == tokenizer.token_to_id("</s>")
    shutil.copy(TINY / "tokenizer.json", tmp_path)
    told = tmp_path / "tokenizer_config.json"
    told.write_text(json.dumps({"eos_token": {"content": "<s>"}}))
    assert end_token(tmp_path) == tokenizer.token_to_id("<s>")
    for wrong, says in (
        ("{}", "eos_token is None, no token of the tokenizer; write one"),
        ('{"eos_token": "<end>"}', "eos_token is '<end>', no token of the tokenizer; write one"),
        ("{", "not to be read: Expecting"),
        ("[]", "not to be read: 'list' object"),
    ):
        told.write_text(wrong)
        with pytest.raises(ValueError, match=says) as caught:
            end_token(tmp_path)
        assert str(caught.value).startswith(str(told))


_PEAK = """
import resource, sys
from support.toy_tokenizers import byte_level
from needlework.config.tasks import TextExamples
from needlework.finetune_data.text import examples
tokenizer = byte_level()
config = TextExamples(path=sys.argv[1], examples=50, length=64)
import datasets
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
examples(config, tokenizer, 0, end=7)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_no_more_is_held_than_the_rows_take(tmp_path):
    """200 MB of text: what is read of it is a row group."""
    path = tmp_path / "large.parquet"
    text = "The grass is green. " * 1000
    table = pl.DataFrame({"n": range(10_000)}).select(pl.format("{} " + text, "n").alias("text"))
    table.write_parquet(path, row_group_size=100)
    assert table.estimated_size() > 190e6
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(path)],
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) * 1024 < 100e6
