"""Export samples as the tables that kvpress' evaluation reads."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from needlework.tasks.sample_table import iterate_samples

KVPRESS_SCHEMA = pa.schema(
    {
        "context": pa.string(),
        "question": pa.string(),
        "answer_prefix": pa.string(),
        "answer": pa.list_(pa.string()),
        "max_new_tokens": pa.int64(),
        "task": pa.string(),
    }
)


def export_kvpress(samples: str | Path, table: str | Path) -> None:
    """Write the samples of one task at one length as a Parquet table, columns of KVPRESS_SCHEMA.

    kvpress loads folders named by length that hold only tables named test-{task}.parquet:
    `load_dataset(folder, data_dir=length, split="test")`. If other files lie next to the tables,
    name the tables: `load_dataset("parquet", data_files="{length}/*.parquet")`.
    """
    columns = ["outputs" if name == "answer" else name for name in KVPRESS_SCHEMA.names]
    with pq.ParquetWriter(table, KVPRESS_SCHEMA, compression="zstd") as writer:
        for sample in iterate_samples(samples, columns):
            row = {**sample, "answer": sample["outputs"]}
            writer.write_table(pa.Table.from_pylist([row], KVPRESS_SCHEMA))
