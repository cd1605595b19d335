"""Up to which length systems still reach a score."""

import altair as alt
import polars as pl

from needlework.figures.style.axes import length_axis, side_by_side
from needlework.figures.style.skipped_cells import MARK
from needlework.figures.style.theme import blank, counted, inline, names, styled, told_apart
from needlework.tables.columns import require

_WIDTH, _HEIGHT = 420, 300
_TITLE = "Effective context length"
_NONE = "none"
_CRITERIA = ["#000000", "#7F7F7F"]


def effective_length(
    means: pl.DataFrame, lengths: pl.DataFrame, share: float, unit: str = "tokens"
) -> alt.TopLevelMixin:
    """Left the scores and the one to reach; right the effective lengths with their intervals.

    Args:
        means: system, length, tasks, n, score, ci_low, ci_high (0-1), as `mean_scores` makes them.
        lengths: as `effective_lengths` makes them.
        share: that these were made with, 0-1.
        unit: of the lengths.

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
        return blank(_TITLE, "no length was run with all tasks")
    tasks, reach = means["tasks"].max(), _threshold(lengths)
    charts = (_scores(means, reach, unit), _reached(lengths, means, share, unit))
    return styled(
        alt.hconcat(*charts, spacing=36).resolve_scale(color="independent", shape="independent"),
        _TITLE,
        [
            f"Score: mean accuracy over {tasks} task{'s' * (tasks > 1)}; all of them count alike",
            "Effective length: the longest that reaches a score; bars: the longest that surely and "
            "that perhaps do (95 %)",
            "Triangle: the longest that was asked, so it may be longer",
            counted(scored["n"], "answers a point"),
            *(
                [f"{MARK} not run with all tasks, so not reached"]
                if len(scored) < len(means)
                else []
            ),
        ],
    )


def _threshold(lengths: pl.DataFrame) -> float:
    return lengths.filter(criterion="score")["threshold"][0]


def _scores(means: pl.DataFrame, reach: float, unit: str) -> alt.LayerChart:
    systems, at = names(means, "system"), sorted(means["length"].unique())
    data = side_by_side(
        means.with_columns((100 * pl.col("score", "ci_low", "ci_high")).name.keep()), at, _WIDTH
    )
    look = told_apart("system", systems, "System")
    scale = alt.Scale(domain=[0, 100])
    every = alt.Chart(inline(data)).encode(
        x=length_axis(at, _WIDTH, "x", unit), color=look["color"]
    )
    base = every.transform_filter("isValid(datum.score)")
    cell = [
        alt.Tooltip("system:N", title="System"),
        alt.Tooltip("length:Q", title=f"Length ({unit})", format=","),
    ]
    score = alt.Y("score:Q", title="Score (%)", scale=scale)
    line = alt.Chart(inline(pl.DataFrame({"reach": [100 * reach]})))
    layers = [
        line.mark_rule(strokeDash=[6, 4], color=_CRITERIA[0]).encode(y=alt.Y("reach:Q")),
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
                alt.Tooltip("ci_low:Q", title="Low (%)", format=".1f"),
                alt.Tooltip("ci_high:Q", title="High (%)", format=".1f"),
                alt.Tooltip("n:Q", title="Answers"),
            ],
        ),
    ]
    if means["score"].has_nulls():
        crosses = every.transform_filter("!isValid(datum.score)").mark_text(text=MARK, fontSize=15)
        layers.append(crosses.encode(y=alt.value(_HEIGHT - 8), tooltip=cell))
    return alt.layer(*layers).properties(width=_WIDTH, height=_HEIGHT)


def _reached(lengths: pl.DataFrame, means: pl.DataFrame, share: float, unit: str) -> alt.LayerChart:
    systems, at = names(lengths, "system"), sorted(means["length"].unique())
    criteria = {
        "score": f"{_percent(_threshold(lengths))} %",
        "share": f"{_percent(share)} % of its own at {at[0]:,}",
    }
    found = pl.col("effective_length", "ci_low", "ci_high")
    data = lengths.with_columns(
        pl.col("criterion").replace_strict(criteria),
        pl.format("{}", found).replace_strict(
            {str(length): f"{length:,}" for length in at}, default=_NONE
        ),
        is_longest=pl.col("effective_length").eq_missing(pl.col("longest_length")),
        percent=100 * pl.col("threshold"),
    )
    places = [_NONE, *(f"{length:,}" for length in at)]
    title = f"Effective length ({unit})"

    def place(column: str) -> alt.X:
        axis = alt.Axis(labelAngle=0 if len(places) < 8 else -45, labelOverlap=False, grid=True)
        return alt.X(f"{column}:O", title=title, scale=alt.Scale(domain=places), axis=axis)

    base = alt.Chart(inline(data)).encode(
        y=alt.Y("system:N", title=None, sort=systems),
        yOffset=alt.YOffset("criterion:N", sort=list(criteria.values())),
        color=alt.Color("criterion:N", title="Score to reach").scale(
            domain=list(criteria.values()), range=_CRITERIA
        ),
    )
    return alt.layer(
        base.mark_rule(strokeWidth=2).encode(x=place("ci_low"), x2="ci_high:O"),
        base.mark_point(filled=True, size=70, opacity=1).encode(
            x=place("effective_length"),
            shape=alt.Shape("is_longest:N", legend=None).scale(
                domain=[False, True], range=["circle", "triangle-right"]
            ),
            tooltip=[
                alt.Tooltip("system:N", title="System"),
                alt.Tooltip("criterion:N", title="To reach"),
                alt.Tooltip("percent:Q", title="That is (%)", format=".1f"),
                alt.Tooltip("effective_length:N", title=title),
                alt.Tooltip("ci_low:N", title="Surely"),
                alt.Tooltip("ci_high:N", title="Perhaps"),
            ],
        ),
    ).properties(width=_WIDTH, height=max(_HEIGHT, 30 * len(systems)))


def _percent(share: float) -> str:
    return f"{100 * share:.4g}"
