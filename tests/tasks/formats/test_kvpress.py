"""The kvpress loader finds an exported table."""

from pathlib import Path

import datasets
import polars as pl
import pyarrow.parquet as pq
import pytest

from needlework.tasks.formats.kvpress import export_kvpress

COUNT = 6


def test_load_dataset_finds_the_tables(tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
    samples = pl.read_parquet(tables[0])
    for name in ("a", "b"):
        (folder := tmp_path / "tables/4096").mkdir(parents=True, exist_ok=True)
        export_kvpress(tables[0], folder / f"test-{name}.parquet")
    loaded = datasets.load_dataset(
        str(tmp_path / "tables"), data_dir="4096", split="test", cache_dir=str(tmp_path / "cache")
    )
    frame = loaded.to_pandas()
    expected = samples.rename({"outputs": "answer"}).select(loaded.column_names)
    assert loaded.column_names == (
        ["context", "question", "answer_prefix", "answer", "max_new_tokens", "task"]
    )
    assert len(frame) == 2 * COUNT
    assert pl.from_arrow(loaded.data.table).equals(pl.concat([expected, expected]))
    (folder / "test-a.parquet.provenance.json").write_text("{}")
    named = datasets.load_dataset(
        "parquet", data_files=f"{folder}/*.parquet", cache_dir=str(tmp_path / "cache")
    )
    assert pl.from_arrow(named["train"].data.table).equals(pl.from_arrow(loaded.data.table))
    # The evaluation groups by context and expects one answer prefix per group.
    assert all(frame.groupby("context")["answer_prefix"].nunique() == 1)


def test_samples_are_streamed(tables, tmp_path: Path):
    export_kvpress(tables[0], tmp_path / "a.parquet")
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == COUNT
