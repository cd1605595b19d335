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
th.number {text-align: right}
td {font-variant-numeric: tabular-nums}
th {text-align: left; cursor: pointer; border-bottom: 2px solid #888}
"""
_SCRIPT = """
document.querySelector("input").addEventListener("input", event => {
    const words = event.target.value.toLowerCase().split(/\\s+/);
    for (const row of document.querySelectorAll("tbody tr")) {
        const text = [...row.cells].map(cell => cell.textContent).join(" ").toLowerCase();
        const found = text + " " + text.replaceAll(",", "");
        row.hidden = !words.every(word => found.includes(word));
    }
});
for (const head of document.querySelectorAll("th")) head.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0], at = head.cellIndex;
    const sign = head.dataset.sign = head.dataset.sign === "1" ? -1 : 1;
    const value = row => row.cells[at].textContent;
    const order = new Intl.Collator(undefined, {numeric: true}).compare;
    const number = text => Number(text.replaceAll(",", ""));
    const compare = head.classList.contains("number") ? (a, b) => number(a) - number(b) : order;
    // What is not there comes last, either way.
    const empty = row => value(row) === "";
    body.append(...[...body.rows].sort((a, b) =>
        empty(a) - empty(b) || sign * compare(value(a), value(b))));
});
"""
# Browsers show no more than 2 MiB in base64 within a report.
_MOST_BYTES = 1_400_000


def tables(named: Mapping[str, pl.DataFrame]) -> str:
    """A page of HTML that needs no other file: the tables in order, the first one open.

    Numbers have five significant digits. Every cell is text: markup in it is shown, not done. A
    table that would make the page larger than browsers show within a report is only named.
    """
    shown, room = [], _MOST_BYTES
    for name, table in named.items():
        whole = _table(table, len(shown))
        told = f"{escape(name)} ({len(table):,} rows)"
        if len(whole.encode()) > room:
            shown.append(f"<p>{told}: too large for this page; open the file</p>")
            continue
        room -= len(whole.encode())
        first = "" if shown else " open"
        shown.append(f"<details{first}><summary>{told}</summary>{whole}</details>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Tables</title>'
        f"<style>{_STYLE}</style></head><body>"
        '<p><input type="search" placeholder="Search the rows, such as: seer 4096" '
        'aria-label="Search the rows"></p>'
        f"{''.join(shown)}<script>{_SCRIPT}</script></body></html>\n"
    )


def _table(table: pl.DataFrame, number: int) -> str:
    numeric = [dtype.is_numeric() for dtype in table.dtypes]
    at = [f"#t{number} td:nth-child({i + 1})" for i, is_one in enumerate(numeric) if is_one]
    style = f"<style>{','.join(at)} {{text-align: right}}</style>" if at else ""
    head = "".join(
        f"<th class=number>{escape(name)}" if is_one else f"<th>{escape(name)}"
        for name, is_one in zip(table.columns, numeric, strict=True)
    )
    # HTML ends cells and rows by itself.
    rows = "".join("<tr>" + "".join(map(_cell, row)) for row in table.iter_rows())
    return (
        f'{style}<div class="table"><table id="t{number}"><thead><tr>{head}</thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cell(value: object) -> str:
    if value is None:
        return "<td>"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"<td>{escape(str(value))}"
    return f"<td>{value:,}" if isinstance(value, int) else f"<td>{value:,.5g}"
