"""Add up requests, tokens and price of the systems behind an API."""

from typing import TYPE_CHECKING

import polars as pl

from needlework.pipeline.stage import stage
from needlework.scoring.api_usage import api_usage
from needlework.tables.columns import concat

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    measurements = concat([pl.read_parquet(path) for path in s.input.measurements])
    predictions = concat([pl.read_parquet(path) for path in s.input.predictions])
    api_usage(measurements, predictions).write_csv(s.output.csv)
