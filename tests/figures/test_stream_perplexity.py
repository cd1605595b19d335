"""Perplexity by position, rendered to SVG: its texts and marks."""

import polars as pl
import pytest

from needlework.figures.stream_perplexity import stream_perplexity

SYSTEMS = ["dense", "infini", "window"]


def _positions(streams=("a", "b"), doublings=6):
    rows = [
        (system, stream, 2**k, 2 ** (k + 1), 2 ** (k + 0.5), 2**k, 100.0 + 10 * s + k + 3 * i)
        for s, system in enumerate(SYSTEMS)
        for i, stream in enumerate(streams)
        for k in range(doublings)
    ]
    names = ["first_position", "end_position", "position", "tokens", "perplexity"]
    bound = pl.when(pl.col("first_position") >= 4)
    return pl.DataFrame(rows, schema=["system", "stream", *names], orient="row").with_columns(
        ci_low=bound.then(pl.col("perplexity") * 0.9),
        ci_high=bound.then(pl.col("perplexity") * 1.1),
    )


def _modes(table):
    modes = {"dense": "strided", "infini": "state", "window": "state"}
    cells = table.select("system", "stream").unique(maintain_order=True)
    return cells.with_columns(mode=pl.col("system").replace_strict(modes), is_likelihood=True)


def test_every_doubling_is_a_point_with_its_interval(drawn):
    table = _positions()
    texts, marks = drawn(stream_perplexity(table, _modes(table)))
    points = [m for m in marks if m["kind"] == "point" and "Lower bound" in m]
    assert len(points) == len(table)
    expected = sorted((r["first_position"], round(r["perplexity"])) for r in table.to_dicts())
    shown = [
        (int(m["From position"].replace(",", "")), round(float(m["Perplexity"]))) for m in points
    ]
    assert sorted(shown) == expected
    bars = [m for m in marks if m["kind"] == "rule mark"]
    assert len(bars) == len(table.drop_nulls("ci_low"))
    assert {"dense (strided)", "infini (state)", "window (state)", "a", "b"} <= set(texts)
    assert "state: exact, constant memory; strided: windows, an approximation" in texts


def test_perplexities_that_are_no_likelihood_are_marked(drawn):
    table = _positions()
    remark = "no likelihood: blocks are chosen by later tokens too (choose: block)"
    assert remark not in drawn(stream_perplexity(table, _modes(table)))[0]
    marked = _modes(table).with_columns(is_likelihood=pl.col("system") != "dense")
    texts, _ = drawn(stream_perplexity(table, marked))
    assert {"dense (strided, no likelihood)", "window (state)", remark} <= set(texts)


def test_the_axis_starts_at_1_if_an_interval_reaches_below(drawn):
    table = _positions().with_columns(pl.lit(1.05).alias("perplexity"), ci_low=0.9, ci_high=200.0)
    texts, _ = drawn(stream_perplexity(table, _modes(table)))
    assert "1" in texts
    assert not {"0.1", "100m"} & set(texts)


def test_a_system_may_have_a_different_mode_per_stream(drawn):
    table = _positions().filter(pl.col("system") == "dense")
    modes = _modes(table).with_columns(mode=pl.Series(["strided", "cache"]))
    texts, _ = drawn(stream_perplexity(table, modes))
    assert {"dense (strided)", "dense (cache)"} <= set(texts)


def test_an_empty_table_is_an_error():
    with pytest.raises(ValueError, match="positions: no rows"):
        stream_perplexity(_positions().clear(), _modes(_positions()))
