import resource
from multiprocessing import get_context

import polars as pl
import psutil
import pytest
import torch

from needlework.evaluation.early_stopping import Stopped, climb, look_back
from needlework.evaluation.generation.generate import unanswered
from needlework.runtime.memory import bound_memory, is_out_of_memory
from needlework.tables import skipped
from needlework.tables.skipped import FLOOR, MEMORY

LADDER = {"metric": "all", "min_accuracy": 0.3}


@pytest.fixture(autouse=True)
def _bounds_as_before():
    bounds = resource.getrlimit(resource.RLIMIT_DATA)
    yield
    resource.setrlimit(resource.RLIMIT_DATA, bounds)


def _scores(path, length, *values):
    pl.DataFrame({"length": [length] * len(values), "all": list(map(float, values))}).write_parquet(
        path
    )
    return path


def test_two_lengths_below_the_floor_stop_the_climb(tmp_path):
    low = _scores(tmp_path / "1", 512, 0, 0, 0, 1)
    lower = _scores(tmp_path / "2", 1024, 0, 0, 0, 0)
    high = _scores(tmp_path / "3", 1024, 1, 1, 0, 1)
    with pytest.raises(Stopped) as stopped:
        look_back([], [low, lower], "all", 0.3)
    assert stopped.value.reason == FLOOR
    told = "accuracy of 25.0 % and 0.0 % at 512 and 1,024, below the floor of 30 %"
    assert stopped.value.detail == told
    look_back([], [low, lower], "all", 0.25)  # the floor itself is not below it
    look_back([], [low, high], "all", 0.3)
    other = tmp_path / "4"
    pl.read_parquet(lower).with_columns(part=pl.lit(1.0)).write_parquet(other)
    look_back([], [other, other], "part", 0.3)
    with pytest.raises(Stopped):
        look_back([], [other, other], "all", 0.3)
    look_back([], [lower], "all", 0.3)
    look_back([], [], "all", 0.3)


def _climb(paths, answer, early_stopping=LADDER, before=(), scores_before=()):
    climb(
        answer,
        paths,
        unanswered(),
        cell=("dense", "passkey", 4096),
        early_stopping=early_stopping,
        before=before,
        scores_before=scores_before,
    )


def test_what_stopped_once_stays_stopped_for_the_same_reason(tmp_path):
    paths = [tmp_path / name for name in ("predictions", "measurements", "densities")]

    def stops():
        raise Stopped(MEMORY, "at 4,096: no more")

    _climb(paths, stops)
    rows = skipped.read(paths)
    assert rows.rows() == [("dense", "passkey", 4096, MEMORY, "at 4,096: no more")] * 3
    assert "prefill_density" in pl.read_parquet(paths[0]).columns
    assert all(pl.read_parquet(path).is_empty() for path in paths)
    later = [tmp_path / f"later-{path.name}" for path in paths]
    _climb(later, lambda: pytest.fail("asked after it stopped"), before=paths[:1])
    assert skipped.read(later).rows() == rows.rows()


def test_an_answered_rung_is_written_as_it_is(tmp_path):
    paths = [tmp_path / name for name in "abc"]
    tables = [pl.DataFrame({"all": [float(i)]}) for i in range(3)]
    low = [_scores(tmp_path / str(i), 512 * i, 0) for i in (1, 2)]
    _climb(paths, lambda: tables, early_stopping=None, scores_before=low)
    assert skipped.read(paths).is_empty()
    assert all(map(pl.DataFrame.equals, map(pl.read_parquet, paths), tables))
    _climb(paths, lambda: tables, scores_before=low)
    assert set(skipped.read(paths)["reason"]) == {FLOOR}


def _fill() -> str:
    """Take memory in pieces, never touched, far beyond what the machine has."""
    piece, held = 2**28, []
    try:
        bound_memory()
        for _ in range(4 * psutil.virtual_memory().total // piece):
            held.append(torch.empty(piece, dtype=torch.uint8))
    except (RuntimeError, MemoryError) as error:
        return "told" if is_out_of_memory(error) else str(error)
    return "all of it"


def test_memory_that_runs_out_piece_by_piece_is_told_and_kills_nothing():
    with get_context("fork").Pool(1) as pool:
        assert pool.apply(_fill) == "told"
