"""Perplexity against position."""

from typing import TYPE_CHECKING

import polars as pl

from needlework.figures.streams import stream_perplexity
from needlework.figures.style.save import save
from needlework.pipeline.stage import stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    chart = stream_perplexity(pl.read_parquet(s.input.positions), pl.read_csv(s.input.csv))
    save(chart, html=s.output.html, svg=s.output.svg, png=s.output.png)
