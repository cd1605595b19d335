"""Columns of the tables of answers, the same for every system; unknown values are null."""

import polars as pl
from polars.datatypes import DataTypeClass

Columns = dict[str, DataTypeClass | pl.DataType]
"""Columns of a table and their types."""

CELL: Columns = {"system": pl.String, "task": pl.String, "length": pl.Int64}
PREDICTIONS: Columns = {
    **CELL,
    "sample": pl.Int64,
    "prediction": pl.String,
    "new_tokens": pl.Int64,
    "stop_reason": pl.String,
    "prefill_density": pl.Float64,
    "decode_density": pl.Float64,
    "sparse_layers_prefill_density": pl.Float64,
    "sparse_layers_decode_density": pl.Float64,
    "cache_bytes": pl.Int64,
}
MEASUREMENTS: Columns = {
    **CELL,
    "sample": pl.Int64,
    "prefill_seconds": pl.Float64,
    "decode_seconds": pl.Float64,
    "peak_memory_bytes": pl.Int64,
    "peak_resident_bytes": pl.Int64,
    "memory": pl.List(
        pl.Struct({"seconds": pl.Float64, "resident_bytes": pl.Int64, "gpu_bytes": pl.Int64})
    ),
    "measured_at": pl.String,
    "device": pl.String,
}
