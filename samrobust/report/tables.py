"""Summaries as text: CSV for programs, Markdown and LaTeX for papers, cells for a terminal."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from samrobust.errors import RunError
from samrobust.report.aggregate import MEASURED, Section

Format = Literal["csv", "md", "tex"]
Row = dict[str, Any]

NAMES = {"miou": "mIoU", "mbiou": "mBIoU", "msf": "mSF", "iou_std": "IoU std"}
"""Statistics in percent -> their heads. IoU variance, which repeats IoU std, stands in the CSV."""
NONE = "\N{EN DASH}"
"""Stands where there is no value: the spread of one trial, what a paper does not print."""

_MARKDOWN = re.compile(r"[\\|`*~<]|(?<!\w)_|_(?!\w)")
_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    NONE: "--",
    "±": r"$\pm$",
    "†": r"$\dagger$",
}


@dataclass(frozen=True)
class Table:
    """A table of one section, ready to be printed.

    Attributes:
        title: protocol, data set and marks.
        header: one text a column: segmenter, condition, then the statistics that there are.
        rows: as many texts each; metrics in percent, those of plug-ins in their own unit.
        footnotes: what the numbers are, and the sources of published rows.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    footnotes: tuple[str, ...]


def terminal_tables(sections: Sequence[Section]) -> list[Table]:
    """Return one table a section, with half widths of intervals: "57.3 ±2.1"; 80 columns do."""
    return [_table(section, _half_width, where="± half of") for section in sections]


def to_csv(sections: Sequence[Section]) -> str:
    """Return all rows of all sections, one number a cell, fractions with 6 significant digits.

    Columns: protocol, version, dataset, marks, then those of `Section.rows`; an empty cell where
    there is no value.
    """
    tables = []
    for section in sections:
        table = section.rows.copy()
        table.insert(0, "protocol", section.protocol)
        table.insert(1, "version", section.version)
        table.insert(2, "dataset", section.dataset)
        table.insert(3, "marks", "; ".join(section.marks))
        tables.append(table)
    joined = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    return joined.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def to_markdown(sections: Sequence[Section]) -> str:
    """Return a heading, a table and footnotes a section; percent, with intervals."""
    blocks = []
    for section in sections:
        table = _table(section, _interval, where="in brackets")
        rule = "|".join(["---", "---", *("---:" for _ in table.header[2:])])
        lines = [f"### {_markdown(table.title)}", "", _markdown_row(table.header)]
        lines.append(f"|{rule}|")
        lines += [_markdown_row([*map(_markdown, row[:2]), *row[2:]]) for row in table.rows]
        lines += [line for note in table.footnotes for line in ("", _markdown(note))]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def to_latex(sections: Sequence[Section]) -> str:
    r"""Return one `table` environment a section; percent, with intervals; needs `booktabs`."""
    blocks = [r"% needs \usepackage{booktabs}", *map(_latex_table, sections)]
    return "\n\n".join(blocks) + "\n"


def write_tables(
    sections: Sequence[Section], folder: Path, *, formats: Sequence[Format] = ("csv", "md", "tex")
) -> list[Path]:
    """Write `tables.csv`, `tables.md` and `tables.tex`, and return their paths.

    Raises:
        RunError: a file cannot be written.
    """
    writers = {"csv": to_csv, "md": to_markdown, "tex": to_latex}
    paths = []
    for ending in formats:
        path = folder / f"tables.{ending}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(writers[ending](sections), encoding="utf-8")
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error.strerror}") from error
        paths.append(path)
    return paths


def _table(section: Section, spread: Callable[[Row, str], str], *, where: str) -> Table:
    statistics, daggers = _shown(section), _daggers(section)
    rows = [
        (
            f"{row['segmenter']}{daggers.get(row['source'], '')}",
            row["condition"],
            *(f"{_value(row, name)} {spread(row, name)}".rstrip() for name in statistics),
        )
        for row in _rows(section)
    ]
    header = ("segmenter", "condition", *(NAMES.get(name, name) for name in statistics))
    return Table(section.title, header, tuple(rows), _footnotes(section, where))


def _rows(section: Section) -> list[Row]:
    return [{str(key): row[key] for key in row} for row in section.rows.to_dict("records")]


def _shown(section: Section) -> list[str]:
    """Return the statistics that have any value, without the variance."""
    filled = section.rows.notna().any()
    return [name for name in section.statistics if filled[name] and name != "iou_var"]


def _value(row: Row, statistic: str) -> str:
    value = row[statistic]
    if math.isnan(value):
        return NONE
    return f"{100 * value:.1f}" if statistic in NAMES else f"{value:.4g}"


def _interval(row: Row, statistic: str) -> str:
    low, high = row[f"{statistic}_low"], row[f"{statistic}_high"]
    if math.isnan(low):
        return ""
    if statistic in NAMES:
        return f"[{100 * low:.1f}, {100 * high:.1f}]"
    return f"[{low:.4g}, {high:.4g}]"


def _half_width(row: Row, statistic: str) -> str:
    half = (row[f"{statistic}_high"] - row[f"{statistic}_low"]) / 2
    if math.isnan(half):
        return ""
    return f"±{100 * half:.1f}" if statistic in NAMES else f"±{half:.2g}"


def _daggers(section: Section) -> dict[str, str]:
    """Return the mark of each source of published rows: a dagger, numbered if there are several."""
    sources = [source for source in section.rows["source"].unique() if source != MEASURED]
    if len(sources) == 1:
        return {sources[0]: "†"}
    return {source: f"†{number}" for number, source in enumerate(sources, start=1)}


def _footnotes(section: Section, where: str) -> tuple[str, ...]:
    measured = section.rows[section.rows["source"] == MEASURED].iloc[0]
    about = (
        f"Percent; {where} the 95 % interval, bootstrap over {measured['n_images']} images, "
        f"{measured['n_objects']} objects."
    )
    sources = (f"{dagger} As published: {source}." for source, dagger in _daggers(section).items())
    return about, *sources


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\g<0>", " ".join(text.split()))


def _latex_table(section: Section) -> str:
    statistics, (about, *sources) = _shown(section), _footnotes(section, "in brackets")
    heads = [f"\\multicolumn{{2}}{{c}}{{{_latex(NAMES.get(name, name))}}}" for name in statistics]
    width = 1 + 2 * len(statistics)
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{_latex(section.title)}. {_latex(about)}}}",
        r"  \smallskip\small",
        r"  \setlength{\tabcolsep}{4pt}",
        rf"  \begin{{tabular}}{{l{len(statistics) * 'r@{ }l'}}}",
        r"    \toprule",
        f"    {' & '.join(['segmenter', *heads])} \\\\",
    ]
    for condition in section.rows["condition"].unique():
        lines += [
            r"    \midrule",
            rf"    \multicolumn{{{width}}}{{l}}{{\emph{{{_latex(condition)}}}}} \\",
            *(line for line in _latex_rows(section, condition, statistics=statistics)),
        ]
    lines += [r"    \bottomrule", r"  \end{tabular}"]
    if sources:
        notes = r"\\ ".join(map(_latex, sources))
        lines.append(rf"  \par\smallskip\parbox{{\linewidth}}{{\footnotesize {notes}}}")
    return "\n".join([*lines, r"\end{table}"])


def _latex_rows(section: Section, condition: str, *, statistics: Sequence[str]) -> Iterator[str]:
    daggers = _daggers(section)
    for row in _rows(section):
        if row["condition"] == condition:
            dagger = daggers.get(row["source"])
            mark = rf"\textsuperscript{{{_latex(dagger)}}}" if dagger else ""
            cells = [_latex(row["segmenter"]) + mark]
            for name in statistics:
                interval = _interval(row, name)
                cells += [_latex(_value(row, name)), interval and rf"{{\scriptsize {interval}}}"]
            yield f"    {' & '.join(cells)} \\\\"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
