"""Axes of lengths, positions, seconds and bytes, with labels that do not overlap."""

import json
import math

import altair as alt
import polars as pl

from needlework.figures.style.theme import distinct, extent

_LABEL_PIXELS = 6.8  # width of a character of an axis label, at the theme's font size
_TIERS = 3
_OFFSET_PIXELS = 4  # between neighbouring systems
_MARGIN = 24  # pixels left free at both ends
_BLANK = "\N{ZERO WIDTH SPACE}"  # renderers drop the height of an empty line

SECONDS_LABEL = (
    "datum.value < 1e-3 ? format(datum.value * 1e6, '.3~g') + ' µs' : "
    "datum.value < 1 ? format(datum.value * 1e3, '.3~g') + ' ms' : "
    "format(datum.value, ',.3~f') + ' s'"
)
BYTES_LABEL = (
    " : ".join(
        f"datum.value < {1024 * size} ? format(datum.value / {size}, ',.3~f') + ' {unit}'"
        for unit, size in (("B", 1), ("KiB", 2**10), ("MiB", 2**20), ("GiB", 2**30))
    )
    + f" : format(datum.value / {2**40}, ',.3~f') + ' TiB'"
)


def length_axis(
    lengths: list[int], width: int, column: str = "length", length_unit: str = "tokens"
) -> alt.X:
    """A log2 x axis of `column`, `width` pixels wide, labelled at every length.

    A label that would overlap another (1,000 and 1,024) moves down a line; one that fits on none
    of three lines is left out.
    """
    octaves = octaves_per_pixel(lengths, width)
    domain = [min(lengths) / 2 ** (octaves * _MARGIN), max(lengths) * 2 ** (octaves * _MARGIN)]
    occupied: list[list[tuple[float, float]]] = [[] for _ in range(_TIERS)]
    labels = {}
    # Powers of two first, so that they get the first line.
    for length in sorted(set(lengths), key=lambda length: (length & (length - 1) != 0, length)):
        text = f"{length:,}"
        center = math.log2(length / domain[0]) / octaves
        half = (len(text) + 1) * _LABEL_PIXELS / 2
        for tier, spans in enumerate(occupied):
            if all(center + half < left or right < center - half for left, right in spans):
                spans.append((center - half, center + half))
                labels[str(length)] = [*[_BLANK] * tier, text]
                break
    return (
        alt.X(f"{column}:Q", title=f"Context length ({length_unit}, log scale)")
        .scale(type="log", base=2, domain=domain, nice=False)
        .axis(
            values=sorted(set(lengths)),
            labelExpr=f"{json.dumps(labels)}[format(datum.value, 'd')] || ''",
            labelOverlap=False,
            labelFlush=False,
            grid=True,
        )
    )


def position_axis(positions: pl.Series) -> alt.X:
    """A log x axis of the column `position`, in tokens."""
    ticks = log_ticks(*extent(positions), 10)
    scale = alt.Scale(type="log", domain=[ticks[0], ticks[-1]], nice=False)
    axis = alt.Axis(values=ticks, format="~s", labelOverlap=True)
    return alt.X("position:Q", title="Position (tokens, log scale)", scale=scale, axis=axis)


def octaves_per_pixel(lengths: list[int], width: int) -> float:
    """Doublings of the length per pixel of `length_axis`."""
    low, high = min(lengths), max(lengths)
    return (math.log2(high / low) if low < high else 2.0) / (width - 2 * _MARGIN)


def side_by_side(data: pl.DataFrame, lengths: list[int], width: int) -> pl.DataFrame:
    """Add x: the length, shifted by a few pixels per system so that none hides another."""
    systems = distinct(data, "system")
    pixels = min(_OFFSET_PIXELS, 1.6 * _MARGIN / len(systems))
    step = pixels * octaves_per_pixel(lengths, width)
    factors = {
        system: 2 ** ((index - (len(systems) - 1) / 2) * step)
        for index, system in enumerate(systems)
    }
    factor = pl.col("system").replace_strict(factors, return_dtype=pl.Float64)
    return data.with_columns(x=pl.col("length") * factor)


def log_ticks(low: float, high: float, base: int) -> list[float]:
    """About eight ticks at most that enclose low..high on a log axis: powers of 2, or 1-2-5.

    Args:
        low, high: the range to show, positive.
        base: 2 (bytes), or 10 (seconds: 1-2-5 over less than two decades, else powers of 10).
    """
    if base == 10 and high / low < 100:
        steps = [m * 10.0**p for p in range(-9, 9) for m in (1, 2, 5)]
    else:
        steps = [float(base) ** power for power in range(-30, 61)]
    first = max((step for step in steps if step <= low), default=steps[0])
    last = min((step for step in steps if step >= high), default=steps[-1])
    ticks = [step for step in steps if first <= step <= last]
    if len(ticks) == 1:
        index = steps.index(ticks[0])
        ticks = steps[max(index - 1, 0) : index + 2]
    stride = math.ceil(len(ticks) / 8)
    ticks = ticks[::stride]
    return ticks if ticks[-1] >= high else [*ticks, steps[steps.index(ticks[-1]) + stride]]
