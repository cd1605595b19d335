"""Loss, learning rate and gates of every trained model."""

from typing import TYPE_CHECKING

import polars as pl

from needlework.figures.style.save import save
from needlework.figures.training import training
from needlework.pipeline.stage import stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    metrics = dict(zip(s.params.models, map(pl.read_parquet, s.input.metrics), strict=True))
    save(training(metrics), html=s.output.html, svg=s.output.svg, png=s.output.png)
