"""Measured density of every layer, prefill and decode apart."""

from typing import TYPE_CHECKING

import polars as pl

from needlework.figures.density import density
from needlework.figures.style.save import save
from needlework.pipeline.stage import stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    chart = density(pl.read_parquet(s.input.densities), s.params.length_unit)
    save(chart, html=s.output.html, svg=s.output.svg, png=s.output.png)
