"""Saved charts: equal bytes, offline HTML."""

import os
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET

import altair as alt
import pytest
from support.paths import PYTHONPATH

from needlework.figures.style.save import save

pytestmark = pytest.mark.slow

CODE = """
import sys
from figures.style.test_save import save_all_formats
save_all_formats(sys.argv[1])
"""


def save_all_formats(folder):
    data = alt.InlineData(values=[{"x": i, "y": i * i} for i in range(5)])
    point = alt.Chart(data).mark_point().encode(x="x:Q", y="y:Q").properties(width=300, height=200)
    save(point | point, **{kind: f"{folder}/chart.{kind}" for kind in ("html", "svg", "png")})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same chart, saved twice by this process and once by another."""
    made = [tmp_path_factory.mktemp("saved") for _ in range(3)]
    save_all_formats(made[0])
    save_all_formats(made[1])
    command = [sys.executable, "-c", CODE, made[2]]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": PYTHONPATH})
    return made


@pytest.mark.parametrize("kind", ["html", "svg", "png"])
def test_equal_charts_give_equal_bytes(folders, kind):
    assert len({(folder / f"chart.{kind}").read_bytes() for folder in folders}) == 1


def test_html_works_offline(folders):
    page = (folders[0] / "chart.html").read_text(encoding="utf-8")
    assert "vegaEmbed" in page
    assert "<script src" not in page
    assert "<link" not in page
    assert "cdn.jsdelivr" not in page


def test_svg_is_xml_and_png_has_two_pixels_per_point(folders):
    svg = ET.parse(folders[0] / "chart.svg").getroot()
    width, height = struct.unpack(">II", (folders[0] / "chart.png").read_bytes()[16:24])
    assert (width, height) == pytest.approx(
        (2 * float(svg.get("width")), 2 * float(svg.get("height"))), abs=2
    )


def test_only_formats_with_a_path_are_written(tmp_path):
    chart = alt.Chart(alt.InlineData(values=[{"x": 1}])).mark_point().encode(x="x:Q")
    save(chart, svg=tmp_path / "a.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]
