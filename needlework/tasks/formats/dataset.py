"""Export training rows as a folder of the `datasets` library."""

from pathlib import Path

import pyarrow.parquet as pq


def export_dataset(rows: str | Path, folder: str | Path) -> None:
    """Write a table of training rows as a folder that `datasets.load_from_disk` opens."""
    # Importing datasets takes a second.
    from datasets import Dataset

    Dataset(pq.read_table(rows)).save_to_disk(folder, num_shards=1)
