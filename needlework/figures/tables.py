"""One offline HTML page of all tables, with sortable columns and a search over rows.

Hand-written: itables bundles 0.7 MB of DataTables, half of what a report can embed, and datavzrd
is a separate binary that writes a folder.
"""

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
        const searched = text + " " + text.replaceAll(",", "");
        row.hidden = !words.every(word => searched.includes(word));
    }
});
for (const head of document.querySelectorAll("th")) head.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0], at = head.cellIndex;
    const direction = head.dataset.direction = head.dataset.direction === "1" ? -1 : 1;
    const value = row => row.cells[at].textContent;
    const order = new Intl.Collator(undefined, {numeric: true}).compare;
    const number = text => Number(text.replaceAll(",", ""));
    const compare = head.classList.contains("number") ? (a, b) => number(a) - number(b) : order;
    // Empty cells come last in both directions.
    const empty = row => value(row) === "";
    body.append(...[...body.rows].sort((a, b) =>
        empty(a) - empty(b) || direction * compare(value(a), value(b))));
});
"""
# Browsers show at most 2 MiB of base64 within a report.
_MAX_BYTES = 1_400_000


def tables_page(tables: Mapping[str, pl.DataFrame]) -> str:
    """A self-contained HTML page of the tables, by name in this order; the first one is open.

    Numbers have five significant digits. Cells are escaped. A table that would make the page larger
    than browsers show within a report is only named.
    """
    sections: list[str] = []
    remaining = _MAX_BYTES
    for name, table in tables.items():
        html = _table(table, len(sections))
        title = f"{escape(name)} ({len(table):,} rows)"
        if len(html.encode()) > remaining:
            sections.append(f"<p>{title}: too large for this page; open the file</p>")
            continue
        remaining -= len(html.encode())
        first = "" if sections else " open"
        sections.append(f"<details{first}><summary>{title}</summary>{html}</details>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Tables</title>'
        f"<style>{_STYLE}</style></head><body>"
        '<p><input type="search" placeholder="Search the rows, such as: seer 4096" '
        'aria-label="Search the rows"></p>'
        f"{''.join(sections)}<script>{_SCRIPT}</script></body></html>\n"
    )


def _table(table: pl.DataFrame, number: int) -> str:
    is_numeric = [dtype.is_numeric() for dtype in table.dtypes]
    numeric_cells = [
        f"#t{number} td:nth-child({i + 1})" for i, numeric in enumerate(is_numeric) if numeric
    ]
    style = (
        f"<style>{','.join(numeric_cells)} {{text-align: right}}</style>" if numeric_cells else ""
    )
    head = "".join(
        f"<th class=number>{escape(name)}" if numeric else f"<th>{escape(name)}"
        for name, numeric in zip(table.columns, is_numeric, strict=True)
    )
    # HTML does not need the end tags of cells and rows.
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
