"""Scores by length, and the longest lengths that reach what is asked."""

from typing import TYPE_CHECKING

import polars as pl

from needlework.figures.effective_length import effective_length
from needlework.figures.style.save import save
from needlework.pipeline.stage import stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    means, lengths = pl.read_parquet(s.input.means), pl.read_parquet(s.input.lengths)
    chart = effective_length(means, lengths, s.params.share, s.params.length_unit)
    save(chart, html=s.output.html, svg=s.output.svg, png=s.output.png)
