"""Tokens a second and peak memory of every training."""

from typing import TYPE_CHECKING

import polars as pl

from needlework.figures.style.save import save
from needlework.figures.training import training_cost
from needlework.pipeline.stage import stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    tables = dict(zip(s.params.models, map(pl.read_parquet, s.input.measurements), strict=True))
    save(training_cost(tables), html=s.output.html, svg=s.output.svg, png=s.output.png)
