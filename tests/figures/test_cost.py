"""The figure of cost by length, rendered to SVG: its texts and marks."""

import polars as pl
import pytest

from needlework.figures.cost import cost


@pytest.mark.parametrize(("systems", "lengths"), [(1, 1), (4, 6), (8, 8)])
def test_seconds_and_bytes_have_readable_units(drawn, make_costs, systems, lengths):
    texts, marks = drawn(cost(*make_costs(systems, lengths)))
    points = [mark for mark in marks if mark["kind"] == "point"]
    assert len(points) == 2 * systems * lengths
    dense = [m for m in points if m["System"] == "dense" and m["Length (tokens)"] == "512"]
    assert [m["Prefill time (seconds)"] for m in dense[:1]] == ["0.002621"]
    assert [m["Cache size (bytes)"] for m in dense[1:]] == ["524,288"]
    assert {"Prefill time (log scale)", "Cache size (log scale)", "512 KiB"} <= set(texts)
    assert any(text.endswith(" ms") for text in texts)
    assert "n = 3 prompts per point, all tasks pooled" in texts


def test_unmeasured_values_are_left_out(drawn, make_costs):
    [measurements], [predictions] = make_costs(2, 3)
    unknown = predictions.with_columns(cache_bytes=pl.lit(None, dtype=pl.Int64))
    texts, _ = drawn(cost([measurements], [unknown]))
    assert "Cache size (log scale)" not in texts
    assert "Prefill time (log scale)" in texts
    nothing = measurements.with_columns(prefill_seconds=pl.lit(0.0))
    texts, _ = drawn(cost([nothing], [unknown]))
    assert set(texts) == {"Cost by context length", "Neither time nor cache was measured"}
    texts, _ = drawn(cost([measurements.clear()], [predictions.clear()]))
    assert set(texts) == {"Cost by context length", "No prompt was answered"}


def test_tables_may_lack_columns_of_others(drawn, make_costs):
    [measurements], predictions = make_costs(2, 3)
    priced = measurements.with_columns(system=pl.lit("remote"), price_dollars=pl.lit(0.1))
    _, marks = drawn(cost([measurements, priced], predictions))
    assert {"dense", "sketchwalk", "remote"} == {m["System"] for m in marks if "System" in m}


def test_errors_are_one_line(make_costs):
    [measurements], [predictions] = make_costs(1, 1)
    for draw, message in [
        (lambda: cost([measurements.clear()], [predictions]), r"^measurements: no rows"),
        (lambda: cost([measurements], [predictions.clear()]), r"^predictions: no rows"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            draw()
        assert "\n" not in str(error.value)
