import xml.etree.ElementTree as ET

import polars as pl
import pytest

from needlework.figures.style.save import save

SYSTEMS = ["dense", "sketchwalk", "random", "infini", "seer", "streaming", "snapkv", "delta"]
TASKS = [f"task_{letter}" for letter in "abcdefghijklm"]
LENGTHS = [512, 1000, 1024, 2048, 3000, 4096, 32768, 131072]
SVG = "{http://www.w3.org/2000/svg}"
DEPTHS = [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0]


@pytest.fixture
def make_summary():
    """A summary with different accuracies; densities and cache are null."""

    def make(systems=4, tasks=2, lengths=6, depths=DEPTHS, n=2):
        rows = []
        for s, system in enumerate(SYSTEMS[:systems]):
            for t, task in enumerate(TASKS[:tasks]):
                for i, length in enumerate(LENGTHS[:lengths]):
                    for d, depth in enumerate([None, *depths]):
                        accuracy = ((7 * s + 5 * t + 3 * i + d) % 21) / 20
                        rows.append((system, task, length, depth, "all", n, accuracy))
        columns = ["system", "task", "length", "depth_percent", "metric", "n", "accuracy"]
        null = pl.lit(None, dtype=pl.Float64)
        return pl.DataFrame(
            rows, schema=columns, orient="row", infer_schema_length=None
        ).with_columns(
            ci_low=pl.col("accuracy") * 0.9,
            ci_high=(pl.col("accuracy") + 0.1).clip(upper_bound=1),
            prefill_density=null,
            decode_density=null,
            sparse_layers_prefill_density=null,
            sparse_layers_decode_density=null,
            cache_bytes=null,
        )

    return make


@pytest.fixture
def make_costs():
    """Measurements and predictions, three prompts per cell; seconds grow quadratically."""

    def make(systems=4, lengths=6):
        rows = [
            {"system": system, "task": "task_a", "length": length, "sample": sample}
            | {"prefill_seconds": 1e-8 * length**2 * (s + 1) * factor, "cache_bytes": 1024 * length}
            for s, system in enumerate(SYSTEMS[:systems])
            for length in LENGTHS[:lengths]
            for sample, factor in enumerate((0.9, 1.0, 1.2))
        ]
        table = pl.DataFrame(rows)
        return [table.drop("cache_bytes")], [table.drop("prefill_seconds")]

    return make


@pytest.fixture
def drawn(tmp_path):
    """Render a chart: its lines of text, and the fields of each mark."""

    def draw(chart):
        save(chart, svg=tmp_path / "chart.svg")
        root = ET.parse(tmp_path / "chart.svg").getroot()
        nodes = [node for node in root.iter() if node.tag in (f"{SVG}text", f"{SVG}tspan")]
        marks = [
            {"kind": node.get("aria-roledescription"), "stroke": node.get("stroke")}
            | dict(part.partition(": ")[::2] for part in node.get("aria-label").split("; "))
            for node in root.iter()
            if node.get("role") == "graphics-symbol" and "; " in node.get("aria-label", "")
        ]
        return [node.text for node in nodes if node.text], marks

    return draw
