"""The longest length at which each system's score still reaches a threshold."""

import altair as alt
import polars as pl

from needlework.figures.style.axes import length_axis, side_by_side
from needlework.figures.style.skipped_cells import MARK
from needlework.figures.style.theme import (
    categorical,
    distinct,
    empty_figure,
    inline,
    name_axis,
    name_step,
    sample_size,
    styled,
)
from needlework.tables.columns import require

_WIDTH, _HEIGHT = 420, 300
_TITLE = "Effective context length"
_NONE = "none"
_CRITERION_COLORS = ["#000000", "#7F7F7F"]


def effective_length(
    means: pl.DataFrame, lengths: pl.DataFrame, share: float, length_unit: str = "tokens"
) -> alt.TopLevelMixin:
    """Left: scores and the threshold. Right: effective lengths with their intervals.

    Args:
        means: system, length, tasks, n, score, ci_low, ci_high (0-1), from `mean_scores`.
        lengths: the table from `effective_lengths`.
        share: the share (0-1) that `effective_lengths` was given.
        length_unit: unit of the lengths.

    Raises:
        ValueError: a table has no rows.
    """
    require(means, ["system", "length", "tasks", "n", "score", "ci_low", "ci_high"], "mean scores")
    require(
        lengths,
        ["system", "criterion", "effective_length", "ci_low", "ci_high"],
        "effective length",
    )
    scored = means.drop_nulls("score")
    if scored.is_empty():
        return empty_figure(_TITLE, "No length was run with all tasks")
    tasks = max(means["tasks"].to_list())
    panels = (_scores(means, lengths, length_unit), _lengths(lengths, means, share, length_unit))
    return styled(
        alt.hconcat(*panels, spacing=36).resolve_scale(color="independent", shape="independent"),
        _TITLE,
        [
            f"Score: mean accuracy over {tasks} task{'s' * (tasks > 1)}, equally weighted",
            "Effective length: the longest length at which the score reaches the threshold; "
            "bars: 95 % intervals",
            "Triangle: the longest length tested, so the effective length may be longer",
            sample_size(scored["n"], "answers per point"),
            *(
                [f"{MARK} not run with all tasks, counted as below the threshold"]
                if len(scored) < len(means)
                else []
            ),
        ],
    )


def _threshold(lengths: pl.DataFrame) -> float:
    return lengths.filter(criterion="score")["threshold"][0]


def _scores(means: pl.DataFrame, lengths: pl.DataFrame, length_unit: str) -> alt.LayerChart:
    systems, tested = distinct(means, "system"), sorted(means["length"].unique())
    data = side_by_side(
        means.with_columns((100 * pl.col("score", "ci_low", "ci_high")).name.keep()), tested, _WIDTH
    )
    look = categorical("system", systems, "System")
    scale = alt.Scale(domain=[0, 100])
    every = alt.Chart(inline(data)).encode(
        x=length_axis(tested, _WIDTH, "x", length_unit), color=look["color"]
    )
    base = every.transform_filter("isValid(datum.score)")
    cell = [
        alt.Tooltip("system:N", title="System"),
        alt.Tooltip("length:Q", title=f"Length ({length_unit})", format=","),
    ]
    score = alt.Y("score:Q", title="Score (%)", scale=scale)
    threshold = alt.Chart(inline(pl.DataFrame({"threshold": [100 * _threshold(lengths)]})))
    layers = [
        threshold.mark_rule(strokeDash=[6, 4], color=_CRITERION_COLORS[0]).encode(
            y=alt.Y("threshold:Q")
        ),
        base.mark_rule(opacity=0.6, strokeWidth=1.5).encode(
            y=alt.Y("ci_low:Q", title="Score (%)", scale=scale), y2="ci_high:Q"
        ),
        base.mark_line(strokeWidth=2).encode(y=score, strokeDash=look["strokeDash"]),
        base.mark_point(filled=False, size=60, strokeWidth=1.8, opacity=1).encode(
            y=score,
            shape=look["shape"],
            tooltip=[
                *cell,
                alt.Tooltip("score:Q", title="Score (%)", format=".1f"),
                alt.Tooltip("ci_low:Q", title="Lower bound (%)", format=".1f"),
                alt.Tooltip("ci_high:Q", title="Upper bound (%)", format=".1f"),
                alt.Tooltip("n:Q", title="Answers"),
            ],
        ),
    ]
    if means["score"].has_nulls():
        crosses = every.transform_filter("!isValid(datum.score)").mark_text(text=MARK, fontSize=15)
        layers.append(crosses.encode(y=alt.value(_HEIGHT - 8), tooltip=cell))
    return alt.layer(*layers).properties(width=_WIDTH, height=_HEIGHT)


def _lengths(
    lengths: pl.DataFrame, means: pl.DataFrame, share: float, length_unit: str
) -> alt.LayerChart:
    systems, tested = distinct(lengths, "system"), sorted(means["length"].unique())
    criteria = {
        "score": f"{_percent(_threshold(lengths))} %",
        "share": f"{_percent(share)} % of its score at {tested[0]:,}",
    }
    data = lengths.with_columns(
        pl.col("criterion").replace_strict(criteria),
        pl.format("{}", pl.col("effective_length", "ci_low", "ci_high")).replace_strict(
            {str(length): f"{length:,}" for length in tested}, default=_NONE
        ),
        is_longest=pl.col("effective_length").eq_missing(pl.col("longest_length")),
        percent=100 * pl.col("threshold"),
    )
    ticks = [_NONE, *(f"{length:,}" for length in tested)]
    title = f"Effective length ({length_unit})"

    def x(column: str) -> alt.X:
        axis = alt.Axis(labelAngle=0 if len(ticks) < 8 else -45, labelOverlap=False, grid=True)
        return alt.X(f"{column}:O", title=title, scale=alt.Scale(domain=ticks), axis=axis)

    base = alt.Chart(inline(data)).encode(
        y=alt.Y("system:N", title=None, sort=systems, axis=name_axis(systems)),
        yOffset=alt.YOffset("criterion:N", sort=list(criteria.values())),
        color=alt.Color("criterion:N", title="Threshold").scale(
            domain=list(criteria.values()), range=_CRITERION_COLORS
        ),
    )
    return alt.layer(
        base.mark_rule(strokeWidth=2).encode(x=x("ci_low"), x2="ci_high:O"),
        base.mark_point(filled=True, size=70, opacity=1).encode(
            x=x("effective_length"),
            shape=alt.Shape("is_longest:N", legend=None).scale(
                domain=[False, True], range=["circle", "triangle-right"]
            ),
            tooltip=[
                alt.Tooltip("system:N", title="System"),
                alt.Tooltip("criterion:N", title="Threshold"),
                alt.Tooltip("percent:Q", title="Threshold score (%)", format=".1f"),
                alt.Tooltip("effective_length:N", title=title),
                alt.Tooltip("ci_low:N", title="Lower bound (95 %)"),
                alt.Tooltip("ci_high:N", title="Upper bound (95 %)"),
            ],
        ),
    ).properties(width=_WIDTH, height=max(_HEIGHT, name_step(systems, 30) * len(systems)))


def _percent(share: float) -> str:
    return f"{100 * share:.4g}"
