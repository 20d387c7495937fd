"""Tables of summaries as files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from samrobust.errors import RunError
from samrobust.report.aggregate import Section
from samrobust.report.csv_text import breakdown_csv, differences_csv, to_csv
from samrobust.report.latex import to_latex
from samrobust.report.markdown import to_markdown

Format = Literal["csv", "md", "tex"]


def write_tables(
    sections: Sequence[Section], folder: Path, *, formats: Sequence[Format] = ("csv", "md", "tex")
) -> list[Path]:
    """Write tables in the formats asked for, and return their paths.

    They are `tables.csv`, with `differences.csv` and `breakdown.csv` where there are any,
    `tables.md` and `tables.tex`.

    Raises:
        RunError: a file cannot be written.
    """
    texts: dict[str, str] = {}
    if "csv" in formats:
        texts["tables.csv"] = to_csv(sections)
        if any(len(section.differences) for section in sections):
            texts["differences.csv"] = differences_csv(sections)
        if any(len(section.breakdown) for section in sections):
            texts["breakdown.csv"] = breakdown_csv(sections)
    if "md" in formats:
        texts["tables.md"] = to_markdown(sections)
    if "tex" in formats:
        texts["tables.tex"] = to_latex(sections)
    return [write_text(folder / name, text) for name, text in texts.items()]


def write_text(path: Path, text: str) -> Path:
    """Write a file, its folder made where there is none, and return its path.

    Raises:
        RunError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}") from error
    return path
