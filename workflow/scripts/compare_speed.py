"""Compare every system's speed, memory and price with the baseline's."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from needlework.pipeline.stage import stage
from needlework.scoring.compare import compare_speed
from needlework.tables import skipped
from needlework.tables.columns import concat

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    measurements = concat([pl.read_parquet(path) for path in s.input.measurements])
    predictions = concat([pl.read_parquet(path) for path in s.input.predictions])
    not_run = skipped.read(s.input.predictions)
    rows, markdown = compare_speed(measurements, predictions, s.params.baseline, not_run)
    Path(s.output.json).write_text(json.dumps(rows, indent=1) + "\n")
    Path(s.output.markdown).write_text(markdown)
    pl.DataFrame(rows).write_csv(s.output.csv, float_precision=4)
