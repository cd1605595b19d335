"""Score one system's answers to one task at one length."""

from typing import TYPE_CHECKING

import polars as pl
from pydantic import TypeAdapter

from needlework.config.models.thought import ThoughtFormat
from needlework.pipeline.stage import stage
from needlework.scoring.score import empty_scores, score
from needlework.tables import skipped

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    samples, predictions = pl.read_parquet(s.input.samples), pl.read_parquet(s.input.predictions)
    thought = TypeAdapter(ThoughtFormat | None).validate_python(s.params.thought_format)
    was_run = skipped.read([s.input.predictions]).is_empty()
    scores = (
        score(samples, predictions, s.params.metric, s.params.has_depths, thought)
        if was_run
        else empty_scores()
    )
    scores.write_parquet(s.output.scores)
