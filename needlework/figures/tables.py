"""Tables as one page that a browser shows, with columns to sort by and rows to search for."""

from collections.abc import Mapping
from html import escape

import polars as pl

_STYLE = """
body {font: 14px "Liberation Sans", Arial, Helvetica, sans-serif; color: #222; margin: 1em}
summary {font-size: 17px; padding: 0.4em 0; cursor: pointer}
input {font: inherit; padding: 0.3em; width: 24em; max-width: 90%}
.table {overflow-x: auto; margin-bottom: 1em}
table {border-collapse: collapse}
th, td {padding: 0.25em 0.7em; border-bottom: 1px solid #e6e6e6; white-space: nowrap}
td.number, th.number {text-align: right; font-variant-numeric: tabular-nums}
th {text-align: left; cursor: pointer; border-bottom: 2px solid #888}
"""
_SCRIPT = """
document.querySelector("input").addEventListener("input", event => {
    const words = event.target.value.toLowerCase().split(/\\s+/);
    for (const row of document.querySelectorAll("tbody tr")) {
        const text = [...row.cells].map(cell => cell.title + " " + cell.textContent);
        row.hidden = !words.every(word => text.join(" ").toLowerCase().includes(word));
    }
});
for (const head of document.querySelectorAll("th")) head.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0], at = head.cellIndex;
    const sign = head.dataset.sign = head.dataset.sign === "1" ? -1 : 1;
    const value = row => row.cells[at].title || row.cells[at].textContent;
    const order = new Intl.Collator(undefined, {numeric: true}).compare;
    const compare = head.classList.contains("number") ? (a, b) => a - b : order;
    // What is not there comes last, either way.
    const empty = row => value(row) === "";
    body.append(...[...body.rows].sort((a, b) =>
        empty(a) - empty(b) || sign * compare(value(a), value(b))));
});
"""


def tables(named: Mapping[str, pl.DataFrame]) -> str:
    """A page of HTML that needs no other file: the tables in order, the first one open.

    Numbers have four significant digits; the whole ones are in the tooltip, and sorted by. Every
    cell is text: markup in it is shown, not done.
    """
    shown = "".join(
        f"<details{' open' if not i else ''}><summary>{escape(name)} ({len(table):,} rows)"
        f'</summary><div class="table">{_table(table)}</div></details>'
        for i, (name, table) in enumerate(named.items())
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Tables</title>'
        f"<style>{_STYLE}</style></head><body>"
        '<p><input type="search" placeholder="Search the rows, such as: seer 4096" '
        'aria-label="Search the rows"></p>'
        f"{shown}<script>{_SCRIPT}</script></body></html>\n"
    )


def _table(table: pl.DataFrame) -> str:
    classes = [' class="number"' if dtype.is_numeric() else "" for dtype in table.dtypes]
    head = "".join(
        f"<th{kind}>{escape(name)}</th>" for name, kind in zip(table.columns, classes, strict=True)
    )
    rows = "".join(f"<tr>{''.join(map(_cell, row, classes))}</tr>" for row in table.iter_rows())
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _cell(value: object, kind: str) -> str:
    if value is None:
        return f"<td{kind}></td>"
    if not kind:
        return f"<td>{escape(str(value))}</td>"
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    return f'<td{kind} title="{value!r}">{text}</td>'
