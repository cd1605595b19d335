"""List the samples that an API did not answer or whose prompt it cut, with the reasons."""

from typing import TYPE_CHECKING

import polars as pl

from needlework.evaluation.api.truncation import truncated_across_lengths
from needlework.pipeline.stage import stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    predictions = pl.read_parquet(s.input.predictions)
    measurements = pl.read_parquet(s.input.measurements)
    failed = predictions.filter(pl.col("status") != "ok")
    columns = ["system", "task", "length", "sample", "status", "reason"]
    cut = truncated_across_lengths(predictions, measurements)
    pl.concat([failed.select(columns), cut.select(columns)]).write_csv(s.output.csv)
