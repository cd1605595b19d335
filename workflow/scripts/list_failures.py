"""List the samples that an API did not answer, with the reasons."""

from typing import TYPE_CHECKING

import polars as pl

from needlework.pipeline.stage import stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    predictions = pl.read_parquet(s.input.predictions)
    failed = predictions.filter(pl.col("status") != "ok")
    columns = ["system", "task", "length", "sample", "status", "reason"]
    failed.select(columns).write_csv(s.output.csv)
