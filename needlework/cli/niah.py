"""`needlework niah`: needle retrieval with one model, without an experiment file."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import torch

from needlework.cli.inline_experiment import NAME, inline_experiment
from needlework.config.attention.base import Attention
from needlework.config.models.base import LocalModel
from needlework.evaluation.answer_store import AnswerStore
from needlework.evaluation.cell import Cell
from needlework.evaluation.generation.job import EvaluationJob, answer_cells
from needlework.scoring.intervals import wilson
from needlework.scoring.score import score
from needlework.tasks.generate import make_samples
from needlework.tasks.preflight import chat_frame_of, make_sampler, thinking_tokens_of
from needlework.tasks.prompts.tokenizer import open_tokenizer

_SHOWN = 100
"""Characters of a prompt shown on either side of a cut."""


def evaluate(
    model: dict[str, Any],
    attention: dict[str, Any] | None,
    task: dict[str, Any],
    *,
    length: int,
    depths: list[float],
    count: int,
    seed: int,
) -> Iterator[str]:
    """Evaluate one cell, as an experiment would, and describe each sample and the accuracy.

    Args:
        model, attention, task: their keys in an experiment file; see `inline_experiment`.
        length: tokens of prompt and answer together.
        depths: percent of the context; samples are spread evenly over them.
        count: samples.

    Yields:
        Lines of text.

    Raises:
        ValueError: as `inline_experiment`, or the model cannot be opened or answer.
    """
    experiment, checkpoint, method = inline_experiment(
        model,
        attention,
        tasks={NAME: task},
        lengths=[length],
        depths=depths,
        samples=count,
        seed=seed,
    )
    chat_frame, thinking_tokens = chat_frame_of(checkpoint), thinking_tokens_of(checkpoint)
    spec = checkpoint.spec()
    tokenizer = open_tokenizer(spec.path, spec.revision)
    sampler = make_sampler(experiment, NAME, length, tokenizer, chat_frame, thinking_tokens)
    table = make_samples(sampler, count)
    job = _job(checkpoint, method, thinking_tokens)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "samples.parquet"
        table.write_parquet(path)
        store = AnswerStore(Path(folder) / "answers")
        tables, _ = answer_cells(job, [Cell(str(path))], store, torch.get_num_threads())
    parameters = experiment.tasks[NAME]
    scores = score(table, tables.predictions, parameters.metric, parameters.has_depths)
    yield from _describe(
        table,
        tables.predictions["prediction"],
        tables.measurements["prefill_seconds"],
        scores,
        parameters.metric,
    )
    if method is not None and method.converts_model:
        yield f"note: {spec.path} has no {method.type} attention; it was applied untrained"


def _job(model: LocalModel, attention: Attention | None, thinking_tokens: int) -> EvaluationJob:
    return EvaluationJob(
        system=NAME,
        model=model.spec(),
        allow_extrapolation=model.allow_extrapolation,
        attention=None if attention is None else attention.model_dump(mode="json"),
        thinking_tokens=thinking_tokens,
        thought_format=model.thoughts,
    )


def _describe(
    samples: pl.DataFrame,
    predictions: pl.Series,
    seconds: pl.Series,
    scores: pl.DataFrame,
    metric: str,
) -> Iterator[str]:
    for number, row in enumerate(samples.iter_rows(named=True)):
        depth, accuracy = scores["depth_percent"][number], scores[metric][number]
        place = "" if depth is None else f", needle at {depth:g} %"
        correct = "yes" if accuracy == 1 else "no" if accuracy == 0 else f"{accuracy:.2f}"
        yield f"sample {number}: {row['tokens']:,} tokens{place}, prefill {seconds[number]:.2f} s"
        yield f"  prompt: {shorten(row['prompt'], row['outputs'][0])}"
        yield f"  generation: {predictions[number]!r}"
        yield f"  correct: {correct}"
    mean, count = float(scores[metric].sum()) / len(scores), len(scores)
    low, high = wilson(mean, count)
    interval = f"{100 * low:.1f} to {100 * high:.1f} %"
    yield f"accuracy: {100 * mean:.1f} % of {count} samples, 95 % interval {interval}"


def shorten(prompt: str, value: str) -> str:
    """The start of a prompt, the text around `value`, and its end, on one line."""
    at, end = prompt.find(value), len(prompt)
    spans = [(0, _SHOWN), (at - _SHOWN, at + len(value) + _SHOWN), (end - _SHOWN, end)]
    text, position = "", 0
    for start, stop in spans if at >= 0 else spans[::2]:
        start = max(start, position)
        if start > position:
            text += f" [... {start - position:,} characters ...] "
        text += prompt[start:stop]
        position = max(position, min(stop, end))
    return " ".join(text.split())
