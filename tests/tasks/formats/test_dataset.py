"""The `datasets` library opens exported training rows."""

import datasets
import polars as pl
import pytest

from needlework.config.finetune_data import PasskeyExamples, TaskExamples
from needlework.config.tasks.passkey import Passkey
from needlework.finetune_data.passkey import make_examples as passkey_rows
from needlework.finetune_data.task import make_examples as task_rows
from needlework.tasks.formats.dataset import export_dataset


@pytest.mark.parametrize("kind", ["passkey", "task", "text"])
def test_exported_rows_open_as_a_dataset(kind, byte_tokenizer, tmp_path):
    if kind == "passkey":
        config = PasskeyExamples(examples=6, length=128)
        table = passkey_rows(config, byte_tokenizer, 1)
    elif kind == "task":
        config = TaskExamples(task="key", examples=6, length=128)
        table = task_rows(config, byte_tokenizer, 1, task=Passkey(), depths=[0.0], haystacks={})
    else:
        ids = {"input_ids": [[1, 2, 3], [4, 5, 6]]}
        table = pl.DataFrame(ids, {"input_ids": pl.List(pl.Int32)})
    table.write_parquet(tmp_path / "rows.parquet")
    export_dataset(tmp_path / "rows.parquet", tmp_path / "saved")
    loaded = datasets.load_from_disk(tmp_path / "saved")
    assert loaded.to_list() == table.to_dicts()
    assert {f.name for f in (tmp_path / "saved").iterdir()} == {
        "data-00000-of-00001.arrow",
        "dataset_info.json",
        "state.json",
    }
    # So does the table itself.
    opened = datasets.load_dataset(
        "parquet",
        data_files=str(tmp_path / "rows.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert opened.to_list() == table.to_dicts()
    export_dataset(tmp_path / "rows.parquet", tmp_path / "again")
    for file in (tmp_path / "saved").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
