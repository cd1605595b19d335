"""Records of skipped cells in the metadata of tables."""

import polars as pl

from needlework.tables import skipped
from needlework.tables.skipped import OUT_OF_MEMORY, SkippedCell


def test_a_table_keeps_its_rows_and_the_cells_it_lacks(tmp_path):
    table = pl.DataFrame({"score": [1.0]})
    whole, gaps, plain = (tmp_path / name for name in ("whole", "gaps", "plain"))
    cells = [SkippedCell("dense", "passkey", n, OUT_OF_MEMORY, f"at {n}") for n in (1024, 4096)]
    skipped.write(table, whole, [])
    skipped.write(table, gaps, cells)
    table.write_parquet(plain)
    assert pl.read_parquet(gaps).equals(table)
    assert skipped.read([whole, plain]).is_empty()
    assert skipped.read([whole, gaps, plain]).rows() == [
        ("dense", "passkey", n, OUT_OF_MEMORY, f"at {n}") for n in (1024, 4096)
    ]
