"""Scores of one system's answers to one task at one length."""

from typing import TYPE_CHECKING

import polars as pl

from needlework.pipeline.stage import stage
from needlework.scoring.score import score, unscored
from needlework.tables import skipped

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    samples, predictions = pl.read_parquet(s.input.samples), pl.read_parquet(s.input.predictions)
    # A cell that was not run has no answers to score.
    is_run = skipped.read([s.input.predictions]).is_empty()
    scores = (
        score(samples, predictions, s.params.metric, s.params.has_depths) if is_run else unscored()
    )
    scores.write_parquet(s.output.scores)
