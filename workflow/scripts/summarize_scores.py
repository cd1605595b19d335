"""Accuracy with intervals of every cell, as Parquet and CSV."""

from typing import TYPE_CHECKING

import polars as pl

from needlework.scoring.summarize import summarize
from needlework.stage import stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    table = summarize(pl.read_parquet(s.input.scores), pl.read_parquet(s.input.predictions))
    table.write_parquet(s.output.summary)
    table.write_csv(s.output.csv, float_precision=6)
