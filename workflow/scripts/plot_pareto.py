"""Accuracy against measured density, the Pareto front marked."""

from typing import TYPE_CHECKING

import polars as pl

from needlework.figures.pareto import pareto
from needlework.figures.style.save import save
from needlework.pipeline.stage import stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    chart = pareto(
        pl.read_parquet(s.input.summary),
        s.params.families,
        s.params.dense,
        s.params.metrics,
        s.params.length_unit,
    )
    save(chart, html=s.output.html, svg=s.output.svg, png=s.output.png)
