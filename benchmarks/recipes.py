"""Write the table and figure of config/infini-recipes.yaml for docs/training.md.

    .venv/bin/python -m benchmarks.recipes

reads results/infini-recipes/. Create it with
`make run ARGS="--configfile config/infini-recipes.yaml"`.
"""

import altair as alt
import polars as pl
from scipy.stats import binomtest

from benchmarks.ablation import DOCS, ROOT
from needlework.figures.style.save import save
from needlework.figures.style.theme import inline, sample_size, styled

RESULTS = ROOT / "results" / "infini-recipes"
BASE = "recipe"
LEARNT = 0.1
FACTORS = {
    "update": {BASE: "linear", "update-delta": "delta"},
    "learning rate of gates": {
        "gate-rate-0": "0",
        "gate-rate-model": "0.0015 (model's)",
        "gate-rate-0.01": "0.01",
        BASE: "0.05",
    },
    "sigma_scale": {"sigma-1": "1", BASE: "3"},
    "segments: training / evaluation": {
        "aligned-start": "start / start",
        "aligned": "start / end",
        "recipe-start": "end / start",
        BASE: "end / end",
        "random-start": "random / start",
        "random": "random / end",
    },
}
"""Factors, with the system and label of each value."""


def main() -> None:
    seeds = by_seed()
    points = pooled(seeds)
    points.write_csv(DOCS / "recipes.csv", float_precision=4)
    save(chart(points, seeds), png=DOCS / "recipes.png")
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=160):
        print(points)


def by_seed() -> pl.DataFrame:
    """One row per factor, value, seed and length: n, correct, gate and learnt_steps.

    `gate` is the final mean over all gates; `learnt_steps` is the first step with a training loss
    below LEARNT.
    """
    summary = pl.read_parquet(RESULTS / "summary.parquet")
    summary = summary.filter(pl.col("depth_percent").is_null(), pl.col("metric") == "all")
    rows = []
    for factor, values in FACTORS.items():
        for system, value in values.items():
            for row in summary.iter_rows(named=True):
                name, _, seed = row["system"].rpartition("_")
                if name != system:
                    continue
                model = f"{system.removesuffix('-start')}_{seed}"
                steps = pl.read_parquet(RESULTS / "training" / f"{model}.parquet")
                rows.append(
                    {
                        "factor": factor,
                        "value": value,
                        "seed": int(seed),
                        "length": row["length"],
                        "n": row["n"],
                        "correct": round(row["n"] * row["accuracy"]),
                        "learnt_steps": steps.filter(pl.col("loss") < LEARNT)["step"].min(),
                        "gate": steps[-1].select(pl.mean_horizontal("^gate_layer.*$")).item(),
                    }
                )
    return pl.DataFrame(rows)


def pooled(seeds: pl.DataFrame) -> pl.DataFrame:
    """One row per factor, value and length: pooled accuracy with its Wilson interval, and the
    accuracy of the worst and best seed."""
    accuracy = pl.col("correct") / pl.col("n")
    points = seeds.group_by("factor", "value", "length", maintain_order=True).agg(
        seeds=pl.len(),
        lowest_seed=accuracy.min(),
        highest_seed=accuracy.max(),
        learnt_steps=pl.col("learnt_steps").mean(),
        gate=pl.col("gate").mean(),
        n=pl.col("n").sum(),
        correct=pl.col("correct").sum(),
    )
    intervals = [
        binomtest(row["correct"], row["n"]).proportion_ci(method="wilson")
        for row in points.iter_rows(named=True)
    ]
    return points.with_columns(
        accuracy=accuracy,
        ci_low=pl.Series([interval.low for interval in intervals]),
        ci_high=pl.Series([interval.high for interval in intervals]),
    )


def chart(points: pl.DataFrame, seeds: pl.DataFrame) -> alt.TopLevelMixin:
    """Accuracy by the value of each factor: one row of panels per factor, one column per length."""
    shown = points.with_columns(pl.col("accuracy", "ci_low", "ci_high") * 100)
    dots = seeds.with_columns(percent=100 * pl.col("correct") / pl.col("n"))
    rows = []
    for factor, values in FACTORS.items():
        x = alt.X("value:N", title=factor, sort=[*values.values()], axis=alt.Axis(labelAngle=-30))
        panels = []
        for length in sorted(shown["length"].unique()):
            at = (pl.col("factor") == factor) & (pl.col("length") == length)
            base = alt.Chart(inline(shown.filter(at))).encode(x=x)
            y = alt.Y("accuracy:Q", title="Accuracy (%)").scale(domain=[0, 100])
            layers = [
                base.mark_rule(strokeWidth=2, opacity=0.6).encode(
                    y=alt.Y("ci_low:Q", title="Accuracy (%)"), y2="ci_high:Q"
                ),
                base.mark_tick(thickness=2.5, width=18).encode(y=y),
                alt.Chart(inline(dots.filter(at)))
                .mark_point(size=45, filled=False, opacity=1)
                .encode(x=x, y=alt.Y("percent:Q")),
            ]
            panels.append(
                alt.layer(*layers).properties(width=190, height=130, title=f"{length:,} tokens")
            )
        rows.append(alt.hconcat(*panels))
    return styled(
        alt.vconcat(*rows),
        "Recipes of Infini-attention: one factor at a time, passkey",
        [
            "Bars: all seeds pooled, with 95 % intervals (Wilson); circles: single seeds",
            sample_size(points["n"], "answers per bar") + "; segments of 128 tokens",
        ],
    )


if __name__ == "__main__":
    main()
