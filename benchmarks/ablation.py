"""Write the tables and figures of config/ablation.yaml and config/forms.yaml to docs/results/.

    .venv/bin/python -m benchmarks.ablation

reads results/ablation/summary.parquet and results/forms/summary.parquet. Create them with
`make run ARGS="--configfile config/ablation.yaml"`, and likewise for config/forms.yaml.
"""

from pathlib import Path

import altair as alt
import polars as pl

from needlework.figures.style.save import save
from needlework.figures.style.theme import categorical, distinct, inline, sample_size, styled

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "results"
FACTORS = {
    "keys": "mean",
    "heads": "sum",
    "walk": "product",
    "select": "topk",
    "exponent": "8",
    "block": "8",
    "sketch": "64",
    "dense-layers": "0",
    "skip-decode": "false",
    "density": "0.2",
}
"""Factors, with the value of each in the base system."""
OTHERS = ("random", "oracle", "box")
"""Prefixes of systems other than SketchWalk with a sum over heads."""


def main() -> None:
    ablation = _read("ablation")
    points = factor_points(ablation)
    points.write_csv(DOCS / "ablation.csv", float_precision=4)
    save(factors(points), png=DOCS / "ablation.png")
    forms = _read("forms")
    forms.write_csv(DOCS / "forms.csv", float_precision=4)
    save(densities(points), png=DOCS / "forms-density.png")
    for table in (points, forms):
        with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=160):
            print(table)


def _read(experiment: str) -> pl.DataFrame:
    summary = pl.read_parquet(ROOT / "results" / experiment / "summary.parquet")
    kept = ["system", "task", "length", "n", "accuracy", "ci_low", "ci_high"]
    return summary.filter(pl.col("depth_percent").is_null(), pl.col("metric") == "all").select(
        *kept,
        *("prefill_density", "decode_density"),
        *("sparse_layers_prefill_density", "sparse_layers_decode_density"),
    )


def factor_points(summary: pl.DataFrame) -> pl.DataFrame:
    """One row per form, factor, value and task, from systems named [form-]factor_value.

    The base form is repeated for every factor, at its value. Systems outside the ablation (dense,
    presets) have no factor.
    """
    rows = []
    for row in summary.iter_rows(named=True):
        system = row["system"]
        form, _, rest = system.partition("-")
        form, rest = (form, rest) if form in OTHERS else ("sum", system)
        factor, _, value = rest.rpartition("_")
        if factor in FACTORS:
            rows.append({"form": form, "factor": factor, "value": value, **row})
        elif system in ("base", "random", "oracle"):
            form = "sum" if system == "base" else system
            rows += [{"form": form, "factor": f, "value": v, **row} for f, v in FACTORS.items()]
        else:
            rows.append({"form": system, "factor": None, "value": None, **row})
    order = {name: pl.Enum([*FACTORS]) for name in ("factor",)}
    return pl.DataFrame(rows).cast(order).sort("factor", maintain_order=True, nulls_last=True)


def factors(points: pl.DataFrame) -> alt.TopLevelMixin:
    """Accuracy by the value of each factor, one panel per factor; the base form is filled."""
    shown = points.filter(pl.col("form").is_in(["sum", "random"]), pl.col("factor").is_not_null())
    shown = shown.with_columns(
        series=pl.when(pl.col("form") == "random").then(pl.lit("random, ")).otherwise(pl.lit(""))
        + pl.col("task"),
        is_base=pl.col("system") == "base",
        percent=100 * pl.col("accuracy"),
        ci_low=100 * pl.col("ci_low"),
        ci_high=100 * pl.col("ci_high"),
    )
    series = sorted(distinct(shown, "series"), key=lambda s: (s.startswith("random"), s))
    look = categorical("series", series, "Task")
    panels = []
    for factor, base in FACTORS.items():
        panel = shown.filter(pl.col("factor") == factor)
        if panel.filter(pl.col("form") == "random")["value"].n_unique() < 2:
            panel = panel.filter(pl.col("form") != "random")
        values = sorted({*panel["value"], base}, key=_value)
        x = alt.X("value:N", title=factor, sort=values, axis=alt.Axis(labelAngle=0))
        y = alt.Y("percent:Q", title="Accuracy (%)").scale(domain=[0, 100])
        chart = alt.Chart(inline(panel)).encode(
            x=x.scale(domain=values),
            xOffset=alt.XOffset("series:N").scale(
                domain=[s for s in series if s in distinct(panel, "series")]
            ),
        )
        points_of = chart.mark_point(size=55, strokeWidth=1.6, opacity=1, filled=False)
        layers = [
            chart.mark_rule(strokeWidth=1.5, opacity=0.6).encode(
                y=alt.Y("ci_low:Q", title="Accuracy (%)"), y2="ci_high:Q", color=look["color"]
            ),
            points_of.encode(y=y, color=look["color"], shape=look["shape"]),
            points_of.transform_filter("datum.is_base")
            .mark_point(size=55, opacity=1, filled=True)
            .encode(y=y, color=look["color"], shape=look["shape"]),
        ]
        panels.append(alt.layer(*layers).properties(width=230, height=150))
    of_base = shown.filter(pl.col("form") == "sum")
    return styled(
        alt.concat(*panels, columns=3).resolve_scale(xOffset="independent"),
        "SketchWalk: one factor at a time, 2,048 tokens",
        [
            "Base form (filled): heads sum, block 8, walk product, exponent 8, 20 % of the causal "
            "pairs, all layers, prefill and decode",
            "Metric all, with 95 % intervals (Wilson); "
            + sample_size(of_base["n"], "answers per point"),
            "random, the lower bound, where the factor can affect it",
        ],
    )


def _value(value: str) -> tuple[bool, float, str]:
    """Sort key: numbers by value, then words."""
    try:
        return False, float(value), ""
    except ValueError:
        return True, 0, value


def densities(points: pl.DataFrame) -> alt.TopLevelMixin:
    """Accuracy by measured density of the whole model in prefill: all forms, random and oracle."""
    named = {
        "box": "box (ours)",
        "sum": "heads sum",
        "oracle": "oracle",
        "random": "random",
        "paper-all-layers": "paper, all layers",
        "official-all-layers": "official, all layers",
    }
    at = (pl.col("factor") == "density") | pl.col("factor").is_null()
    shown = points.filter(pl.col("form").is_in([*named]), at).select(
        "task",
        "n",
        form=pl.col("form").replace_strict(named),
        density=100 * pl.col("prefill_density"),
        percent=100 * pl.col("accuracy"),
        ci_low=100 * pl.col("ci_low"),
        ci_high=100 * pl.col("ci_high"),
    )
    dense = points.filter(pl.col("form") == "dense").select("task", dense=100 * pl.col("accuracy"))
    shown = shown.join(dense, on="task", how="left")
    look = categorical("form", list(named.values()), "Blocks of 8 (presets: 64)")
    scale = alt.Scale(type="log", domain=[4, 100], nice=False)
    x = alt.X("density:Q", title="Density of the whole model in prefill (% of causal pairs, log)")
    x = x.scale(scale).axis(values=[5, 10, 20, 40, 100], format="~g")
    axis = alt.Axis(values=list(range(0, 101, 20)))
    y = alt.Y("percent:Q", title="Accuracy (%)", axis=axis).scale(domain=[0, 100])
    base = alt.Chart().encode(x=x, color=look["color"])
    low = alt.Y("ci_low:Q", title="Accuracy (%)", axis=axis)
    chart = alt.layer(
        alt.Chart().mark_rule(strokeDash=[5, 4], strokeWidth=1.5).encode(y="dense:Q"),
        base.mark_rule(opacity=0.6, strokeWidth=1.5).encode(y=low, y2="ci_high:Q"),
        base.mark_line(strokeWidth=2).encode(y=y, strokeDash=look["strokeDash"]),
        base.mark_point(filled=False, size=60, strokeWidth=1.8, opacity=1).encode(
            y=y, shape=look["shape"]
        ),
    ).properties(width=330, height=260)
    return styled(
        chart.facet(data=inline(shown), facet=alt.Facet("task:N", title=None), columns=2),
        "Training-free forms by density, 2,048 tokens",
        [
            "All layers sparse, prefill and decode. Dashed: dense",
            "Metric all, with 95 % intervals (Wilson); "
            + sample_size(shown["n"], "answers per point"),
        ],
    )


if __name__ == "__main__":
    main()
