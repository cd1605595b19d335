"""Proof that what is evaluated is not trained on."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pyarrow.parquet as pq

CHECKED = {
    "data": pl.String,
    "task": pl.String,
    "length": pl.Int64,
    "samples": pl.Int64,
    "shared": pl.Int64,
}
_SHOWN = 3
_WORD = re.compile(r"\w+|[^\w\s]+")


class Shared(NamedTuple):
    """A sample, and a row that trains on it."""

    sample: int
    row: int
    outputs: list[str]


class TrainingRows:
    """Rows to train on, found by what they answer.

    Args:
        rows: columns prompt and answer.
    """

    def __init__(self, rows: pl.DataFrame):
        self._prompts = rows["prompt"]
        self._answers = [_words(answer) for answer in rows["answer"]]
        self._by_word: dict[str, list[int]] = defaultdict(list)
        for number, answer in enumerate(self._answers):
            for word in set(answer.split()):
                self._by_word[word].append(number)

    def shared(self, samples: str | Path) -> Iterator[Shared]:
        """The samples of a table that a row trains on: it asks the same question, word for word,
        and its answer holds each of the sample's outputs. A sample with no question of its own is
        asked by its whole context.
        """
        with pq.ParquetFile(samples) as file:
            for batch in file.iter_batches(
                batch_size=1, columns=["sample", "context", "question", "outputs"]
            ):
                (sample,) = batch.to_pylist()
                row = self._row(sample["question"] or sample["context"], sample["outputs"])
                if row is not None:
                    yield Shared(sample["sample"], row, sample["outputs"])

    def _row(self, question: str, outputs: list[str]) -> int | None:
        question, wanted = _words(question), [_words(output) for output in outputs]
        for row in self._by_word.get(wanted[0].split()[0], ()):
            if all(output in self._answers[row] for output in wanted) and (
                question in _words(self._prompts[row])
            ):
                return row
        return None


def check(data: str, rows: pl.DataFrame, samples: dict[tuple[str, int], str]) -> pl.DataFrame:
    """How many samples of each table the rows train on, columns as in `CHECKED`: none.

    Args:
        data: the name under finetune_data.
        rows: columns prompt and answer.
        samples: tables by task and length in tokens.

    Raises:
        ValueError: there are some; their outputs are named.
    """
    training, table, told = TrainingRows(rows), [], []
    for (task, length), path in samples.items():
        found = list(training.shared(path))
        count = pq.read_metadata(path).num_rows
        table.append((data, task, length, count, len(found)))
        told += [
            f"{', '.join(one.outputs)} (row {one.row}, sample {one.sample} of {task} at {length})"
            for one in found
        ]
    if told:
        more = f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
        raise ValueError(
            f"finetune_data.{data}: trains on what is evaluated: {'; '.join(told[:_SHOWN])}{more}; "
            "take those rows out, or evaluate other samples"
        )
    return pl.DataFrame(table, CHECKED, orient="row")


def _words(text: str) -> str:
    return f" {' '.join(_WORD.findall(text))} "
