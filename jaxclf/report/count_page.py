"""A table of counts as one self-contained HTML page."""

from html import escape

from jaxclf.report.experiment import Cell, CountTable
from jaxclf.report.page import document


def render(table: CountTable) -> str:
    """Return the page: every number, the printed one under it, and bars of the column that the table names."""
    compared = [cell.agrees for _, cells in table.rows for cell in cells if cell.agrees is not None]
    verdict = ""
    if compared:
        text = f"{sum(compared)} of {len(compared)} printed numbers are reproduced to the printed digits."
        verdict = f'<div class="answer"><p>{text}</p><p>Printed: {escape(table.source)}.</p></div>'
    head = "".join(f"<th>{escape(column)}</th>" for column in ("", *table.columns))
    rows = "".join(f"<tr><th>{escape(label)}</th>{''.join(map(_cell, cells))}</tr>" for label, cells in table.rows)
    return document(
        table.title,
        [
            f'<h1>{escape(table.title)}</h1><p class="lead">{escape(table.caption)}</p>',
            verdict,
            _bars(table),
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>',
        ],
    )


def _cell(cell: Cell) -> str:
    if cell.agrees is None:
        return f"<td>{cell.text}</td>"
    mark = "✓" if cell.agrees else "≠"
    return f'<td>{cell.text}<br><span class="soft">{cell.printed_text} printed {mark}</span></td>'


def _bars(table: CountTable) -> str:
    if table.bars is None:
        return ""
    lines = []
    for label, cells in table.rows:
        share = cells[table.bars]
        bar = f'<div style="height: 14px; width: {share.ours:.2f}%; background: var(--s1)"></div>'
        lines.append(
            f'<dt>{escape(label)}</dt><dd><div style="background: var(--wash)">{bar}</div>'
            f'<span class="soft">{share.text} %</span></dd>'
        )
    return f"<h2>{escape(table.columns[table.bars])}</h2><dl>{''.join(lines)}</dl>"
