"""Speed, memory and price of every system against the baseline."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from needlework.pipeline.stage import stage
from needlework.scoring.compare import compare_speed
from needlework.tables import skipped

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    # Tables of an API have columns that others lack.
    measurements = pl.concat(map(pl.read_parquet, s.input.measurements), how="diagonal")
    predictions = pl.concat(map(pl.read_parquet, s.input.predictions), how="diagonal")
    missing = skipped.read(s.input.predictions)
    rows, markdown = compare_speed(measurements, predictions, s.params.baseline, missing)
    Path(s.output.json).write_text(json.dumps(rows, indent=1) + "\n")
    Path(s.output.markdown).write_text(markdown)
    pl.DataFrame(rows).write_csv(s.output.csv, float_precision=4)
