"""Summaries as CSV, Markdown, LaTeX and JSON."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from samrobust.errors import RunError
from samrobust.files import write_atomic
from samrobust.report.columns import DETAILS, NO_VALUE, statistic_of
from samrobust.report.summary import MEASURED, Section, summarise
from samrobust.report.tables import (
    IN_DOMAIN,
    Table,
    bold_note,
    footnotes,
    glance_table,
    interval_text,
    mark_of,
    page_tables,
    rows_of,
    shown,
    shown_over_trials,
    trial_footnotes,
    value_text,
)
from samrobust.runs.store import Run


def to_csv(sections: Sequence[Section]) -> str:
    """Return all rows of all sections, one number a cell, fractions with 6 significant digits.

    Columns: protocol, version, dataset, marks, then those of `Section.table`; an empty cell where
    there is no value.
    """
    return _joined_csv(sections, [section.table for section in sections])


def differences_csv(sections: Sequence[Section]) -> str:
    """Return all paired differences; columns as `to_csv`, then `Section.differences`."""
    return _joined_csv(sections, [section.differences for section in sections])


def breakdown_csv(sections: Sequence[Section]) -> str:
    """Return the scores of all classes of objects; columns as `to_csv`, `Section.breakdown`."""
    return _joined_csv(sections, [section.breakdown for section in sections])


def _joined_csv(sections: Sequence[Section], frames: Sequence[pd.DataFrame]) -> str:
    tables = []
    for section, frame in zip(sections, frames, strict=True):
        table = frame.copy()
        table.insert(0, "protocol", section.protocol)
        table.insert(1, "version", section.version)
        table.insert(2, "dataset", section.dataset)
        table.insert(3, "marks", "; ".join(section.marks))
        tables.append(table)
    joined = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    return joined.to_csv(index=False, float_format="%.6g", lineterminator="\n")


_MARKDOWN = re.compile(r"[\\|`*~<]|(?<!\w)_|_(?!\w)")


def to_markdown(sections: Sequence[Section]) -> str:
    """Return a heading, a table and footnotes for each table of each section; with intervals.

    The first of a section is that at a glance, where there are degraded prompts.
    """
    tables = [
        table
        for section in sections
        for table in (glance_table(section, brackets=True), *page_tables(section))
        if table is not None
    ]
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


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    NO_VALUE: "--",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    IN_DOMAIN: r"$\ddagger$",
}


def to_latex(sections: Sequence[Section]) -> str:
    r"""Return the `table` environments of all sections; with intervals; needs `booktabs`.

    A section has one of its main statistics, and one over trials where there are several.
    """
    blocks = [r"% needs \usepackage{booktabs}"]
    for section in sections:
        blocks.append(_latex_table(section, shown(section)))
        over_trials = shown_over_trials(section)
        blocks += [_latex_table(section, over_trials)] if over_trials else []
    return "\n\n".join(blocks) + "\n"


def _latex_table(section: Section, statistics: Sequence[str]) -> str:
    over_trials = set(statistics) <= set(DETAILS)
    notes_of = trial_footnotes if over_trials else footnotes
    about, *sources = notes_of(section, "in brackets")
    best = {cell for cell in section.best if cell[0] in statistics}
    heads = [
        f"\\multicolumn{{2}}{{c}}{{{_latex(statistic_of(name).label)}}}" for name in statistics
    ]
    width = 1 + 2 * len(statistics)
    caption = " ".join([f"{section.title}.", about, *bold_note(best)])
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{_latex(caption)}}}",
        rf"  \smallskip\{'footnotesize' if over_trials else 'small'}",
        rf"  \setlength{{\tabcolsep}}{{{2 if over_trials else 4}pt}}",
        rf"  \begin{{tabular}}{{l{len(statistics) * 'r@{ }l'}}}",
        r"    \toprule",
        f"    {' & '.join(['segmenter', *heads])} \\\\",
    ]
    for condition in section.table["condition"].unique():
        rows = list(_latex_rows(section, condition, statistics=statistics))
        if rows:
            title = rf"    \multicolumn{{{width}}}{{l}}{{\emph{{{_latex(condition)}}}}} \\"
            lines += [r"    \midrule", title, *rows]
    lines += [r"    \bottomrule", r"  \end{tabular}"]
    if sources:
        notes = r"\\ ".join(map(_latex, sources))
        lines.append(rf"  \par\smallskip\parbox{{\linewidth}}{{\footnotesize {notes}}}")
    return "\n".join([*lines, r"\end{table}"])


def _latex_rows(section: Section, condition: str, *, statistics: Sequence[str]) -> Iterator[str]:
    best = section.best
    over_trials = set(statistics) <= set(DETAILS)
    for row in rows_of(section):
        if row["condition"] != condition:
            continue
        sign = mark_of(section, row)
        mark = rf"\textsuperscript{{{_latex(sign)}}}" if sign else ""
        cells = [_latex(row["segmenter"]) + mark]
        values = [value_text(row, name) for name in statistics]
        if over_trials and set(values) == {NO_VALUE}:
            continue
        for name, value in zip(statistics, values, strict=True):
            is_best = row["source"] == MEASURED and (name, row["segmenter"], condition) in best
            text = rf"\textbf{{{_latex(value)}}}" if is_best else _latex(value)
            interval = interval_text(row, name)
            cells += [text, interval and rf"{{\scriptsize {interval}}}"]
        yield f"    {' & '.join(cells)} \\\\"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


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
    """Write a file atomically, its folder made where there is none, and return its path.

    A link keeps its place, and what is no file, as /dev/stdout, is written to.

    Raises:
        RunError: it cannot be written; what was there before still is.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
        else:
            write_atomic(path.resolve(), text.encode())
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}") from error
    return path


FORMAT = 1
SCHEMA_FILE = Path(__file__).with_name("leaderboard.schema.json")
"""JSON Schema (2020-12) of an export; a changed meaning raises its format."""


def export_run(run: Run) -> dict[str, Any]:
    """Return a run as plain JSON values, as `leaderboard.schema.json` says.

    Raises:
        RunError: it holds no scores.
    """
    (section,) = summarise([run])[:1]
    manifest, segmenter = run.manifest, run.manifest.segmenter
    protocol, dataset = manifest.protocol, manifest.dataset
    rows = section.measured
    return {
        "format": FORMAT,
        "run": run.folder.name,
        "created": manifest.created,
        "segmenter": {
            "name": segmenter.name,
            "variant": segmenter.variant,
            "checkpoint_sha256": segmenter.checkpoint_sha256,
            "is_control": segmenter.is_control,
            "frame": segmenter.frame,
            "dtype": segmenter.dtype,
            "settings": dict(segmenter.settings),
        },
        "protocol": {key: protocol.get(key) for key in _PROTOCOL},
        "dataset": {
            "name": dataset.key,
            "part": dataset.part,
            "fingerprint": dataset.fingerprint,
            "n_images": int(rows["n_images"].iloc[0]),
            "n_objects": int(rows["n_objects"].iloc[0]),
            "n_failed": len(run.failures),
            "n_images_left_out": len(run.left_out.keys() - run.images),
            "n_objects_left_out": sum(
                len(why) for name, why in run.left_out.items() if name in run.images
            ),
            "is_complete": run.n_missing == 0,
            "limit": manifest.limit,
        },
        "device": manifest.device,
        "versions": dict(manifest.versions),
        "scores": [
            _score(row, statistic)
            for row in rows.to_dict("records")
            for statistic in section.statistics
            if pd.notna(row[statistic])
        ],
    }


def to_json(runs: Sequence[Run]) -> str:
    """Return one line of JSON a run."""
    return "".join(json.dumps(export_run(run), ensure_ascii=False) + "\n" for run in runs)


def write_exports(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write `leaderboard/<run>.json` for each run and return the paths.

    Raises:
        RunError: a file cannot be written.
    """
    return [
        write_text(
            folder / "leaderboard" / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', run.folder.name)}.json",
            json.dumps(export_run(run), indent=2, ensure_ascii=False) + "\n",
        )
        for run in runs
    ]


_PROTOCOL = ("name", "version", "sha256", "seed", "selection")


def _score(row: dict[Any, Any], statistic: str) -> dict[str, Any]:
    low, high = row[f"{statistic}_low"], row[f"{statistic}_high"]
    return {
        "condition": row["condition"],
        "level": None if pd.isna(row["level"]) else row["level"],
        "n_trials": int(row["n_trials"]),
        "statistic": statistic,
        "value": round(row[statistic], 6),
        "interval": None if pd.isna(low) else [round(low, 6), round(high, 6)],
    }
