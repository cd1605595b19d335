"""One look for every figure: fonts, sizes, and colours that colour-blind readers tell apart."""

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

METRICS = {
    "all": "share of the references found",
    "part": "any reference found",
    "exact": "the answer begins with the references, or is them",
    "rouge_l": "ROUGE-L with the references",
    "token_f1": "F1 of the words with the references",
}

ACCURACY = [
    alt.Tooltip("percent:Q", title="Accuracy (%)", format=".1f"),
    alt.Tooltip("ci_low:Q", title="Low (%)", format=".1f"),
    alt.Tooltip("ci_high:Q", title="High (%)", format=".1f"),
]
"""What is told of an accuracy where the pointer rests, with its interval."""

# Metric-compatible fonts everywhere: vl-convert brings the first, browsers have one of the others.
_FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
_INK = "#222222"


def styled(chart: alt.TopLevelMixin, title: str, subtitle: list[str]) -> alt.TopLevelMixin:
    """The chart with the house's look, a title and lines of subtitle; the last step of a figure."""
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
            labelLimit=320,
        )
        .configure_header(labelFontSize=13, titleFontSize=13, labelColor=_INK, labelLimit=320)
    )


def blank(title: str, why: str) -> alt.TopLevelMixin:
    """A figure of nothing that says why: a run without answers still ends in its report."""
    text = alt.Chart(inline(pl.DataFrame({"why": [why]}))).mark_text(fontSize=13, color=_INK)
    return styled(text.encode(text="why:N").properties(width=420, height=80), title, [])


def inline(table: pl.DataFrame) -> alt.InlineData:
    """The rows as data of a chart, however many (altair refuses tables beyond 5000 rows)."""
    return alt.InlineData(values=table.fill_nan(None).to_dicts())


def names(table: pl.DataFrame, column: str) -> list[str]:
    """The distinct values of a column in the order in which they first appear."""
    return table[column].unique(maintain_order=True).to_list()


def told_apart(column: str, domain: list[str], title: str) -> dict[str, alt.SchemaBase]:
    """Channels by `column`; the i-th name of `domain` has the same look in every figure."""
    field = f"{column}:N"

    def scaled(channel: type[alt.SchemaBase], values: list, shown: bool = True) -> alt.SchemaBase:
        # Channels with one domain share a legend, which is lost if any of them hides it: an unused
        # last name gives the hidden ones a domain of their own.
        entries = domain if shown else [*domain, ""]
        cycled = [values[index % len(values)] for index in range(len(entries))]
        legend = alt.Legend(title=title) if shown else None
        return channel(field, legend=legend).scale(domain=entries, range=cycled)

    return {
        "color": scaled(alt.Color, COLORS),
        "fill": scaled(alt.Fill, COLORS, shown=False),
        "shape": scaled(alt.Shape, SHAPES),
        "strokeDash": scaled(alt.StrokeDash, DASHES, shown=False),
    }


def counted(n: pl.Series, thing: str) -> str:
    """`n = 22 answers a cell`, or `n = 20-22 answers a cell` where cells differ."""
    low, high = n.min(), n.max()
    return f"n = {low} {thing}" if low == high else f"n = {low}\N{EN DASH}{high} {thing}"
