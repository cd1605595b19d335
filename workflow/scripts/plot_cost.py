"""Prefill seconds and cache bytes against length."""

from typing import TYPE_CHECKING

import polars as pl

from needlework.figures.cost import cost
from needlework.figures.style.save import save
from needlework.pipeline.stage import stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    # Tables of an API have columns that others lack.
    chart = cost(
        pl.concat(map(pl.read_parquet, s.input.measurements), how="diagonal"),
        pl.concat(map(pl.read_parquet, s.input.predictions), how="diagonal"),
        s.params.length_unit,
    )
    save(chart, html=s.output.html, svg=s.output.svg, png=s.output.png)
