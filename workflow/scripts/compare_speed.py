"""Prefill speed and peak memory of every system against the baseline."""

from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from needlework.scoring.compare import compare_speed
from needlework.stage import stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    rows, markdown = compare_speed(pl.read_parquet(s.input.measurements), s.params.baseline)
    Path(s.output.markdown).write_text(markdown)
    pl.DataFrame(rows).write_csv(s.output.csv, float_precision=4)
