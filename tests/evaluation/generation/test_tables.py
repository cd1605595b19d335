"""Tables of entries: one row per sample, densities over all samples of a cell."""

import pytest

from needlework.evaluation.generation.tables import answer_tables


def answered(task: str, length: int, sample: int, kept: float) -> tuple[dict, dict]:
    layers = [(1, "prefill", True, kept, 100), (0, "prefill", False, 50, 50)]
    entry = {
        "answer": {"prediction": f"{task} {sample}", "new_tokens": 2, "cache_bytes": 64},
        "measured": {"prefill_seconds": 0.5, "memory": []},
        "layers": layers,
    }
    return {"task": task, "length": length, "sample": sample, "prompt": "not kept"}, entry


def test_rows_are_in_the_order_of_the_samples():
    answers = [answered("vt", 64, 1, 10), answered("vt", 64, 0, 30), answered("niah", 32, 0, 5)]
    predictions, measurements, densities = answer_tables("walk", answers)
    assert predictions.select("system", "task", "length", "sample", "prediction").rows() == [
        ("walk", "vt", 64, 1, "vt 1"),
        ("walk", "vt", 64, 0, "vt 0"),
        ("walk", "niah", 32, 0, "niah 0"),
    ]
    assert predictions["prefill_density"].null_count() == 3
    assert measurements["prefill_seconds"].to_list() == [0.5] * 3
    assert densities.select("task", "layer", "is_sparse", "density", "pairs").rows() == [
        ("vt", 0, False, 1.0, 100),
        ("vt", 1, True, pytest.approx(40 / 200), 200),
        ("niah", 0, False, 1.0, 50),
        ("niah", 1, True, pytest.approx(0.05), 100),
    ]


def test_no_answers_give_tables_with_the_same_columns():
    empty, full = answer_tables("s", []), answer_tables("s", [answered("vt", 8, 0, 1)])
    assert [table.schema for table in empty] == [table.schema for table in full]
