"""Training rows from a table of the user's: read verbatim, from every format."""

import re
from pathlib import Path

import polars as pl
import pytest
from datasets import Dataset
from support.paths import TINY
from transformers import PreTrainedTokenizerFast

from needlework.config.finetune_data import RowExamples
from needlework.finetune_data.rows import make_examples
from needlework.sources.added_tokens import prompt_tokenizer
from needlework.tasks.prompts.tokenizer import open_tokenizer
from needlework.training.finetune import encode

ROWS = pl.DataFrame(
    {
        "prompt": ["What is the pass key?", "Tell me:\nwho?"],
        "answer": [" 271", " Ada\nLovelace"],
        "n": [1, 2],
    }
)


def make_rows(path: Path, tokenizer, **keys) -> pl.DataFrame:
    return make_examples(RowExamples(path=str(path), **keys), tokenizer, 0)


def folder_of_parquet(path: Path) -> None:
    path.mkdir()
    ROWS[:1].write_parquet(path / "train-0.parquet")
    ROWS[1:].write_parquet(path / "train-1.parquet")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.parquet", ROWS.write_parquet),
        ("rows.jsonl", ROWS.write_ndjson),
        ("saved", lambda path: Dataset.from_dict(ROWS.to_dict(as_series=False)).save_to_disk(path)),
        ("folder", folder_of_parquet),
    ],
)
def test_rows_equal_the_table(name, write, tmp_path, tokenizer):
    write(tmp_path / name)
    table = make_rows(tmp_path / name, tokenizer)
    assert table.select("prompt", "answer").equals(ROWS.select("prompt", "answer"))
    for prompt, answer, size, _ in table.iter_rows():
        parts = [
            prompt_tokenizer(tokenizer).encode(prompt).ids,
            tokenizer.encode(answer, add_special_tokens=False).ids,
        ]
        assert size == len(parts[0]) + len(parts[1]) + 1
    assert make_rows(tmp_path / name, tokenizer, examples=1).equals(table[:1])


def test_columns_can_have_other_names(tmp_path, byte_tokenizer):
    path = tmp_path / "rows.parquet"
    ROWS.rename({"prompt": "question", "answer": "reply"}).write_parquet(path)
    table = make_rows(path, byte_tokenizer, prompt_column="question", answer_column="reply")
    assert table["answer"].to_list() == [" 271", " Ada\nLovelace"]
    with pytest.raises(ValueError, match="no column 'prompt' or 'answer'; write one of question, "):
        make_rows(path, byte_tokenizer)
    with pytest.raises(ValueError, match=r"no column 'answer'; write one of question, reply, n$"):
        make_rows(path, byte_tokenizer, prompt_column="question")


@pytest.mark.parametrize(
    ("change", "keys", "message"),
    [
        ({"prompt": ["a", "  "]}, {}, "column 'prompt': row 1 holds '  '; write some text"),
        ({"answer": ["a", None]}, {}, "column 'answer': row 1 holds None; write some text"),
        (
            {},
            {"answer_column": "n"},
            "column 'n': row 0 holds 1; write some text, or the name of an",
        ),
        (
            {},
            {"examples": 3},
            "has 2 rows, fewer than examples: 3; write examples: 2, or the path of",
        ),
        (
            {"prompt": ["a", "b " * 100]},
            {"length": 64},
            r"row 1 has \d\d\d tokens with answer and end-of-text, more than length: 64; write len",
        ),
    ],
)
def test_an_invalid_table_gives_a_one_line_error(change, keys, message, tmp_path, byte_tokenizer):
    path = tmp_path / "rows.parquet"
    ROWS.with_columns(**{k: pl.Series(v) for k, v in change.items()}).write_parquet(path)
    with pytest.raises(ValueError, match=message) as caught:
        make_rows(path, byte_tokenizer, **keys)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_sources_without_rows_are_rejected(tmp_path, byte_tokenizer):
    (tmp_path / "notes.txt").write_text("no table")
    for path in (tmp_path / "notes.txt", tmp_path):
        message = re.escape(
            f"{path}: plain text; write the path of a table with columns prompt and answer"
        )
        with pytest.raises(ValueError, match=message):
            make_rows(path, byte_tokenizer)
    ROWS[:0].write_parquet(tmp_path / "empty.parquet")
    with pytest.raises(
        ValueError, match=r"has 0 rows, fewer than examples: 1; write examples: null"
    ):
        make_rows(tmp_path / "empty.parquet", byte_tokenizer)


@pytest.mark.parametrize(("how", "tokens"), [("text", 0), ("allow", 2)])
def test_special_tokens_in_rows_are_text_unless_allowed(how, tokens, tmp_path, caplog):
    path, tokenizer = tmp_path / "rows.jsonl", open_tokenizer(TINY)
    rows = pl.DataFrame({"prompt": ["What </s> is it?"], "answer": [" red </s>"]})
    rows.write_ndjson(path)
    table = make_rows(path, tokenizer, special_tokens=how)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    ((prompt, answer),) = encode(fast, table, 64)
    assert table["context_length"].to_list() == [len(prompt) + len(answer)]
    assert [*prompt, *answer].count(fast.eos_token_id) == tokens + 1
    assert "rows.jsonl: spells special tokens (</s> 2 times), encoded as" in caplog.text
    assert encode(fast, table.drop("special_tokens"), 64) == encode(
        fast, make_rows(path, tokenizer), 64
    )
