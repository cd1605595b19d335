"""Memory and speed by position, rendered to SVG: its texts and data."""

import math

import polars as pl
import pytest

from needlework.figures.stream_cost import stream_cost

SYSTEMS = ["dense", "infini", "window"]


@pytest.mark.parametrize("chunks", [1, 300])
def test_each_measurement_has_a_panel(drawn, chunks):
    rows = [
        (system, "a", 0, c, 1 + 512 * c, 512, 0.25 * (s + 1), 2**29, 2**20 * s)
        for s, system in enumerate(SYSTEMS)
        for c in range(chunks)
    ]
    key = ["system", "stream", "shard", "chunk"]
    names = ["first_token", "tokens", "seconds", "memory_bytes", "state_bytes"]
    table = pl.DataFrame(rows, schema=[*key, *names], orient="row")
    chart = stream_cost([table.drop("state_bytes")], [table.select(*key, "state_bytes")])
    texts, _ = drawn(chart)
    for title in ("State", "Memory of the process or GPU", "Tokens per second"):
        assert f"{title} (log scale)" in texts
    assert set(SYSTEMS) <= set(texts)
    spec = chart.to_dict()
    states, _, speeds = (spec["datasets"][panel["data"]["name"]] for panel in spec["hconcat"])
    # A strided system has no state, and so no line there.
    assert {row["system"] for row in states} == {"infini", "window"}
    assert {row["state_bytes"] for row in states} == {2**20, 2**21}
    for row in speeds:
        expected = 512 / 0.25 / (SYSTEMS.index(row["system"]) + 1)
        assert row["speed"] == pytest.approx(expected)
    assert max(math.log2(row["position"]) for row in speeds) <= math.log2(512 * chunks)
