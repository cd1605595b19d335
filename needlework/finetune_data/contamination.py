"""Prove that training rows do not contain evaluation samples."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pyarrow.parquet as pq

from needlework.tasks.sample_table import iterate_samples

OVERLAP_SCHEMA = {
    "data": pl.String,
    "task": pl.String,
    "length": pl.Int64,
    "samples": pl.Int64,
    "shared": pl.Int64,
}
_MAX_SHOWN = 3
_WORD = re.compile(r"\w+|[^\w\s]+")


class Overlap(NamedTuple):
    """A sample and the training row that contains it."""

    sample: int
    row: int
    outputs: list[str]


class TrainingRows:
    """Training rows, indexed by the words of their answers.

    Args:
        rows: columns prompt and answer.
    """

    def __init__(self, rows: pl.DataFrame):
        self._prompts = rows["prompt"]
        self._answers = [_normalize(answer) for answer in rows["answer"]]
        self._rows_by_word: dict[str, list[int]] = defaultdict(list)
        for number, answer in enumerate(self._answers):
            for word in set(answer.split()):
                self._rows_by_word[word].append(number)

    def overlaps(self, samples: str | Path) -> Iterator[Overlap]:
        """Find the samples of a table that a row trains on.

        Such a row's prompt contains the sample's question word for word, and its answer contains
        all of the sample's outputs. The context serves as question if the sample has none.
        """
        for sample in iterate_samples(samples, ["sample", "context", "question", "outputs"]):
            row = self._find(sample["question"] or sample["context"], sample["outputs"])
            if row is not None:
                yield Overlap(sample["sample"], row, sample["outputs"])

    def _find(self, question: str, outputs: list[str]) -> int | None:
        question, wanted = _normalize(question), [_normalize(output) for output in outputs]
        for row in self._rows_by_word.get(wanted[0].split()[0], ()):
            if all(output in self._answers[row] for output in wanted) and (
                question in _normalize(self._prompts[row])
            ):
                return row
        return None


def check_contamination(
    data: str, rows: pl.DataFrame, samples: dict[tuple[str, int], str]
) -> pl.DataFrame:
    """Count the samples of each table that the rows train on; any such sample is an error.

    Args:
        data: name under finetune_data.
        rows: columns prompt and answer.
        samples: paths of sample tables by task and length in tokens.

    Returns:
        One row per table, columns as in OVERLAP_SCHEMA; `shared` is 0.

    Raises:
        ValueError: a row trains on a sample; the message names the outputs.
    """
    training, table, descriptions = TrainingRows(rows), [], []
    for (task, length), path in samples.items():
        overlaps = list(training.overlaps(path))
        table.append((data, task, length, pq.read_metadata(path).num_rows, len(overlaps)))
        descriptions += [
            f"{', '.join(overlap.outputs)} (row {overlap.row}, sample {overlap.sample} of {task} "
            f"at {length})"
            for overlap in overlaps
        ]
    if descriptions:
        hidden = len(descriptions) - _MAX_SHOWN
        more = f" and {hidden} more" if hidden > 0 else ""
        raise ValueError(
            f"finetune_data.{data}: contains evaluation samples: "
            f"{'; '.join(descriptions[:_MAX_SHOWN])}{more}; "
            "remove these rows, or evaluate other samples"
        )
    return pl.DataFrame(table, OVERLAP_SCHEMA, orient="row")


def _normalize(text: str) -> str:
    return f" {' '.join(_WORD.findall(text))} "
