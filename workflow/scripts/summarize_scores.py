"""Accuracy with intervals of every cell, and of every needle, as Parquet and CSV."""

from typing import TYPE_CHECKING

import polars as pl

from needlework.pipeline.stage import stage
from needlework.scoring.by_needle import by_needle
from needlework.scoring.summarize import over_lengths, summarize
from needlework.tables import skipped

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    scores = pl.read_parquet(s.input.scores)
    # Tables of an API have columns that others lack.
    predictions = pl.concat(map(pl.read_parquet, s.input.predictions), how="diagonal")
    missing = skipped.read(s.input.predictions)
    summary, needles = summarize(scores, predictions, missing), by_needle(scores)
    summary.write_parquet(s.output.summary)
    summary.write_csv(s.output.csv, float_precision=6)
    over_lengths(summary).write_parquet(s.output.depths)
    needles.write_parquet(s.output.needles)
    needles.write_csv(s.output.needles_csv, float_precision=6)
