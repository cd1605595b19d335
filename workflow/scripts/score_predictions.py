"""Score one system's answers."""

from typing import TYPE_CHECKING

import polars as pl
from pydantic import TypeAdapter

from needlework.config.models.thought import ThoughtFormat
from needlework.pipeline.stage import stage
from needlework.scoring.score import SAMPLE_COLUMNS, empty_scores, score

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    predictions = pl.read_parquet(s.input.predictions)
    thought = TypeAdapter(ThoughtFormat | None).validate_python(s.params.thought_format)
    tables = [empty_scores()]
    for path in s.input.samples:
        samples = pl.read_parquet(path, columns=SAMPLE_COLUMNS)
        task, length = samples.row(0)[:2]
        answers = predictions.filter(task=task, length=length)
        # A cell without answers was skipped.
        if len(answers):
            metric, has_depths = s.params.metrics[task], task in s.params.tasks_with_depths
            tables.append(score(samples, answers, metric, has_depths, thought))
    pl.concat(tables).write_parquet(s.output.scores)
