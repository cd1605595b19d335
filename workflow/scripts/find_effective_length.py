"""Average scores over tasks, and find the longest lengths that reach the thresholds."""

from typing import TYPE_CHECKING

import polars as pl

from needlework.pipeline.stage import stage
from needlework.scoring.effective_length import effective_lengths, mean_scores

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    means = mean_scores(pl.read_parquet(s.input.summary), s.params.metrics)
    lengths = effective_lengths(means, s.params.score, s.params.share)
    means.write_parquet(s.output.means)
    means.write_csv(s.output.means_csv, float_precision=6)
    lengths.write_parquet(s.output.lengths)
    lengths.write_csv(s.output.csv, float_precision=6)
