"""Tables of one system from those of its shards."""

from typing import TYPE_CHECKING

import polars as pl

from needlework.pipeline.stage import stage
from needlework.tables import skipped
from needlework.tables.skipped import SkippedCell

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    tables = {
        name: pl.concat(map(pl.read_parquet, s.input[name]), rechunk=True)
        for name in ("predictions", "measurements", "densities")
    }
    densities = tables["densities"]
    cell = [name for name in densities.columns if name not in ("density", "pairs")]
    kept = (pl.col("density") * pl.col("pairs")).sum()
    tables["densities"] = densities.group_by(cell, maintain_order=True).agg(
        density=kept / pl.col("pairs").sum(), pairs=pl.col("pairs").sum()
    )
    schema = {"task": pl.String, "length": pl.Int64}
    order = pl.DataFrame(s.params.cells, schema=schema, orient="row").with_row_index("cell")
    skipped_cells = [SkippedCell(**row) for row in skipped.read(s.input.predictions).to_dicts()]
    for name, table in tables.items():
        # Shards are in the order of their samples, so a stable sort restores that of a cell.
        table = table.join(order, on=["task", "length"], maintain_order="left")
        table = table.sort("cell", maintain_order=True).drop("cell")
        skipped.write(table, getattr(s.output, name), skipped_cells)
