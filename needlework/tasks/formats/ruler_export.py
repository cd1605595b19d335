"""Export samples and answers as NVIDIA's RULER scripts write them."""

import json
from pathlib import Path
from typing import Any

import polars as pl

from needlework.config.models.thought import ThoughtFormat
from needlework.reasoning.formats import strip_reasoning
from needlework.tasks.sample_table import iterate_samples

_COLUMNS = (
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
)
SampleKey = tuple[str, int, int]
"""Task, length, sample."""


def export_ruler(
    samples: str | Path,
    predictions: str | Path,
    data: str | Path,
    answers: str | Path,
    thought: ThoughtFormat | None = None,
) -> None:
    """Write one system's answers to one task at one length in RULER's JSON lines.

    `data` matches the output of RULER's data/prepare.py (validation.jsonl). `answers` matches the
    output of its pred/call_api.py ({task}.jsonl), which its eval/evaluate.py reads. In both, index
    is the sample number, input is context and question without chat template and answer prefix,
    and length is the number of tokens of the whole prompt plus room for the answer. Samples are
    streamed.

    Args:
        samples: table of samples, see tasks.sample_table.
        predictions: table with their answers, columns task, length, sample, prediction; rows of
            other tasks and lengths are left out.
        thought: format of the reasoning, which is left out; None: any known one.

    Raises:
        ValueError: the tables do not hold the same samples.
    """
    unmatched = _read_predictions(predictions, samples)
    with (
        Path(data).open("w", encoding="utf-8", newline="\n") as data_file,
        Path(answers).open("w", encoding="utf-8", newline="\n") as answer_file,
    ):
        for sample in iterate_samples(samples, _COLUMNS):
            key = sample["task"], sample["length"], sample["sample"]
            prediction = unmatched.pop(key, None)
            if prediction is None:
                raise ValueError(f"{predictions}: no answer to {_describe(key)}; evaluate it again")
            data_file.write(f"{json.dumps(_data_row(sample))}\n")
            answer_file.write(
                f"{json.dumps(_answer_row(sample, strip_reasoning(prediction, thought)))}\n"
            )
    if unmatched:
        raise ValueError(f"{samples}: no sample for the answer to {_describe(min(unmatched))}")


def _data_row(sample: dict[str, Any]) -> dict[str, Any]:
    length = sample["tokens"] + sample["max_new_tokens"]
    row = {
        "index": sample["sample"],
        "input": sample["context"] + sample["question"],
        "outputs": sample["outputs"],
        "length": length,
        "length_w_model_temp": length,
        "answer_prefix": sample["answer_prefix"],
    }
    if sample["needles"]:
        row["token_position_answer"] = sample["needles"][0]["token_position"]
    return row


def _answer_row(sample: dict[str, Any], prediction: str) -> dict[str, Any]:
    return {
        "index": sample["sample"],
        "pred": prediction,
        "input": sample["context"] + sample["question"],
        "outputs": sample["outputs"],
        "others": {},
        "truncation": -1,
        "length": sample["tokens"] + sample["max_new_tokens"],
    }


def _read_predictions(path: str | Path, samples: str | Path) -> dict[SampleKey, str | None]:
    """Predictions of the tasks and lengths of `samples`."""
    predictions: dict[SampleKey, str | None] = {}
    cells = pl.read_parquet(samples, columns=["task", "length"]).unique()
    table = pl.read_parquet(path, columns=["task", "length", "sample", "prediction"])
    table = table.join(cells, on=["task", "length"], how="semi", maintain_order="left")
    for task, length, sample, prediction in table.iter_rows():
        key = task, length, sample
        if key in predictions:
            raise ValueError(f"{path}: two answers to {_describe(key)}; evaluate it again")
        predictions[key] = prediction
    return predictions


def _describe(key: SampleKey) -> str:
    return "task {}, length {}, sample {}".format(*key)
