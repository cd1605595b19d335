"""Depth by length, every system on one colour scale."""

from typing import TYPE_CHECKING

import polars as pl

from needlework.figures.heatmap import heatmap
from needlework.figures.style.save import save
from needlework.pipeline.stage import stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    chart = heatmap(
        pl.read_parquet(s.input.summary), s.params.task, s.params.metric, s.params.length_unit
    )
    save(chart, html=s.output.html, svg=s.output.svg, png=s.output.png)
