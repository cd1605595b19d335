"""Which cells early stopping skips, and why."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from needlework.evaluation.cell import Cell
from needlework.evaluation.early_stopping import EarlyStop, StopRule, answer_by_length
from needlework.tables.skipped import LOW_ACCURACY, OUT_OF_MEMORY, SkippedCell

LENGTHS = (2048, 512, 1024, 4096)
SAMPLES = 4


@pytest.fixture
def cells(tmp_path: Path) -> list[Cell]:
    """Two tasks at four lengths, not in ascending order; the right answer is always "7"."""
    made = []
    for task in ("passkey", "niah"):
        for length in LENGTHS:
            row = {"task": task, "length": length, "outputs": ["7"], "value_type": "numbers"}
            rows = [{**row, "sample": i, "needles": []} for i in range(SAMPLES)]
            path = tmp_path / f"{task}-{length}.parquet"
            pl.DataFrame(rows, schema_overrides={"needles": pl.List(pl.String)}).write_parquet(path)
            made.append(Cell(str(path)))
    return made


def answering(right: Callable[[str, int], int], asked: list) -> Callable[[Cell], pl.DataFrame]:
    """Answers of which `right(task, length)` are right."""

    def answer(cell: Cell) -> pl.DataFrame:
        asked.append((cell.task, cell.length))
        found = right(cell.task, cell.length)
        texts = ["7"] * found + ["1"] * (SAMPLES - found)
        return pl.DataFrame(
            {"system": "s", "task": cell.task, "length": cell.length}
            | {"sample": range(SAMPLES), "prediction": texts}
        )

    return answer


def rule(min_accuracy: float, metric: str = "all") -> StopRule:
    metrics = dict.fromkeys(("passkey", "niah"), metric)
    return StopRule(min_accuracy=min_accuracy, metrics=metrics, scorer="needlework.scoring.score")


def test_low_accuracy_at_two_lengths_skips_the_longer_ones_of_a_task(cells):
    right = {512: 1, 1024: 0, 2048: 4, 4096: 4}
    asked: list[tuple[str, int]] = []
    answer = answering(lambda task, length: 4 if task == "niah" else right[length], asked)
    skipped = answer_by_length(cells, answer, system="s", stop_rule=rule(0.3))
    detail = "accuracy 25.0 % and 0.0 % at 512 and 1,024, below min_accuracy 30 %"
    assert skipped == [
        SkippedCell("s", "passkey", length, LOW_ACCURACY, detail) for length in (2048, 4096)
    ]
    lengths = {task: [n for name, n in asked if name == task] for task in ("passkey", "niah")}
    assert lengths == {"passkey": [512, 1024], "niah": sorted(LENGTHS)}


@pytest.mark.parametrize(
    ("right", "stop_rule"),
    [
        ({512: 0, 1024: 1, 2048: 0, 4096: 1}, rule(0.25)),  # equal to min_accuracy
        ({512: 0, 1024: 4, 2048: 0, 4096: 4}, rule(0.3)),
        ({512: 0, 1024: 0, 2048: 0, 4096: 0}, rule(0)),
        ({512: 0, 1024: 0, 2048: 0, 4096: 0}, None),
    ],
)
def test_accuracy_that_is_not_low_twice_skips_nothing(cells, right, stop_rule):
    answer = answering(lambda task, length: right[length], [])
    assert answer_by_length(cells, answer, system="s", stop_rule=stop_rule) == []


def test_a_failure_skips_the_longer_lengths_for_its_reason(cells):
    answer = answering(lambda task, length: 4, [])

    def fails(cell: Cell) -> pl.DataFrame:
        if cell.task == "passkey" and cell.length >= 1024:
            raise EarlyStop(OUT_OF_MEMORY, f"at {cell.length}: no more")
        return answer(cell)

    skipped = answer_by_length(cells, fails, system="s", stop_rule=rule(0.1))
    assert [(cell.length, cell.detail) for cell in skipped] == [
        (length, "at 1024: no more") for length in (1024, 2048, 4096)
    ]
    # What another process found out is not tried again.
    asked: list[tuple[str, int]] = []
    answer = answering(lambda task, length: 4, asked)
    first = skipped[:1]
    again = answer_by_length(cells, answer, system="s", stop_rule=rule(0.1), skipped=first)
    assert again == skipped
    assert ("passkey", 1024) not in asked
    assert ("passkey", 512) in asked
