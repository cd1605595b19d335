"""Prefill seconds and cache bytes against length."""

from typing import TYPE_CHECKING

import polars as pl

from needlework.figures.cost import cost
from needlework.figures.save import save
from needlework.stage import stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    chart = cost(
        pl.read_parquet(s.input.measurements),
        pl.read_parquet(s.input.predictions),
        s.params.length_unit,
    )
    save(chart, html=s.output.html, svg=s.output.svg, png=s.output.png)
