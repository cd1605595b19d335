"""Tables of one cell from those of its shards; skipped if a shard was."""

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
    stopped = skipped.read(s.input.predictions).rows(named=True)
    for name, table in tables.items():
        if stopped:
            SkippedCell(**stopped[0]).write(table, getattr(s.output, name))
        else:
            table.write_parquet(getattr(s.output, name))
