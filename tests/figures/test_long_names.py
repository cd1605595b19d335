"""Names of sweeps and tasks at their maximum length, in the text of every figure with panels."""

import polars as pl
import pytest

from needlework.config.parsing.sweep import expand
from needlework.figures.accuracy import accuracy
from needlework.figures.density import density
from needlework.figures.effective_length import effective_length
from needlework.figures.finetuning import finetuning
from needlework.figures.heatmap import heatmap
from needlework.figures.pareto import pareto
from needlework.figures.training import training
from needlework.scoring.effective_length import effective_lengths, mean_scores

SWEEP = {"calibrated_blocks": [16, 32], "sketch_dimensions": [64, 128]}
SYSTEM = {"model": "m", "attention": {"type": "sketchwalk"}, "sweep": SWEEP}
SYSTEMS = list(expand({"systems": {"sketchwalk_of_llama": SYSTEM}}).config["systems"])
TASKS = [f"niah_single_2_with_four_keys_and_templates_in_french_digits_{i}" for i in (5, 7)]


@pytest.fixture
def summary(make_summary):
    table = make_summary(4, 2, 2, depths=[0.0, 50.0, 100.0])
    names = dict(zip(table["system"].unique(maintain_order=True), SYSTEMS, strict=True))
    names |= dict(zip(table["task"].unique(maintain_order=True), TASKS, strict=True))
    return table.with_columns(
        pl.col("system", "task").replace_strict(names), skip_reason=pl.lit(None, pl.String)
    )


def draw_effective_length(summary):
    means = mean_scores(summary)
    return effective_length(means, effective_lengths(means, 0.5, 0.85), 0.85)


def draw_pareto(summary):
    share = pl.col("accuracy") / 2 + 0.1
    names = ["prefill_density", "decode_density"]
    names += [f"sparse_layers_{name}" for name in names]
    table = summary.with_columns(share.alias(name) for name in names)
    return pareto(table, {system: system for system in SYSTEMS})


def draw_density(summary):
    cells = [
        {"system": system, "task": TASKS[0], "length": 512, "layer": layer, "stage": "prefill"}
        | {"is_sparse": True, "density": 0.5, "pairs": 100}
        for system in SYSTEMS
        for layer in range(3)
    ]
    return density([pl.DataFrame(cells)])


def draw_finetuning(summary):
    return finetuning(summary.drop_nulls("depth_percent"), {SYSTEMS[1]: SYSTEMS[0]})


def draw_training(summary):
    steps = {"step": [0, 10], "loss": [2.0, 1.0], "learning_rate": [0.1, 0.1]}
    table = pl.DataFrame(steps | {"gate_layer0_head0": [0.1, 0.2]})
    return training([table] * len(SYSTEMS), SYSTEMS)


FIGURES = {
    "accuracy": (accuracy, [*SYSTEMS, *TASKS]),
    "effective_length": (draw_effective_length, SYSTEMS),
    "density": (draw_density, SYSTEMS),
    "finetuning": (draw_finetuning, [*SYSTEMS[:2], *TASKS]),
    "heatmap of a task": (lambda summary: heatmap(summary, TASKS[0]), [*SYSTEMS, TASKS[0]]),
    "heatmaps of all tasks": (heatmap, [*SYSTEMS, *TASKS]),
    "pareto": (draw_pareto, [*SYSTEMS, *TASKS]),
    "training": (draw_training, SYSTEMS),
}


@pytest.mark.parametrize("figure", FIGURES)
def test_no_name_is_cut(drawn, summary, figure):
    assert len(set(SYSTEMS)) == 4
    assert min(map(len, [*SYSTEMS, *TASKS])) > 55
    draw, names = FIGURES[figure]
    texts, _ = drawn(draw(summary))
    assert not [text for text in texts if "…" in text]
    # Lines of a wrapped label follow each other.
    everything = "".join(texts)
    assert [name for name in names if name not in everything] == []
