"""The page of all tables: its HTML, and sorting and searching in a browser."""

import shutil

import polars as pl
import pytest
from playwright.sync_api import sync_playwright

from needlework.figures.tables import tables_page

TABLE = pl.DataFrame(
    {
        "system": ["dense", "seer", "<b>window</b>", "seer"],
        "length": [512, 512, 4096, 1024],
        "share": [0.123456789, 1e-9, None, 1234.5],
    }
)


def test_cells_are_escaped_and_numbers_are_rounded():
    page = tables_page({"a & b.csv": TABLE, "other.csv": TABLE[:0]})
    assert "<b>" not in page
    assert "&lt;b&gt;window&lt;/b&gt;" in page
    assert "a &amp; b.csv (4 rows)" in page
    assert "other.csv (0 rows)" in page
    assert "<td>0.12346" in page
    assert "<td>4,096" in page


def test_a_page_is_small_enough_for_a_report():
    large = pl.DataFrame({"number": range(300_000)})
    page = tables_page({"first.csv": TABLE, "large.csv": large, "last.csv": TABLE})
    assert len(page) < 1_500_000
    assert "<p>large.csv (300,000 rows): too large for this page; open the file</p>" in page
    assert page.count("<table") == 2


def test_the_size_limit_counts_all_tables():
    half = pl.DataFrame({"number": range(60_000)})
    page = tables_page({"a.csv": half, "b.csv": half, "c.csv": half, "d.csv": TABLE})
    assert 700_000 < len(tables_page({"a.csv": half})) < 1_400_000
    assert len(page) < 1_500_000
    assert page.count("too large for this page") == 2
    # A small table after them still fits, and only the first is open.
    assert "<summary>d.csv (4 rows)</summary>" in page
    assert page.count("<details open>") == 1
    assert page.startswith("<!doctype html>")


def test_headers_are_escaped_and_numbers_are_right_aligned():
    odd = pl.DataFrame({"<i>a": ["x"], "is_one": [True], "<i>n": [7]})
    page = tables_page({"odd.csv": odd, "more.csv": odd})
    assert "<i>" not in page
    assert "<th>&lt;i&gt;a" in page
    assert "<th class=number>&lt;i&gt;n" in page
    assert "<td>True<td>7" in page
    for number in range(2):
        assert f"<style>#t{number} td:nth-child(3) {{text-align: right}}</style>" in page
        assert f'<table id="t{number}">' in page


@pytest.mark.browser
def test_rows_can_be_sorted_and_searched(tmp_path):
    file = tmp_path / "tables.html"
    file.write_text(tables_page({"a.csv": TABLE}), encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or "/usr/bin/chromium",
            args=["--no-sandbox", "--disable-gpu"],
        )
        page = browser.new_page()
        page.goto(file.as_uri())

        def shown(column: int) -> list[str]:
            rows = page.locator("tbody tr:visible")
            return [rows.nth(i).locator("td").nth(column).inner_text() for i in range(rows.count())]

        heads = page.locator("th")
        heads.nth(1).click()
        assert shown(1) == ["512", "512", "1,024", "4,096"]
        heads.nth(1).click()
        assert shown(1) == ["4,096", "1,024", "512", "512"]
        heads.nth(2).click()
        assert shown(2) == ["1e-09", "0.12346", "1,234.5", ""]
        heads.nth(2).click()
        assert shown(2) == ["1,234.5", "0.12346", "1e-09", ""]
        heads.nth(0).click()
        assert shown(0) == ["<b>window</b>", "dense", "seer", "seer"]
        page.locator("input").fill("SEER 1024")
        assert shown(1) == ["1,024"]
        page.locator("input").fill("")
        assert len(shown(0)) == 4
        browser.close()
