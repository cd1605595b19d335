"""A model with its card, ready to be shipped."""

from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
from needlework.models.card import card

from needlework.stage import stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    for path in s.input.model:
        s.adopt_copy(path)
    text = card(
        s.params.model,
        summary=pl.read_parquet(s.input.summary).filter(pl.col("system").is_in(s.params.systems)),
        metrics=pl.read_parquet(s.input.metrics),
        measurements=pl.read_parquet(s.input.measurements),
    )
    Path(s.output.card).write_text(text)
