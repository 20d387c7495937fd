"""Summaries as Markdown."""

import re
from collections.abc import Sequence

from samrobust.report.aggregate import Section
from samrobust.report.tables import Table, page_tables

_MARKDOWN = re.compile(r"[\\|`*~<]|(?<!\w)_|_(?!\w)")


def to_markdown(sections: Sequence[Section]) -> str:
    """Return a heading, a table and footnotes for each table of each section; with intervals."""
    tables = [table for section in sections for table in page_tables(section)]
    return "\n".join(map(_markdown_table, tables))


def _markdown_table(table: Table) -> str:
    numbers = len(table.header) - table.n_names
    rule = "|".join(["---"] * table.n_names + ["---:"] * numbers)
    lines = [f"### {_markdown(table.title)}", "", _markdown_row(table.header), f"|{rule}|"]
    for place, row in enumerate(table.rows):
        cells = [
            f"**{cell}**" if (place, column) in table.bold else _markdown(cell)
            for column, cell in enumerate(row)
        ]
        lines.append(_markdown_row(cells))
    lines += [line for note in table.footnotes for line in ("", _markdown(note))]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\g<0>", " ".join(text.split()))
