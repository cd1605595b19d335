"""Aggregate the perplexity of streams: whole, and by position."""

from typing import TYPE_CHECKING

import polars as pl

from needlework.pipeline.stage import stage
from needlework.scoring.positions import by_position, whole_streams

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    positions = pl.read_parquet(s.input.positions)
    by_position(positions).write_parquet(s.output.positions)
    whole = whole_streams(pl.read_parquet(s.input.chunks), positions)
    whole.write_csv(s.output.csv, float_precision=6)
