"""Summaries as LaTeX tables with booktabs, ready to be pasted into an article."""

from collections.abc import Iterator, Sequence

from samrobust.report.aggregate import MEASURED, Section
from samrobust.report.cells import NONE, TRIAL_NAMES, head, interval_text, value_text
from samrobust.report.tables import (
    IN_DOMAIN,
    bold_note,
    footnotes,
    mark_of,
    rows_of,
    shown,
    shown_over_trials,
    trial_footnotes,
)

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
    over_trials = set(statistics) <= set(TRIAL_NAMES)
    notes_of = trial_footnotes if over_trials else footnotes
    about, *sources = notes_of(section, "in brackets")
    best = {cell for cell in section.best if cell[0] in statistics}
    heads = [f"\\multicolumn{{2}}{{c}}{{{_latex(head(name))}}}" for name in statistics]
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
    for condition in section.rows["condition"].unique():
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
    over_trials = set(statistics) <= set(TRIAL_NAMES)
    for row in rows_of(section):
        if row["condition"] != condition:
            continue
        sign = mark_of(section, row)
        mark = rf"\textsuperscript{{{_latex(sign)}}}" if sign else ""
        cells = [_latex(row["segmenter"]) + mark]
        values = [value_text(row, name) for name in statistics]
        if over_trials and set(values) == {NONE}:
            continue
        for name, value in zip(statistics, values, strict=True):
            is_best = row["source"] == MEASURED and (name, row["segmenter"], condition) in best
            text = rf"\textbf{{{_latex(value)}}}" if is_best else _latex(value)
            interval = interval_text(row, name)
            cells += [text, interval and rf"{{\scriptsize {interval}}}"]
        yield f"    {' & '.join(cells)} \\\\"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
