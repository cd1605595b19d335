"""Accuracy by needle depth before and after fine-tuning."""

from typing import TYPE_CHECKING

import polars as pl

from needlework.figures.finetuning import finetuning
from needlework.figures.style.save import save
from needlework.pipeline.stage import stage
from needlework.scoring.summarize import over_lengths

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    depths = over_lengths(pl.read_parquet(s.input.summary))
    chart = finetuning(depths, s.params.before, s.params.metrics)
    save(chart, html=s.output.html, svg=s.output.svg, png=s.output.png)
