"""Draw a figure as HTML, SVG and PNG: the function of the figure's module that bears its name."""

from importlib import import_module
from typing import TYPE_CHECKING

import polars as pl

from needlework.figures.style.save import save
from needlework.pipeline.stage import stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def read(path: str) -> pl.DataFrame:
    return pl.read_csv(path) if path.endswith(".csv") else pl.read_parquet(path)


with stage(snakemake) as s:
    (module,) = s.params.modules
    draw = getattr(import_module(module), module.rpartition(".")[2])
    # An input of one file is a table, an input of several a list of tables.
    tables = {
        name: read(paths) if isinstance(paths, str) else [read(path) for path in paths]
        for name, paths in s.input.items()
    }
    params = {name: value for name, value in s.params.items() if name not in ("code", "modules")}
    chart = draw(**tables, **params, **dict(s.wildcards.items()))
    save(chart, html=s.output.html, svg=s.output.svg, png=s.output.png)
