"""Memory over time while the longest prompts were answered."""

from typing import TYPE_CHECKING

import polars as pl

from needlework.figures.memory import memory
from needlework.figures.style.save import save
from needlework.pipeline.stage import stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    measurements = pl.concat(map(pl.read_parquet, s.input.measurements), how="diagonal")
    chart = memory(measurements, s.params.length_unit)
    save(chart, html=s.output.html, svg=s.output.svg, png=s.output.png)
