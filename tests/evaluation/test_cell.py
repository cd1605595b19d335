"""How samples are dealt out over jobs."""

from pathlib import Path

import polars as pl
import pytest

from needlework.evaluation.cell import Cell, shard_of


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Tables of two tasks at two lengths, with 5 samples each."""
    paths = []
    for task in ("niah", "vt"):
        for length in (128, 64):
            table = pl.DataFrame({"task": task, "length": length, "sample": range(5)})
            paths.append(str(tmp_path / f"{task}-{length}.parquet"))
            table.write_parquet(paths[-1])
    return paths


def rows(cells: list[Cell]) -> list[tuple]:
    return [row for cell in cells for row in cell.read().rows()]


@pytest.mark.parametrize("whole_tasks", [True, False])
@pytest.mark.parametrize("shards", [1, 2, 3, 7])
def test_every_sample_is_in_exactly_one_shard(paths, shards: int, whole_tasks: bool):
    parts = [rows(shard_of(paths, shard, shards, whole_tasks)) for shard in range(shards)]
    assert sorted(row for part in parts for row in part) == sorted(
        rows([Cell(path) for path in paths])
    )


def test_a_shard_has_all_lengths_of_its_tasks_or_a_share_of_each_cell(paths):
    (first, second) = shard_of(paths, 1, 2, whole_tasks=True)
    assert [(cell.task, cell.length) for cell in (first, second)] == [("vt", 128), ("vt", 64)]
    shares = shard_of(paths, 1, 2, whole_tasks=False)
    assert [cell.read(["sample"])["sample"].to_list() for cell in shares] == [[2, 3, 4]] * 4
    assert shard_of(paths, 5, 7, whole_tasks=True) == []
    assert [len(shard_of(paths, n, 7, whole_tasks=False)) for n in range(7)].count(0) == 2


def test_a_table_without_samples_is_named(tmp_path: Path):
    empty = pl.DataFrame(schema={"task": pl.String, "length": pl.Int64})
    empty.write_parquet(tmp_path / "empty.parquet")
    cell = Cell(str(tmp_path / "empty.parquet"))
    with pytest.raises(ValueError, match=r"empty\.parquet: no samples; make the table again"):
        print(cell.task)
