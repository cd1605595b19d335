"""Accuracy by density and the Pareto front, rendered to SVG: texts and marks."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from needlework.figures.pareto import mark_front, pareto

pytestmark = pytest.mark.slow

FAMILIES = {"walk_k4": "walk", "walk_k8": "walk", "floor": "floor"}
POINTS = st.lists(
    st.tuples(
        st.sampled_from(["task_a", "task_b"]),
        st.sampled_from([512, 4096]),
        st.sampled_from(["prefill", "decode"]),
        st.integers(1, 6).map(lambda n: n / 8),
        st.integers(0, 6).map(lambda n: n / 7),
    ),
    min_size=1,
    max_size=30,
)


def _summary(tasks=("task_a", "task_b"), lengths=(512, 4096)):
    """Dense, a sweep of two, a floor, and a non-sparse system; two metrics and depths."""
    rows = []
    for s, system in enumerate(["dense", *FAMILIES, "infini"]):
        for t, task in enumerate(tasks):
            for i, length in enumerate(lengths):
                for depth in (None, 0.0, 100.0):
                    for metric in ("all", "part"):
                        accuracy = ((7 * s + 5 * t + 3 * i) % 21) / 20
                        accuracy /= 1 + (metric == "part") + (depth is not None)
                        sparse = 0.05 * s if system in FAMILIES else 1.0
                        cell = system, task, length, depth, metric, 22
                        shares = accuracy, 0.9 * accuracy, accuracy, sparse, min(1.0, 2 * sparse)
                        own = (sparse / 2, sparse) if system in FAMILIES else (None, None)
                        rows.append((*cell, *shares, *own))
    columns = ["system", "task", "length", "depth_percent", "metric", "n", "accuracy"]
    columns += ["ci_low", "ci_high", "prefill_density", "decode_density"]
    columns += ["sparse_layers_prefill_density", "sparse_layers_decode_density"]
    return pl.DataFrame(rows, schema=columns, orient="row", infer_schema_length=None)


def _points(marks):
    """Density and accuracy of each point, in percent, by system, task, length and stage."""
    return {
        (m["System"], m["Task"], int(m["Length (tokens)"].replace(",", "")), m["Stage"]): (
            float(m["Density of the whole model (%)"]),
            float(m["Accuracy (%)"]),
        )
        for m in marks
        if "Density of the whole model (%)" in m and "Stage" in m
    }


def two_digits(density):
    return float(f"{density:.2g}")


def test_densities_equal_in_two_digits_count_as_equal():
    points = [("t", 1, "decode", 0.2519, 1.0), ("t", 1, "decode", 0.2502, 0.0)]
    columns = ["task", "length", "stage", "density", "accuracy"]
    table = mark_front(pl.DataFrame(points, schema=columns, orient="row"))
    assert table["is_front"].to_list() == [True, False]


@given(POINTS)
def test_the_front_is_the_points_that_no_other_beats(points):
    columns = ["task", "length", "stage", "density", "accuracy"]
    table = mark_front(pl.DataFrame(points, schema=columns, orient="row"))
    assert table.select(columns).rows() == points
    for one, is_front in zip(points, table["is_front"], strict=True):
        beaten = False
        for other in points:
            theirs, own = (two_digits(other[3]), other[4]), (two_digits(one[3]), one[4])
            at_least = theirs[0] <= own[0] and theirs[1] >= own[1]
            if other[:3] == one[:3] and at_least and theirs != own:
                beaten = True
        assert is_front == (not beaten)


def test_every_sparse_system_is_a_point_at_each_length_and_stage(drawn):
    summary = _summary()
    texts, marks = drawn(pareto(summary, FAMILIES, "dense", {"task_b": "part"}))
    expected = {}
    for row in summary.filter(pl.col("depth_percent").is_null()).to_dicts():
        if row["metric"] == ("part" if row["task"] == "task_b" else "all"):
            for stage in ("prefill", "decode"):
                if row["system"] in FAMILIES:
                    key = row["system"], row["task"], row["length"], stage
                    expected[key] = (100 * row[f"{stage}_density"], 100 * row["accuracy"])
    shown = _points(marks)
    assert shown.keys() == expected.keys()
    for key, values in expected.items():
        assert shown[key] == pytest.approx(values, abs=0.051)
    assert {"Accuracy by measured density", "Accuracy (%)", "System", "Length (tokens)"} <= set(
        texts
    )
    assert "Density of the whole model (% of causal pairs, log scale)" in texts
    assert [text for text in texts if text.startswith("task_")] == [
        *("task_a, prefill", "task_a, decode", "task_b, prefill", "task_b, decode"),
    ]
    assert any(
        "all full-attention layers of the model, dense ones included" in text for text in texts
    )
    # A sweep is one entry of the legend; systems that are not sparse have none.
    assert {"walk", "floor", "512", "4,096"} <= set(texts)
    assert not {"walk_k4", "infini", "dense"} & set(texts)
    assert "n = 22 answers per point, all needle depths pooled" in texts


def test_the_dense_system_is_a_line_for_each_length(drawn):
    texts, marks = drawn(pareto(_summary(), FAMILIES, "dense"))
    rules = [m for m in marks if m["kind"] == "rule mark"]
    lines = {(m["Task"], m["Length (tokens)"], float(m["Accuracy (%)"])) for m in rules}
    assert lines == {
        *[("task_a", "512", 0.0), ("task_a", "4,096", 15.0)],
        *[("task_b", "512", 25.0), ("task_b", "4,096", 40.0)],
    }
    assert {m["System"] for m in rules} == {"dense"}
    assert len(rules) == 2 * len(lines)
    assert any(text.startswith("Dashed: dense, for reference") for text in texts)
    texts, marks = drawn(pareto(_summary(), FAMILIES))
    assert not [m for m in marks if m["kind"] == "rule mark"]
    assert not [text for text in texts if "Dashed" in text]


def test_points_of_the_front_are_filled_and_joined(drawn):
    # walk_k4 at 5 and walk_k8 at 10 % are the front; the floor at 15 % is no better than walk_k8.
    accuracy = {"dense": 0.9, "walk_k4": 0.3, "walk_k8": 0.6, "floor": 0.6, "infini": 0.9}
    summary = _summary(("task_a",), (512,)).with_columns(
        accuracy=pl.col("system").replace_strict(accuracy)
    )
    _, marks = drawn(pareto(summary, FAMILIES, "dense"))
    points = [m for m in marks if "Stage" in m and m["Stage"] == "prefill"]
    drawings = {system: [m for m in points if m["System"] == system] for system in FAMILIES}
    assert {system: len(shown) for system, shown in drawings.items()} == {
        "walk_k4": 2,  # hollow, and filled above it
        "walk_k8": 2,
        "floor": 1,
    }
    steps = [m for m in marks if m["kind"] == "line mark"]
    assert len(steps) == 2  # one per stage


def test_an_unmeasured_stage_has_no_panel(drawn):
    null = pl.lit(None, dtype=pl.Float64)
    texts, marks = drawn(pareto(_summary().with_columns(decode_density=null), FAMILIES, "dense"))
    assert {stage for *_, stage in _points(marks)} == {"prefill"}
    assert "task_a, prefill" in texts
    assert "task_a, decode" not in texts


def test_densities_of_one_can_be_drawn(drawn):
    one = pl.lit(1.0)
    dense = _summary().with_columns(prefill_density=one, decode_density=one)
    texts, marks = drawn(pareto(dense, FAMILIES, "dense", length_unit="characters"))
    assert {m["Density of the whole model (%)"] for m in marks if "Stage" in m} == {"100.00"}
    assert {"50", "Length (characters)"} <= set(texts)


def test_errors_are_one_line():
    null = pl.lit(None, dtype=pl.Float64)
    unknown = _summary().with_columns(prefill_density=null, decode_density=null)
    for table, families in [(unknown, FAMILIES), (_summary(), {"x": "x"})]:
        with pytest.raises(ValueError, match=r"^summary: no measured density of ") as error:
            pareto(table, families, "dense")
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"^summary: column 'decode_density' is missing"):
        pareto(_summary().drop("decode_density"), FAMILIES)
