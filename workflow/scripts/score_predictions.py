"""Scores of one system's answers to one task at one length."""

from typing import TYPE_CHECKING

import polars as pl

from needlework.scoring.score import score
from needlework.stage import stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    samples, predictions = pl.read_parquet(s.input.samples), pl.read_parquet(s.input.predictions)
    scores = score(samples, predictions, s.params.metric, s.params.has_depths)
    scores.write_parquet(s.output.scores)
