"""Long names in legends."""

import altair as alt
import polars as pl
import vl_convert

from needlework.figures.style.theme import categorical, wrap_name

COMMON = "sketchwalk_top_k_blocks_16_block_size_64_sketch_dim_64"
NAMES = [f"{COMMON}_dense_layers_{i}" for i in (2, 4)]


def test_a_long_name_is_wrapped_after_its_separators():
    lines = wrap_name(NAMES[0])
    assert "".join(lines) == NAMES[0]
    assert len(lines) == 2
    assert max(map(len, lines)) <= 40
    assert wrap_name("dense") == ["dense"]


def test_a_legend_shows_what_long_names_differ_in():
    table = pl.DataFrame({"system": NAMES, "x": [1, 2]})
    color = categorical("system", NAMES, "System")["color"]
    chart = alt.Chart(table).mark_point().encode(x="x:Q", color=color)
    svg = vl_convert.vegalite_to_svg(chart.to_dict())
    for name in NAMES:
        assert f">{wrap_name(name)[-1]}<" in svg
