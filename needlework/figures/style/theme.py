"""One look for every figure: fonts, sizes, and colours for colour-blind readers."""

import json
import re
from collections.abc import Iterable

import altair as alt
import polars as pl

# Okabe and Ito's palette (2008), without its yellow, which is lost on white, and with a grey.
COLORS = [
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#7F7F7F",
]
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right"]
DASHES = [[1, 0], [8, 3], [2, 2], [8, 3, 2, 3], [12, 4], [4, 4]]
SEQUENTIAL = "cividis"
_LABEL_CHARACTERS = 40
"""Longest line of a legend or an axis of names; longer names are wrapped."""
_LABEL_PIXELS = 7.5
"""Width of a character of a label, at most on average."""
_LINE_PIXELS = 15

METRIC_LABELS = {
    "all": "share of the references found",
    "part": "any reference found",
    "exact": "the answer starts with the references (text: equals them)",
    "rouge_l": "ROUGE-L against the references",
    "token_f1": "F1 of words against the references",
    "prefix_ratio": "similarity after the required prefix, 0 without it",
}

ACCURACY_TOOLTIPS = [
    alt.Tooltip("percent:Q", title="Accuracy (%)", format=".1f"),
    alt.Tooltip("ci_low:Q", title="Lower bound (%)", format=".1f"),
    alt.Tooltip("ci_high:Q", title="Upper bound (%)", format=".1f"),
]
"""An accuracy with its 95 % interval."""

# Metric-compatible fonts everywhere: vl-convert ships the first, browsers have one of the others.
_FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
_INK = "#222222"


def styled(chart: alt.TopLevelMixin, title: str, subtitle: list[str]) -> alt.TopLevelMixin:
    """Apply the theme, a title and lines of subtitle to a finished chart."""
    heading = alt.TitleParams(text=title, subtitle=subtitle, anchor="start", frame="bounds")
    return (
        chart.properties(title=heading, background="white", padding=12)
        .configure(font=_FONT)
        .configure_view(stroke="#cccccc")
        .configure_title(
            fontSize=17, subtitleFontSize=13, subtitleColor="#555555", offset=14, color=_INK
        )
        .configure_axis(
            labelFontSize=12,
            titleFontSize=13,
            titleFontWeight="normal",
            labelColor=_INK,
            titleColor=_INK,
            gridColor="#e6e6e6",
            titlePadding=8,
        )
        .configure_legend(
            labelFontSize=12,
            titleFontSize=13,
            titleFontWeight="normal",
            labelColor=_INK,
            titleColor=_INK,
            symbolStrokeWidth=2,
            symbolOpacity=1,
            labelLimit=0,
        )
        .configure_header(labelFontSize=13, titleFontSize=13, labelColor=_INK, labelLimit=0)
    )


def empty_figure(title: str, reason: str) -> alt.TopLevelMixin:
    """A figure that only says why there is nothing to draw, so that the report is complete."""
    text = alt.Chart(inline(pl.DataFrame({"reason": [reason]}))).mark_text(fontSize=13, color=_INK)
    return styled(text.encode(text="reason:N").properties(width=420, height=80), title, [])


def inline(table: pl.DataFrame) -> alt.InlineData:
    """The rows as chart data. Passed inline because altair rejects tables over 5000 rows."""
    return alt.InlineData(values=table.fill_nan(None).to_dicts())


def distinct(table: pl.DataFrame, column: str) -> list[str]:
    """The distinct values of a column, in order of appearance."""
    return table[column].unique(maintain_order=True).to_list()


def extent(values: pl.Series) -> tuple[float, float]:
    """The smallest and the largest number; nulls do not count."""
    numbers = values.drop_nulls().to_list()
    return min(numbers), max(numbers)


def categorical(column: str, domain: list[str], title: str) -> dict[str, alt.SchemaBase]:
    """The channels color, fill, shape and strokeDash by `column`.

    The i-th name of `domain` has the same look in every figure.
    """
    field = f"{column}:N"

    def scaled(channel: type[alt.SchemaBase], values: list, legend: bool = True) -> alt.SchemaBase:
        # Channels with one domain share a legend, which disappears if any of them hides it. An
        # unused last name gives the hidden ones a separate domain.
        entries = domain if legend else [*domain, ""]
        cycled = [values[index % len(values)] for index in range(len(entries))]
        shown = alt.Legend(title=title, **_wrapped(domain)) if legend else None
        return channel(field, legend=shown).scale(domain=entries, range=cycled)

    return {
        "color": scaled(alt.Color, COLORS),
        "fill": scaled(alt.Fill, COLORS, legend=False),
        "shape": scaled(alt.Shape, SHAPES),
        "strokeDash": scaled(alt.StrokeDash, DASHES, legend=False),
    }


def wrap_name(name: str, width: int = _LABEL_CHARACTERS) -> list[str]:
    """Break a long name after its separators, into lines of at most `width` characters."""
    lines = [""]
    for part in re.findall(r"[^_,;= -]*[_,;= -]*", name):
        for start in range(0, len(part), width):
            piece = part[start : start + width]
            if len(lines[-1]) + len(piece) > width:
                lines.append("")
            lines[-1] += piece
    return [line for line in lines if line] or [name]


def panel_header(names: Iterable[str], width: float) -> alt.Header:
    """The header of panels `width` pixels wide, one per name; longer names are wrapped."""
    return alt.Header(**_wrapped(list(names), max(int(width / _LABEL_PIXELS), 12)))


def panel_facet(field: str, names: Iterable[str], width: float) -> alt.Facet:
    """Panels `width` pixels wide, one per value of `field`, in the order of `names`."""
    names = list(names)
    return alt.Facet(f"{field}:N", title=None, sort=names, header=panel_header(names, width))


def name_axis(names: Iterable[str], **properties: bool) -> alt.Axis:
    """An axis of names on the left, wrapped as in legends, with other properties of an axis."""
    return alt.Axis(**{"labelOverlap": False, **_wrapped(list(names)), **properties})


def name_step(names: Iterable[str], step: int) -> int:
    """Pixels of a row of `name_axis`: `step`, or more where names are wrapped."""
    return max(step, *(_LINE_PIXELS * len(wrap_name(name)) + 4 for name in names))


def _wrapped(names: list[str], width: int = _LABEL_CHARACTERS) -> dict[str, str | int]:
    """Properties of labels that show names of more than `width` characters in several lines."""
    if all(len(name) <= width for name in names):
        return {"labelLimit": 0}
    lines = {name: wrap_name(name, width) for name in names}
    return {"labelExpr": f"{json.dumps(lines)}[datum.value] || datum.value", "labelLimit": 0}


def sample_size(n: pl.Series, unit: str) -> str:
    """`n = 22 answers per cell`, or `n = 20-22 answers per cell` where cells differ."""
    low, high = extent(n)
    return f"n = {low} {unit}" if low == high else f"n = {low}\N{EN DASH}{high} {unit}"


def metrics_line(metrics: set[str]) -> str:
    """A line of subtitle that defines the metrics of a figure."""
    return "Metric " + "; ".join(
        f"{name}: {label}" for name, label in METRIC_LABELS.items() if name in metrics
    )
