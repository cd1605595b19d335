"""Aggregate scores with intervals: by cell, by depth over all lengths, and by needle."""

from typing import TYPE_CHECKING

import polars as pl

from needlework.pipeline.stage import stage
from needlework.scoring.by_needle import by_needle
from needlework.scoring.summarize import pool_lengths, summarize
from needlework.tables import skipped
from needlework.tables.columns import concat

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    scores = pl.read_parquet(s.input.scores)
    predictions = concat([pl.read_parquet(path) for path in s.input.predictions])
    summary = summarize(scores, predictions, skipped.read(s.input.predictions))
    needles = by_needle(scores)
    summary.write_parquet(s.output.summary)
    summary.write_csv(s.output.csv, float_precision=6)
    pool_lengths(summary).write_parquet(s.output.depths)
    needles.write_parquet(s.output.needles)
    needles.write_csv(s.output.needles_csv, float_precision=6)
