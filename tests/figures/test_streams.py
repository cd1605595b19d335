import math

import polars as pl
import pytest

from needlework.figures.streams import stream_cost, stream_perplexity

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
    return cells.with_columns(mode=pl.col("system").replace_strict(modes))


def test_every_doubling_is_a_point_with_its_interval(drawn):
    table = _positions()
    texts, marks = drawn(stream_perplexity(table, _modes(table)))
    points = [m for m in marks if m["kind"] == "point" and "Low" in m]
    assert len(points) == len(table)
    wanted = sorted((r["first_position"], round(r["perplexity"])) for r in table.to_dicts())
    found = [
        (int(m["From position"].replace(",", "")), round(float(m["Perplexity"]))) for m in points
    ]
    assert sorted(found) == wanted
    bars = [m for m in marks if m["kind"] == "rule mark"]
    assert len(bars) == len(table.drop_nulls("ci_low"))
    assert {"dense (strided)", "infini (state)", "window (state)", "a", "b"} <= set(texts)
    assert "state: exact, constant memory; strided: windows, an approximation" in texts


def test_the_axis_begins_at_1_where_an_interval_reaches_below(drawn):
    table = _positions().with_columns(pl.lit(1.05).alias("perplexity"), ci_low=0.9, ci_high=200.0)
    texts, _ = drawn(stream_perplexity(table, _modes(table)))
    assert "1" in texts
    assert not {"0.1", "100m"} & set(texts)


def test_a_system_may_read_each_stream_in_a_mode_of_its_own(drawn):
    table = _positions().filter(pl.col("system") == "dense")
    modes = _modes(table).with_columns(mode=pl.Series(["strided", "cache"]))
    texts, _ = drawn(stream_perplexity(table, modes))
    assert {"dense (strided)", "dense (cache)"} <= set(texts)


@pytest.mark.parametrize("chunks", [1, 300])
def test_cost_has_a_panel_for_what_was_measured(drawn, chunks):
    rows = [
        (system, "a", 0, c, 1 + 512 * c, 512, 0.25 * (s + 1), 2**29, 2**20 * s)
        for s, system in enumerate(SYSTEMS)
        for c in range(chunks)
    ]
    which = ["system", "stream", "shard", "chunk"]
    names = ["first_token", "tokens", "seconds", "memory_bytes", "state_bytes"]
    table = pl.DataFrame(rows, schema=[*which, *names], orient="row")
    chart = stream_cost(table.drop("state_bytes"), table.select(*which, "state_bytes"))
    texts, _ = drawn(chart)
    for title in ("State carried on", "Memory of the process or GPU", "Tokens a second"):
        assert f"{title} (log scale)" in texts
    assert set(SYSTEMS) <= set(texts)
    spec = chart.to_dict()
    states, _, speeds = (spec["datasets"][panel["data"]["name"]] for panel in spec["hconcat"])
    # A strided system carries nothing on, and has no line there.
    assert {row["system"] for row in states} == {"infini", "window"}
    assert {row["state_bytes"] for row in states} == {2**20, 2**21}
    for row in speeds:
        expected = 512 / 0.25 / (SYSTEMS.index(row["system"]) + 1)
        assert row["speed"] == pytest.approx(expected)
    assert max(math.log2(row["position"]) for row in speeds) <= math.log2(512 * chunks)


def test_nothing_to_draw_is_told():
    with pytest.raises(ValueError, match="positions: has no rows"):
        stream_perplexity(_positions().clear(), _modes(_positions()))
