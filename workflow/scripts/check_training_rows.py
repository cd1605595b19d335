"""Check that no training row contains an evaluation sample."""

from typing import TYPE_CHECKING

import polars as pl

from needlework.finetune_data.contamination import check_contamination
from needlework.pipeline.stage import stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    samples = dict(zip(s.params.cells, s.input.samples, strict=True))
    rows = pl.read_parquet(s.input.rows, columns=["prompt", "answer"])
    check_contamination(s.wildcards.data, rows, samples).write_csv(s.output.table)
