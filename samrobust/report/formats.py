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
from samrobust.report.layout import Table, interval_text, value_text
from samrobust.report.summary import MEASURED, Section, summarise
from samrobust.report.tables import (
    FEW_IMAGES,
    IN_DOMAIN,
    bold_note,
    footnotes,
    glance_table,
    mark_of,
    page_tables,
    rows_of,
    shown,
    shown_over_trials,
    trial_terms,
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


def calibration_csv(sections: Sequence[Section]) -> str:
    """Return what estimates of IoU are worth; columns as `to_csv`, `Section.calibration`."""
    return _joined_csv(sections, [section.calibration for section in sections])


def raters_csv(sections: Sequence[Section]) -> str:
    """Return what raters differ in; columns as `to_csv`, then `Section.raters`."""
    return _joined_csv(sections, [section.raters for section in sections])


def searches_csv(sections: Sequence[Section]) -> str:
    """Return what searches found; columns as `to_csv`, then `Section.searches`."""
    return _joined_csv(sections, [section.searches for section in sections])


def precision_csv(sections: Sequence[Section]) -> str:
    """Return average precisions; columns as `to_csv`, then `Section.average_precision`."""
    return _joined_csv(sections, [section.average_precision for section in sections])


def detector_error_csv(sections: Sequence[Section]) -> str:
    """Return scores by error of the box; columns as `to_csv`, then `Section.detector_error`."""
    return _joined_csv(sections, [section.detector_error for section in sections])


def corruptions_csv(sections: Sequence[Section]) -> str:
    """Return the scores on corrupted images; columns as `to_csv`, then `Section.corruptions`."""
    return _joined_csv(sections, [section.corruptions for section in sections])


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

    A section has one of its main statistics, and one over trials where there are several. What is
    wider than a column of a two-column article is a `table*`. Each has a `\label`.
    """
    blocks = [r"% needs \usepackage{booktabs}"]
    labels: dict[str, int] = {}
    for section in sections:
        for statistics in (shown(section), shown_over_trials(section)):
            if statistics:
                words = [section.protocol, section.dataset]
                words += ["trials"] if set(statistics) <= set(DETAILS) else []
                label = re.sub(r"[^A-Za-z0-9]+", "-", "-".join(words)).strip("-").lower()
                labels[label] = labels.get(label, 0) + 1
                number = f"-{labels[label]}" if labels[label] > 1 else ""
                blocks.append(_latex_table(section, statistics, label=f"tab:{label}{number}"))
    return "\n\n".join(blocks) + "\n"


_COLUMN_POINTS = 229.0
"""Width of a column of LaTeX's own article in two columns, less than in the usual templates."""
_SMALL, _FOOTNOTE, _SCRIPT = 4.7, 4.3, 4.0
r"""Points of a character of \small, \footnotesize and \scriptsize."""


def _latex_table(section: Section, statistics: Sequence[str], *, label: str) -> str:
    over_trials = set(statistics) <= set(DETAILS)
    heads = [
        f"\\multicolumn{{2}}{{c}}{{{_latex(statistic_of(name).label)}}}" for name in statistics
    ]
    width = 1 + 2 * len(statistics)
    body: list[str] = []
    for condition in section.table["condition"].unique():
        rows = list(_latex_rows(section, condition, statistics=statistics))
        if rows:
            title = rf"    \multicolumn{{{width}}}{{l}}{{\emph{{{_latex(condition)}}}}} \\"
            body += [r"    \midrule", title, *rows]
    bold = [line for line in body if r"\textbf" in line]
    caption = " ".join([*_caption(section, statistics), *bold_note(bold)])
    separation = 2 if over_trials else 4
    is_wide = _points(section, statistics, separation=separation) > _COLUMN_POINTS
    environment = "table*" if is_wide else "table"
    lines = [
        rf"\begin{{{environment}}}",
        r"  \centering",
        rf"  \caption{{{_latex(caption)}}}",
        rf"  \label{{{label}}}",
        rf"  \smallskip\{'footnotesize' if over_trials else 'small'}",
        rf"  \setlength{{\tabcolsep}}{{{separation}pt}}",
        rf"  \begin{{tabular}}{{l{len(statistics) * 'r@{ }l'}}}",
        r"    \toprule",
        f"    {' & '.join(['segmenter', *heads])} \\\\",
        *body,
        r"    \bottomrule",
        r"  \end{tabular}",
    ]
    sources = [] if over_trials else footnotes(section, "in brackets")[1:]
    if sources:
        notes = r"\\ ".join(map(_latex, sources))
        lines.append(rf"  \par\smallskip\parbox{{\linewidth}}{{\footnotesize {notes}}}")
    return "\n".join([*lines, rf"\end{{{environment}}}"])


def _caption(section: Section, statistics: Sequence[str]) -> Iterator[str]:
    """Yield the sentences of a caption: what was run, what the numbers and their intervals are."""
    yield f"{section.title}."
    measured = section.measured
    n_images, n_objects = (int(measured[name].iloc[0]) for name in ("n_images", "n_objects"))
    least, most = int(measured["n_trials"].min()), int(measured["n_trials"].max())
    trials = (
        f"{least} to {most} times" if least < most else "once" if most == 1 else f"{most} times"
    )
    percent = [statistic_of(name).label for name in statistics if statistic_of(name).unit == "%"]
    yield (
        f"{', '.join(percent) or 'Metrics'} {'in percent' if percent else 'in their own units'}: "
        f"means over {n_objects} objects, each prompted {trials} a condition (its trials)."
    )
    terms = [
        f"{statistic_of(name).label}: {_MEANING[name]}" for name in statistics if name in _MEANING
    ]
    if terms:
        yield f"{'; '.join(terms)}."
    yield from trial_terms(statistics)
    if n_images > 1:
        rough = "; with so few images it is rough" if n_images < FEW_IMAGES else ""
        yield f"In brackets the 95 % interval, bootstrap over {n_images} images{rough}."


_MEANING = {
    "miou": "intersection over union with the target",
    "mbiou": "the same of bands along the boundary",
    "msf": "stability, IoU of an object's masks with their union",
    "iou_std": "standard deviation over an object's trials",
}
"""What the columns of every report are, in the words of a caption."""


def _points(section: Section, statistics: Sequence[str], *, separation: int) -> float:
    """Return about how wide a LaTeX table is."""
    rows = rows_of(section)
    normal = _FOOTNOTE if set(statistics) <= set(DETAILS) else _SMALL
    total = normal * max(_characters(row["segmenter"] + mark_of(section, row)) for row in rows)
    for name in statistics:
        numbers = normal * max(_characters(value_text(row, name)) for row in rows)
        intervals = _SCRIPT * max(_characters(interval_text(row, name)) for row in rows)
        head = normal * _characters(statistic_of(name).label)
        total += max(numbers + intervals + normal / 2, head)
    return total + 2 * separation * (1 + len(statistics))


def _characters(text: str) -> float:
    """Return how many characters wide a text is; points, brackets and blanks are half as wide."""
    return sum(1.0 if character.isalnum() else 0.5 for character in text)


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

    They are `tables.csv`, with `differences.csv`, `breakdown.csv`, `calibration.csv`,
    `raters.csv`, `searches.csv`, `average-precision.csv`, `detector-error.csv` and
    `corruptions.csv` where there are any, `tables.md` and `tables.tex`.

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
        if any(len(section.calibration) for section in sections):
            texts["calibration.csv"] = calibration_csv(sections)
        if any(len(section.raters) for section in sections):
            texts["raters.csv"] = raters_csv(sections)
        if any(len(section.searches) for section in sections):
            texts["searches.csv"] = searches_csv(sections)
        if any(len(section.average_precision) for section in sections):
            texts["average-precision.csv"] = precision_csv(sections)
            texts["detector-error.csv"] = detector_error_csv(sections)
        if any(len(section.corruptions) for section in sections):
            texts["corruptions.csv"] = corruptions_csv(sections)
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
