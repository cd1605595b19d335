"""Write a chart as interactive HTML, SVG and PNG; equal charts give equal bytes."""

from pathlib import Path

import altair as alt
import vl_convert

_PNG_SCALE = 2
# For frames narrower than the figure, such as the report's on a laptop.
_SHRINK = "<style>.vega-embed svg, .vega-embed canvas {max-width: 100%; height: auto}</style>"


def save(
    chart: alt.TopLevelMixin,
    html: str | Path | None = None,
    svg: str | Path | None = None,
    png: str | Path | None = None,
) -> None:
    """Write the formats that have a path.

    The HTML embeds its scripts and works offline; the PNG has 2 pixels per point.
    """
    spec = chart.to_dict()
    version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    if html is not None:
        document = vl_convert.vegalite_to_html(spec, version, bundle=True)
        document = document.replace("<head>", f"<head>{_SHRINK}", 1)
        Path(html).write_text(document, encoding="utf-8")
    if svg is not None:
        Path(svg).write_text(vl_convert.vegalite_to_svg(spec, version), encoding="utf-8")
    if png is not None:
        Path(png).write_bytes(vl_convert.vegalite_to_png(spec, version, scale=_PNG_SCALE))
