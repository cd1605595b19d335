"""Show all tables on one sortable page."""

from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from needlework.figures.tables import tables_page
from needlework.pipeline.stage import stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    tables = {path: pl.read_csv(path, infer_schema_length=None) for path in s.input}
    Path(s.output.html).write_text(tables_page(tables), encoding="utf-8")
