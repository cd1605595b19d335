"""`needlework niah`: a cell of an experiment job at once, and what the model says."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import torch

from needlework.cli.inline_experiment import NAME, experiment_of
from needlework.config.attention import Attention
from needlework.config.models import Checkpoint
from needlework.evaluation.generation.answers import EvaluationJob, answer_samples
from needlework.scoring.intervals import wilson
from needlework.scoring.score import score
from needlework.tasks.generate import make_samples
from needlework.tasks.preflight import chat_frame_of, make_sampler, thinking_tokens_of
from needlework.tasks.prompts.tokenizer import open_tokenizer

_SHOWN = 100
"""Characters of a prompt on either side of a cut."""


def ask(
    model: dict[str, Any],
    attention: dict[str, Any] | None,
    task: dict[str, Any],
    *,
    length: int,
    depths: list[float],
    count: int,
    seed: int,
) -> Iterator[str]:
    """The lines that tell what `count` samples of a task were, what was said, and how often it was
    right: samples, answers and scores are those of an experiment with this one cell.

    Args:
        model, attention, task: keys as in an experiment file; see `experiment_of`.
        length: tokens of prompt and answer together.
        depths: percent; samples are spread evenly over them.

    Raises:
        ValueError: what the user has to mend.
    """
    experiment, attention = experiment_of(
        model,
        attention,
        tasks={NAME: task},
        lengths=[length],
        depths=depths,
        samples=count,
        seed=seed,
    )
    entry, task = experiment.models[NAME], experiment.tasks[NAME]
    tokenizer = open_tokenizer(entry.path, entry.revision)
    chat_frame, thinking_tokens = chat_frame_of(entry), thinking_tokens_of(entry)
    sampler = make_sampler(experiment, NAME, length, tokenizer, chat_frame, thinking_tokens)
    table, job = make_samples(sampler, count), _job(entry, attention, thinking_tokens)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "samples.parquet"
        table.write_parquet(path)
        predictions, measurements, _ = answer_samples(
            job, path, slice(None), torch.get_num_threads()
        )
    scores = score(table, predictions, task.metric, task.has_depths)
    told = (table, predictions["prediction"], measurements["prefill_seconds"], scores)
    yield from _told(*told, task.metric)
    if attention is not None and attention.converts_model:
        yield f"{entry.path} has no {attention.type} of its own: it was put on untrained"


def _job(entry: Checkpoint, attention: Attention | None, thinking_tokens: int) -> EvaluationJob:
    return EvaluationJob(
        system=NAME,
        model=entry.path,
        dtype=entry.dtype,
        revision=entry.revision,
        allow_pickle=entry.allow_pickle,
        opening=entry.opening.model_dump(mode="json", exclude={"dp"}),
        allow_extrapolation=entry.allow_extrapolation,
        attention=attention and attention.model_dump(mode="json"),
        thinking_tokens=thinking_tokens,
    )


def _told(
    samples: pl.DataFrame,
    predictions: pl.Series,
    seconds: pl.Series,
    scores: pl.DataFrame,
    metric: str,
) -> Iterator[str]:
    for number, row in enumerate(samples.iter_rows(named=True)):
        depth, right = scores["depth_percent"][number], scores[metric][number]
        at = "" if depth is None else f", needle at {depth:g} %"
        yield f"sample {number}: {row['tokens']:,} tokens{at}, prefill {seconds[number]:.2f} s"
        yield f"  input: {shortened(row['prompt'], row['outputs'][0])}"
        yield f"  generation: {predictions[number]!r}"
        yield f"  success: {'yes' if right == 1 else 'no' if right == 0 else f'{right:.2f}'}"
    mean, count = scores[metric].mean(), len(scores)
    low, high = wilson(mean, count)
    interval = f"{100 * low:.1f} to {100 * high:.1f} %"
    yield f"success: {100 * mean:.1f} % of {count} samples, 95 % interval {interval}"


def shortened(prompt: str, value: str) -> str:
    """The beginning of a prompt, what is around `value` in it, and its end, on one line."""
    at, end = prompt.find(value), len(prompt)
    spans = [(0, _SHOWN), (at - _SHOWN, at + len(value) + _SHOWN), (end - _SHOWN, end)]
    text, done = "", 0
    for start, stop in spans if at >= 0 else spans[::2]:
        start = max(start, done)
        if start > done:
            text += f" [... {start - done:,} characters ...] "
        text += prompt[start:stop]
        done = max(done, min(stop, end))
    return " ".join(text.split())
