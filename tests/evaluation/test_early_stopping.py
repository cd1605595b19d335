import polars as pl
import pytest

from needlework.evaluation.early_stopping import EarlyStop, require_accuracy, write_unless_stopped
from needlework.evaluation.generation.generate import empty_tables
from needlework.tables import skipped
from needlework.tables.skipped import LOW_ACCURACY, OUT_OF_MEMORY

EARLY_STOPPING = {"metric": "all", "min_accuracy": 0.3}


def _scores(path, length, *values):
    pl.DataFrame({"length": [length] * len(values), "all": list(map(float, values))}).write_parquet(
        path
    )
    return path


def test_low_accuracy_at_two_lengths_stops_a_system(tmp_path):
    low = _scores(tmp_path / "1", 512, 0, 0, 0, 1)
    lower = _scores(tmp_path / "2", 1024, 0, 0, 0, 0)
    high = _scores(tmp_path / "3", 1024, 1, 1, 0, 1)
    with pytest.raises(EarlyStop) as stopped:
        require_accuracy([], [low, lower], "all", 0.3)
    assert stopped.value.reason == LOW_ACCURACY
    detail = "accuracy 25.0 % and 0.0 % at 512 and 1,024, below min_accuracy 30 %"
    assert stopped.value.detail == detail
    require_accuracy([], [low, lower], "all", 0.25)  # equal to min_accuracy
    require_accuracy([], [low, high], "all", 0.3)
    other = tmp_path / "4"
    pl.read_parquet(lower).with_columns(part=pl.lit(1.0)).write_parquet(other)
    require_accuracy([], [other, other], "part", 0.3)
    with pytest.raises(EarlyStop):
        require_accuracy([], [other, other], "all", 0.3)
    require_accuracy([], [lower], "all", 0.3)
    require_accuracy([], [], "all", 0.3)


def _write(paths, answer, early_stopping=EARLY_STOPPING, predictions=(), scores=()):
    write_unless_stopped(
        answer,
        paths,
        empty_tables(),
        cell=("dense", "passkey", 4096),
        early_stopping=early_stopping,
        shorter_predictions=predictions,
        shorter_scores=scores,
    )


def test_a_stopped_system_stays_stopped_for_the_same_reason(tmp_path):
    paths = [tmp_path / name for name in ("predictions", "measurements", "densities")]

    def stops():
        raise EarlyStop(OUT_OF_MEMORY, "at 4,096: no more")

    _write(paths, stops)
    rows = skipped.read(paths)
    assert rows.rows() == [("dense", "passkey", 4096, OUT_OF_MEMORY, "at 4,096: no more")] * 3
    assert "prefill_density" in pl.read_parquet(paths[0]).columns
    assert all(pl.read_parquet(path).is_empty() for path in paths)
    later = [tmp_path / f"later-{path.name}" for path in paths]
    _write(later, lambda: pytest.fail("evaluated after it stopped"), predictions=paths[:1])
    assert skipped.read(later).rows() == rows.rows()


def test_tables_of_an_evaluated_length_are_written_unchanged(tmp_path):
    paths = [tmp_path / name for name in "abc"]
    tables = [pl.DataFrame({"all": [float(i)]}) for i in range(3)]
    low = [_scores(tmp_path / str(i), 512 * i, 0) for i in (1, 2)]
    _write(paths, lambda: tables, early_stopping=None, scores=low)
    assert skipped.read(paths).is_empty()
    assert all(map(pl.DataFrame.equals, map(pl.read_parquet, paths), tables))
    _write(paths, lambda: tables, scores=low)
    assert set(skipped.read(paths)["reason"]) == {LOW_ACCURACY}
