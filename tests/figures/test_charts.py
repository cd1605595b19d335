"""The figures as their readers see them: rendered to SVG, texts and marks read back."""

import polars as pl
import pytest

from needlework.figures.accuracy import accuracy
from needlework.figures.cost import cost
from needlework.figures.finetuning import finetuning
from needlework.figures.heatmap import heatmap
from needlework.figures.style.theme import COLORS
from needlework.figures.training import training, training_cost

CELL = ["system", "task", "length", "accuracy", "ci_low", "ci_high"]


def number(text):
    return float(text.replace(",", ""))


def metrics(gates=0, start=2.0):
    steps = list(range(0, 51, 10))
    table = {"step": steps, "loss": [start / (1 + s) for s in steps]}
    table["learning_rate"] = [1e-3 * s / 50 for s in steps]
    for gate in range(gates):
        table[f"gate_layer{gate // 4}_head{gate % 4}"] = [gate / 100 + s / 100 for s in steps]
    return pl.DataFrame(table)


@pytest.mark.parametrize(("systems", "lengths"), [(1, 1), (4, 6), (8, 8)])
def test_heatmap_shows_every_cell_of_its_task(drawn, make_summary, systems, lengths):
    summary = make_summary(systems, 2, lengths)
    texts, marks = drawn(heatmap(summary, task="task_b"))
    cells = summary.filter(pl.col("task") == "task_b", pl.col("depth_percent").is_not_null())
    found = {
        (mark["System"], number(mark["Length (tokens)"]), float(mark["Depth (%)"])): mark
        for mark in marks
        if mark["kind"] == "rect mark"
    }
    columns = ["system", "length", "depth_percent", "accuracy"]
    rows = {row[:3]: row[3] for row in cells.select(columns).rows()}
    assert found.keys() == rows.keys()
    for cell, value in rows.items():
        assert float(found[cell]["Accuracy (%)"]) == pytest.approx(100 * value, abs=0.051)
    assert {"Context length (tokens)", "Needle depth (%)", "Accuracy (%)"} <= set(texts)
    assert {f"{length:,}" for length in cells["length"]} <= set(texts)
    assert {"n = 2 needles a cell", "Metric all: share of the references found"} <= set(texts)
    assert "Accuracy by needle depth and context length: task_b" in texts


def test_heatmaps_have_one_colour_scale(make_summary):
    """0-100 %, whatever the accuracies at hand."""
    summary = make_summary().with_columns(accuracy=0.4 + 0.1 * pl.col("accuracy"))
    spec = heatmap(summary).to_dict()["spec"]
    assert spec["layer"][0]["encoding"]["color"]["scale"]["domain"] == [0, 100]


def test_heatmap_of_all_tasks_has_a_row_a_task(drawn, make_summary):
    texts, marks = drawn(heatmap(make_summary(8, 8, 8)))  # 5632 cells: more than altair's 5000
    assert [text for text in texts if text.startswith("task_")] == [f"task_{c}" for c in "abcdefgh"]
    assert sum(mark["kind"] == "rect mark" for mark in marks) == 8 * 8 * 8 * 11


def test_heatmap_has_no_axis_below_an_empty_place(drawn, make_summary):
    title = "Context length (tokens)"
    across = drawn(heatmap(make_summary(4, 1, 2), "task_a"))[0].count(title)
    assert drawn(heatmap(make_summary(8, 1, 2), "task_a"))[0].count(title) == across
    assert drawn(heatmap(make_summary(5, 1, 2), "task_a"))[0].count(title) == 5


def test_heatmap_has_room_for_25_depths(drawn, make_summary):
    depths = [100 * depth / 24 for depth in range(25)]
    texts, marks = drawn(heatmap(make_summary(2, 1, 3, depths), task="task_a"))
    assert len([m for m in marks if m["kind"] == "rect mark"]) == 2 * 3 * 25
    assert {"0", "4.17", "95.8", "100"} <= set(texts)


def test_heatmap_in_the_metric_of_the_task(drawn, make_summary):
    summary = make_summary(2, 1, 2).with_columns(metric=pl.lit("part"))
    other = summary.with_columns(metric=pl.lit("all"), accuracy=pl.lit(0.5))
    texts, marks = drawn(heatmap(pl.concat([other, summary]), "task_a", "part"))
    assert {"Metric part: any reference found", "n = 2 answers a cell"} <= set(texts)
    rects = [mark for mark in marks if mark["kind"] == "rect mark"]
    shown = sorted(float(mark["Accuracy (%)"]) for mark in rects)
    cells = summary.drop_nulls("depth_percent")
    assert shown == pytest.approx(sorted(100 * cells["accuracy"]), abs=0.051)
    assert {mark["Answers"] for mark in rects} == {"2"}


@pytest.mark.parametrize(("systems", "tasks", "lengths"), [(1, 1, 1), (4, 2, 6), (8, 13, 8)])
def test_accuracy_shows_every_point(drawn, make_summary, systems, tasks, lengths):
    summary = make_summary(systems, tasks, lengths, n=22)
    texts, marks = drawn(accuracy(summary))
    found = {
        (mark["System"], mark["Task"], number(mark["Length (tokens)"])): mark
        for mark in marks
        if mark["kind"] == "point"
    }
    cells = summary.filter(pl.col("depth_percent").is_null())
    rows = {row[:3]: row[3:] for row in cells.select(CELL).rows()}
    assert found.keys() == rows.keys()
    for cell, values in rows.items():
        for key, value in zip(("Accuracy (%)", "Low (%)", "High (%)"), values, strict=True):
            assert float(found[cell][key]) == pytest.approx(100 * value, abs=0.051)
    assert {"Context length (tokens, log scale)", "Accuracy (%)", "System"} <= set(texts)
    assert {*cells["system"], *cells["task"], *(f"{n:,}" for n in cells["length"])} <= set(texts)
    assert "n = 22 answers a point, all needle depths together" in texts


def test_accuracy_of_each_task_in_its_own_metric(drawn, make_summary):
    summary = make_summary(2, 3, 2)
    other = summary.with_columns(metric=pl.lit("part"), accuracy=pl.col("accuracy") / 2)
    texts, marks = drawn(accuracy(pl.concat([summary, other]), {"task_b": "part"}))
    assert {"task_a (all)", "task_b (part)", "task_c (all)"} <= set(texts)
    assert "Metric all: share of the references found; part: any reference found" in texts
    points = [mark for mark in marks if mark["kind"] == "point"]
    found = {
        (mark["System"], mark["Task"], number(mark["Length (tokens)"])): (
            mark["Metric"],
            float(mark["Accuracy (%)"]),
        )
        for mark in points
    }
    cells = summary.filter(pl.col("depth_percent").is_null())
    assert len(points) == len(found) == len(cells)
    for row in cells.to_dicts():
        metric, scale = ("part", 50) if row["task"] == "task_b" else ("all", 100)
        expected = (metric, pytest.approx(scale * row["accuracy"], abs=0.051))
        assert found[row["system"], row["task"], row["length"]] == expected


def test_a_system_keeps_its_colour(drawn, make_summary):
    _, few = drawn(accuracy(make_summary(2, 1, 3)))
    _, many = drawn(accuracy(make_summary(8, 1, 3)))
    for marks in (few, many):
        for index, system in enumerate(["dense", "sketchwalk"]):
            points = [m for m in marks if m["kind"] == "point" and m["System"] == system]
            assert {point["stroke"].upper() for point in points} == {COLORS[index].upper()}


def test_counts_that_differ_are_a_range(drawn, make_summary):
    summary = pl.concat([make_summary(1, 1, 2, n=20), make_summary(2, 1, 2, n=22)[-24:]])
    texts, _ = drawn(accuracy(summary))
    assert "n = 20\N{EN DASH}22 answers a point, all needle depths together" in texts


@pytest.mark.parametrize(("systems", "lengths"), [(1, 1), (4, 6), (8, 8)])
def test_cost_has_human_units(drawn, make_costs, systems, lengths):
    texts, marks = drawn(cost(*make_costs(systems, lengths)))
    points = [mark for mark in marks if mark["kind"] == "point"]
    assert len(points) == 2 * systems * lengths
    dense = [m for m in points if m["System"] == "dense" and m["Length (tokens)"] == "512"]
    assert [m["Prefill time (seconds)"] for m in dense[:1]] == ["0.002621"]
    assert [m["Cache size (bytes)"] for m in dense[1:]] == ["524,288"]
    assert {"Prefill time (log scale)", "Cache size (log scale)", "512 KiB"} <= set(texts)
    assert any(text.endswith(" ms") for text in texts)
    assert "n = 3 prompts a point, all tasks together" in texts


def test_cost_leaves_out_what_was_not_measured(drawn, make_costs):
    measurements, predictions = make_costs(2, 3)
    unknown = predictions.with_columns(cache_bytes=pl.lit(None, dtype=pl.Int64))
    texts, _ = drawn(cost(measurements, unknown))
    assert "Cache size (log scale)" not in texts
    assert "Prefill time (log scale)" in texts
    nothing = measurements.with_columns(prefill_seconds=pl.lit(0.0))
    texts, _ = drawn(cost(nothing, unknown))
    assert set(texts) == {"Cost by context length", "Neither time nor cache was measured"}
    texts, _ = drawn(cost(measurements.clear(), predictions.clear()))
    assert set(texts) == {"Cost by context length", "No prompt was answered"}


def test_training_shows_models_and_gates(drawn):
    texts, marks = drawn(training({"dense": metrics(), "infini": metrics(8)}))
    assert {"Loss (nats, log scale)", "Learning rate", "Model", "Gate of layer"} <= set(texts)
    assert {"dense", "infini", "n = 50 (dense), 50 (infini) steps"} <= set(texts)
    lines = [mark for mark in marks if mark["kind"] == "line mark"]
    assert len(lines) == 2 + 2 + 8
    texts, marks = drawn(training({"dense": metrics()}))
    assert "Gate of layer" not in texts


def test_many_gates_are_drawn_as_means_of_their_layer(drawn):
    _, marks = drawn(training({"infini": metrics(40)}))
    assert len([mark for mark in marks if mark["kind"] == "line mark"]) == 2 + 10


def test_a_loss_of_zero_leaves_the_log_axis_standing(drawn):
    texts, _ = drawn(training({"dense": metrics(start=0.0)}))
    assert "Loss (nats, log scale)" in texts


def test_empty_input_is_one_clear_line(make_summary, make_costs):
    summary = make_summary(1, 1, 1)
    measurements, predictions = make_costs(1, 1)
    for figure, message in [
        (lambda: heatmap(summary.clear()), r"^summary: has no rows; make the table again"),
        (lambda: heatmap(summary, task="vt"), r"^summary: no cell with a needle depth for task vt"),
        (lambda: heatmap(summary, metric="part"), r"^summary: no cell .* metric part"),
        (lambda: accuracy(summary.clear()), r"^summary: has no rows"),
        (
            lambda: accuracy(summary, {"task_a": "exact"}),
            r"^summary: no all-depths row of metric exact for task task_a; summarize",
        ),
        (lambda: accuracy(summary.drop("ci_low")), r"^summary: lacks the column 'ci_low'"),
        (lambda: cost(measurements.clear(), predictions), r"^measurements: has no rows"),
        (lambda: cost(measurements, predictions.clear()), r"^predictions: has no rows"),
        (lambda: training({}), r"^training: no model was trained"),
        (lambda: training({"a": metrics().clear()}), r"^training metrics of a: has no rows"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            figure()
        assert "\n" not in str(error.value)


def test_loss_on_held_out_text_has_a_panel_where_there_is_any(drawn):
    between = [None if step % 20 else 3 - step / 50 for step in range(0, 51, 10)]
    validated = metrics().with_columns(validation_loss=pl.Series(between))
    texts, marks = drawn(training({"dense": validated, "infini": metrics()}))
    title = "Loss on held-out text (nats a token, log scale)"
    assert title in texts
    points = [m for m in marks if m["kind"] == "point"]
    found = {float(m["Step"]): float(m["Loss on held-out text"]) for m in points}
    assert found == {0: 3, 20: 2.6, 40: 2.2}
    assert {m["Model"] for m in points} == {"dense"}
    assert title not in drawn(training({"dense": metrics()}))[0]


def test_training_cost_has_human_units(drawn):
    measured = {
        name: pl.DataFrame(
            {
                "step": [1, 10, 20],
                "tokens_per_second": [500.0 * k, 2000.0 * k, 1900.0 * k],
                "peak_memory_bytes": [2**28 * k, 2**29 * k, 2**29 * k],
            }
        )
        for name, k in (("dense", 1), ("gates own", 3))
    }
    texts, marks = drawn(training_cost(measured))
    assert {"Tokens a second (log scale)", "Peak memory (log scale)", "Step", "Model"} <= set(texts)
    assert {"256 MiB", "2 GiB", "1k", "dense", "gates own"} <= set(texts)
    assert len([mark for mark in marks if mark["kind"] == "line mark"]) == 4
    with pytest.raises(ValueError, match="training measurements of old: lacks the column 'peak_"):
        training_cost({"old": measured["dense"].drop("peak_memory_bytes")})


def test_finetuning_shows_each_depth_before_and_after(drawn, make_summary):
    depths = make_summary(4, 2, 1, n=22).drop_nulls("depth_percent").drop("length")
    before = {"infini": "dense", "sketchwalk": "dense"}
    texts, marks = drawn(finetuning(depths, before))
    told = {
        "dense": "dense (before)",
        "infini": "infini (after, from dense)",
        "sketchwalk": "sketchwalk (after, from dense)",
    }
    assert {*told.values(), "task_a", "task_b", "Needle depth (%)", "Accuracy (%)"} <= set(texts)
    assert "n = 22 needles a point, all lengths together" in texts
    points = [mark for mark in marks if mark["kind"] == "point"]
    found = {(m["System"], m["Task"], float(m["Depth (%)"])): m for m in points}
    cells = depths.filter(pl.col("system").is_in(list(told)))
    assert len(points) == len(found) == len(cells) == 3 * 2 * 11
    for row in cells.to_dicts():
        mark = found[told[row["system"]], row["task"], row["depth_percent"]]
        for name, key in (
            ("Accuracy (%)", "accuracy"),
            ("Low (%)", "ci_low"),
            ("High (%)", "ci_high"),
        ):
            assert float(mark[name]) == pytest.approx(100 * row[key], abs=0.051)
