"""Records of skipped cells in the metadata of empty tables."""

import polars as pl

from needlework.tables import skipped
from needlework.tables.skipped import OUT_OF_MEMORY, SkippedCell


def test_only_skipped_tables_have_a_record(tmp_path):
    table = pl.DataFrame({"score": [1.0]})
    table.write_parquet(tmp_path / "run.parquet")
    cell = SkippedCell("dense", "passkey", 4096, OUT_OF_MEMORY, "at 4,096: 20 GiB")
    cell.write(table, tmp_path / "skipped.parquet")
    assert pl.read_parquet(tmp_path / "skipped.parquet").equals(table.clear())
    records = skipped.read([tmp_path / "run.parquet", tmp_path / "skipped.parquet"])
    assert records.rows() == [("dense", "passkey", 4096, OUT_OF_MEMORY, "at 4,096: 20 GiB")]
