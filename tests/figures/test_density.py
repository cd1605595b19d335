"""Density by layer, rendered to SVG: its texts and marks."""

import polars as pl
import pytest

from needlework.figures.density import density

pytestmark = pytest.mark.slow

TASKS = ["task_a", "task_b"]


def _densities(systems=("walk", "floor"), lengths=(512, 4096), layers=4, stages=2):
    """Different densities everywhere; the second system has one dense layer more."""
    rows = []
    for s, system in enumerate(systems):
        for t, task in enumerate(TASKS):
            for i, length in enumerate(lengths):
                for layer in range(layers):
                    for j, stage in enumerate(["prefill", "decode"][:stages]):
                        share = (1 + (7 * s + 5 * t + 3 * i + 2 * layer + j) % 40) / 41
                        is_sparse = layer > s % 2
                        share = share if is_sparse else 1.0
                        cell = system, task, length, layer, stage, is_sparse
                        rows.append((*cell, share, 1000 * (t + 1)))
    columns = ["system", "task", "length", "layer", "stage", "is_sparse", "density", "pairs"]
    return pl.DataFrame(rows, schema=columns, orient="row")


@pytest.mark.parametrize(("systems", "layers"), [(1, 2), (2, 4), (8, 40)])
def test_every_layer_is_a_cell_with_tasks_pooled(drawn, systems, layers):
    table = _densities([f"s{i}" for i in range(systems)], layers=layers)
    texts, marks = drawn(density([table]))
    shown = {
        (m["System"], int(m["Length (tokens)"].replace(",", "")), int(m["Layer"]), m["Stage"]): m
        for m in marks
        if m["kind"] == "rect mark"
    }
    kept, pairs = {}, {}
    for row in table.to_dicts():
        cell = row["system"], row["length"], row["layer"], row["stage"]
        kept[cell] = kept.get(cell, 0) + row["density"] * row["pairs"]
        pairs[cell] = pairs.get(cell, 0) + row["pairs"]
    assert shown.keys() == kept.keys()
    is_sparse = {(row["system"], row["layer"]): row["is_sparse"] for row in table.to_dicts()}
    for cell, mark in shown.items():
        assert float(mark["Density (%)"]) == pytest.approx(100 * kept[cell] / pairs[cell], abs=0.01)
        assert mark["Attention"] == ("sparse" if is_sparse[cell[0], cell[2]] else "dense")
        assert mark["Causal pairs"] == f"{pairs[cell]:,}"
    assert {"Density by layer", "Layer", "Density (%)", *table["system"]} <= set(texts)
    panels = [text for text in texts if text.endswith((", prefill", ", decode"))]
    assert panels == [
        *("512 tokens, prefill", "512 tokens, decode"),
        *("4,096 tokens, prefill", "4,096 tokens, decode"),
    ]


def test_small_densities_have_one_decimal(drawn):
    table = _densities(("walk",), (512,), 3)
    small = table.with_columns(density=pl.when("is_sparse").then(0.0154).otherwise(1.0))
    texts, _ = drawn(density([small]))
    assert texts.count("1.5") == 4
    assert texts.count("100") == 2 + 1
    texts, _ = drawn(density([table.with_columns(density=pl.lit(1.0))]))
    assert texts.count("100") == 6 + 1  # the legend's


def test_a_stage_that_was_not_measured_has_no_panel(drawn):
    texts, _ = drawn(density([_densities(stages=1)], "characters"))
    assert "512 characters, prefill" in texts
    assert not [text for text in texts if text.endswith("decode")]


def test_every_system_and_enough_layers_are_labelled(drawn):
    systems = [f"sketchwalk_top_k_blocks{k}_block_size32_dense_layers2" for k in range(20)]
    texts, _ = drawn(density([_densities(systems, (512,), 80)]))
    # Lines of a wrapped name follow each other.
    assert all(system in "".join(texts) for system in systems)
    assert {"0", "40", "76"} <= set(texts)


def test_colour_scale_is_0_to_100_whatever_the_densities():
    table = _densities().with_columns(density=pl.col("density") / 10)
    encoding = density([table]).to_dict()["spec"]["layer"][0]["encoding"]
    assert encoding["color"]["condition"]["scale"]["domain"] == [0, 100]
    assert encoding["color"]["condition"]["test"] == "datum.is_sparse"


def test_an_empty_or_incomplete_table_is_an_error():
    with pytest.raises(ValueError, match=r"^densities: no rows; make the table again"):
        density([_densities().clear()])
    with pytest.raises(ValueError, match=r"^densities: column 'pairs' is missing"):
        density([_densities().drop("pairs")])
