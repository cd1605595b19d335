"""Samples, answers and rows in others' formats: NVIDIA's RULER, kvpress, `datasets`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from needlework.reasoning.tags import strip_reasoning

KVPRESS = pa.schema(
    {
        "context": pa.string(),
        "question": pa.string(),
        "answer_prefix": pa.string(),
        "answer": pa.list_(pa.string()),
        "max_new_tokens": pa.int64(),
        "task": pa.string(),
    }
)
"""Columns of a table that kvpress' evaluation reads."""
_SAMPLE = [
    "task",
    "length",
    "sample",
    "context",
    "question",
    "answer_prefix",
    "outputs",
    "needles",
    "tokens",
    "max_new_tokens",
]


def export_ruler(
    samples: str | Path, predictions: str | Path, data: str | Path, answers: str | Path
) -> None:
    """Write one system's answers to one task at one length as NVIDIA's RULER scripts do.

    `data` is what its data/prepare.py writes (validation.jsonl), `answers` what its
    pred/call_api.py does ({task}.jsonl) and its eval/evaluate.py reads. In both, index is the
    sample's number, input is context and question without template or answer prefix, and length is
    that of the whole prompt with room for the answer, in tokens. Samples are read and written one
    after the other.

    Args:
        samples: table of samples, see tasks.generate.
        predictions: table of answers to them, columns task, length, sample, prediction.

    Raises:
        ValueError: the two tables are not of the same samples.
    """
    found = _predictions(predictions)
    with (
        Path(data).open("w", encoding="utf-8", newline="\n") as data_lines,
        Path(answers).open("w", encoding="utf-8", newline="\n") as answer_lines,
    ):
        for sample in _rows(samples):
            key = sample["task"], sample["length"], sample["sample"]
            if found.get(key) is None:
                raise ValueError(f"{predictions}: no answer to {_named(key)}; evaluate it again")
            length = sample["tokens"] + sample["max_new_tokens"]
            asked = {
                "index": sample["sample"],
                "input": sample["context"] + sample["question"],
                "outputs": sample["outputs"],
                "length": length,
                "length_w_model_temp": length,
                "answer_prefix": sample["answer_prefix"],
            }
            if sample["needles"]:
                asked["token_position_answer"] = sample["needles"][0]["token_position"]
            answer = {
                "index": asked["index"],
                "pred": strip_reasoning(found.pop(key)),
                "input": asked["input"],
                "outputs": asked["outputs"],
                "others": {},
                "truncation": -1,
                "length": length,
            }
            data_lines.write(f"{json.dumps(asked)}\n")
            answer_lines.write(f"{json.dumps(answer)}\n")
    if found:
        raise ValueError(f"{samples}: no sample for the answer to {_named(next(iter(found)))}")


def export_kvpress(samples: str | Path, table: str | Path) -> None:
    """Write the samples of one task at one length as a Parquet table, columns as in `KVPRESS`.

    Where only such tables lie in folders named by their length, as test-{task}.parquet, kvpress'
    evaluation finds them: `load_dataset(folder, data_dir=length, split="test")`. Beside records of
    provenance they have to be named: `load_dataset("parquet", data_files="{length}/*.parquet")`.
    """
    with pq.ParquetWriter(table, KVPRESS, compression="zstd") as writer:
        for sample in _rows(samples):
            row = {name: sample[name] for name in KVPRESS.names if name != "answer"}
            row["answer"] = sample["outputs"]
            writer.write_table(pa.Table.from_pylist([row], KVPRESS))


def export_dataset(rows: str | Path, folder: str | Path) -> None:
    """Write a table of rows to train on as a folder that `datasets.load_from_disk` opens."""
    # It takes a second to import.
    from datasets import Dataset

    Dataset(pq.read_table(rows)).save_to_disk(folder, num_shards=1)


def _rows(samples: str | Path) -> Iterator[dict[str, Any]]:
    """Samples one after the other: those of long prompts do not fit in memory together."""
    with pq.ParquetFile(samples) as file:
        for batch in file.iter_batches(batch_size=1, columns=_SAMPLE):
            yield from batch.to_pylist()


def _predictions(path: str | Path) -> dict[tuple[str, int, int], str]:
    found: dict[tuple[str, int, int], str] = {}
    table = pl.read_parquet(path, columns=["task", "length", "sample", "prediction"])
    for *key, answer in table.iter_rows():
        if tuple(key) in found:
            raise ValueError(f"{path}: two answers to {_named(tuple(key))}; evaluate it again")
        found[tuple(key)] = answer
    return found


def _named(key: tuple[str, int, int]) -> str:
    return "task {}, length {}, sample {}".format(*key)
