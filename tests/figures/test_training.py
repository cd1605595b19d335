"""Training curves, rendered to SVG: their texts and marks."""

import polars as pl
import pytest

from needlework.figures.training import training


def metrics(gates=0, start=2.0):
    steps = list(range(0, 51, 10))
    table = {"step": steps, "loss": [start / (1 + s) for s in steps]}
    table["learning_rate"] = [1e-3 * s / 50 for s in steps]
    for gate in range(gates):
        table[f"gate_layer{gate // 4}_head{gate % 4}"] = [gate / 100 + s / 100 for s in steps]
    return pl.DataFrame(table)


def test_training_shows_models_and_gates(drawn):
    texts, marks = drawn(training([metrics(), metrics(8)], ["dense", "infini"]))
    assert {"Loss (nats, log scale)", "Learning rate", "Model", "Gate of layer"} <= set(texts)
    assert {"dense", "infini", "n = 50 (dense), 50 (infini) steps"} <= set(texts)
    lines = [mark for mark in marks if mark["kind"] == "line mark"]
    assert len(lines) == 2 + 2 + 8
    texts, marks = drawn(training([metrics()], ["dense"]))
    assert "Gate of layer" not in texts


def test_many_gates_are_averaged_by_layer(drawn):
    _, marks = drawn(training([metrics(40)], ["infini"]))
    assert len([mark for mark in marks if mark["kind"] == "line mark"]) == 2 + 10


def test_a_loss_of_zero_has_a_log_axis(drawn):
    texts, _ = drawn(training([metrics(start=0.0)], ["dense"]))
    assert "Loss (nats, log scale)" in texts


def test_validation_loss_has_a_panel_if_there_is_any(drawn):
    between = [None if step % 20 else 3 - step / 50 for step in range(0, 51, 10)]
    validated = metrics().with_columns(validation_loss=pl.Series(between))
    texts, marks = drawn(training([validated, metrics()], ["dense", "infini"]))
    title = "Loss on held-out text (nats per token, log scale)"
    assert title in texts
    points = [m for m in marks if m["kind"] == "point"]
    shown = {float(m["Step"]): float(m["Loss on held-out text"]) for m in points}
    assert shown == {0: 3, 20: 2.6, 40: 2.2}
    assert {m["Model"] for m in points} == {"dense"}
    assert title not in drawn(training([metrics()], ["dense"]))[0]


def test_errors_are_one_line():
    for draw, message in [
        (lambda: training([], []), r"^training: no model was trained"),
        (lambda: training([metrics().clear()], ["a"]), r"^training metrics of a: no rows"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            draw()
        assert "\n" not in str(error.value)
