"""Summaries as figures, PNG and PDF: scores against the level, and stability against accuracy."""

import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from samrobust.errors import RunError
from samrobust.report.aggregate import MEASURED, Section

PANELS = {"miou": "mIoU (%)", "mbiou": "mBIoU (%)", "msf": "mSF (%)"}
"""Statistics that are drawn against the level -> their axis labels."""
COLUMN_INCHES = 3.4
"""Width of one column of a paper: of a figure with one panel."""
PANEL_INCHES = 2.35
"""Width of each of several panels; three make a page's width."""
LEVEL_INCHES, STABILITY_INCHES = 1.9, 2.4
"""Heights of a panel with its axis labels."""
DPI = 200

_LINE_INCHES = 0.15  # height of a line of the title or the legend
_LETTERS_AN_INCH = 19  # of a legend; a title's are smaller

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette for all kinds of colour vision, without its yellow (pale on white)."""
_GREYS = ("#555555", "#999999")
_MARKERS = ("o", "s", "^", "D", "v", "p", "P", "X", "<", ">")  # more than colours: pairs differ
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "lines.markeredgewidth": 0.4,
    "figure.constrained_layout.wspace": 0.06,
    "text.parse_math": False,  # names may hold dollar signs
    "text.usetex": False,
    "pdf.fonttype": 42,  # TrueType, which publishers ask for
}
_Look = Mapping[str, Any]


@dataclass(frozen=True)
class _Ladder:
    """Conditions that share an axis.

    Attributes:
        levels: condition -> level, ascending.
        axis: what the level is: a degradation and its parameters.
        suffix: in file names, "" where a section has one ladder.
    """

    levels: Mapping[str, float]
    axis: str
    suffix: str = ""


def write_plots(sections: Sequence[Section], folder: Path) -> list[Path]:
    """Write the figures of all sections as PNG and PDF and return their paths.

    `<protocol>--<data set>--level` shows mIoU, mBIoU and mSF against the level, with 95 % bands;
    `...--stability` shows mSF against mIoU. A figure that would be empty is not written. Published
    values are not drawn. A segmenter looks the same in all figures.

    Raises:
        RunError: a file cannot be written.
    """
    paths = []
    looks = _looks(sections)
    with mpl.rc_context(STYLE):
        for section in sections:
            for name, figure in _figures(section, looks):
                for ending in ("png", "pdf"):
                    path = folder / f"{_stem(section)}--{name}.{ending}"
                    _save(figure, path)
                    paths.append(path)
    return paths


def _figures(section: Section, looks: Mapping[str, _Look]) -> Iterator[tuple[str, Figure]]:
    rows = _measured(section)
    looks = {segmenter: looks[segmenter] for segmenter in rows["segmenter"].unique()}
    ladders = _ladders(section)
    for ladder in ladders:
        yield f"level{ladder.suffix}", _level_figure(section, ladder, looks=looks)
    if rows[["miou", "msf"]].notna().all(axis=1).any():
        yield "stability", _stability_figure(section, ladders, looks=looks)


def _measured(section: Section) -> pd.DataFrame:
    return section.rows[section.rows["source"] == MEASURED]


def _level_figure(section: Section, ladder: _Ladder, *, looks: Mapping[str, _Look]) -> Figure:
    rows = _measured(section)
    rows = rows[rows["condition"].isin(list(ladder.levels))].sort_values("level")
    panels = [name for name in PANELS if rows[name].notna().any()]
    width = COLUMN_INCHES if len(panels) == 1 else PANEL_INCHES * len(panels)
    figure = _figure(section.title, looks, size=(width, LEVEL_INCHES))
    grid = figure.subplots(1, len(panels), sharex=True, squeeze=False)
    for axes, name in zip(grid[0], panels, strict=True):
        for segmenter, look in looks.items():
            line = rows[rows["segmenter"] == segmenter].dropna(subset=[name])
            axes.plot(line["level"], 100 * line[name], **look)
            ends = 100 * line[f"{name}_low"], 100 * line[f"{name}_high"]
            axes.fill_between(line["level"], *ends, color=look["color"], alpha=0.15, lw=0)
        whole = all(level.is_integer() for level in ladder.levels.values())
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole, steps=[1, 2, 5, 10]))
        axes.set(xlabel=ladder.axis, ylabel=PANELS[name])
    return figure


def _stability_figure(
    section: Section, ladders: Sequence[_Ladder], *, looks: Mapping[str, _Look]
) -> Figure:
    """Return mSF against mIoU: ladders as lines, their last level written at the end."""
    rows = _measured(section).dropna(subset=["miou", "msf"])
    ladders = [ladder for ladder in ladders if rows["condition"].isin(list(ladder.levels)).any()]
    on_ladders = {name for ladder in ladders for name in ladder.levels}
    alone = [name for name in rows["condition"].unique() if name not in on_ladders]
    key = [f"at line ends: {ladder.axis}" for ladder in ladders]
    key += [f"({number})\N{NO-BREAK SPACE}{name}" for number, name in enumerate(alone, start=1)]
    title = f"{section.title}; {', '.join(key)}"
    figure = _figure(title, looks, size=(COLUMN_INCHES, STABILITY_INCHES))
    axes = figure.subplots()
    for segmenter, look in looks.items():
        points = rows[rows["segmenter"] == segmenter]
        for ladder in ladders:
            line = points[points["condition"].isin(list(ladder.levels))].sort_values("level")
            _draw_line(axes, line, look=look, text=f"{line['level'].max():g}")
        for number, name in enumerate(alone, start=1):
            _draw_line(axes, points[points["condition"] == name], look=look, text=f"({number})")
    axes.margins(0.08)
    axes.set(xlabel=PANELS["miou"], ylabel=PANELS["msf"])
    return figure


def _draw_line(axes: Axes, line: pd.DataFrame, *, look: _Look, text: str) -> None:
    """Draw mSF against mIoU with a text at the last point."""
    x, y = 100 * line["miou"], 100 * line["msf"]
    axes.plot(x, y, **look)
    axes.annotate(
        text,
        (x.iloc[-1], y.iloc[-1]),
        xytext=(3, -7),
        textcoords="offset points",
        fontsize=6,
        color=look["color"],
        path_effects=[withStroke(linewidth=1.5, foreground="white")],
    )


def _figure(title: str, looks: Mapping[str, _Look], *, size: tuple[float, float]) -> Figure:
    """Return an empty figure with a title above and a legend below; `size` is of what is between.

    Sizes are width and height in inches.
    """
    width, height = size
    text = textwrap.fill(title, int(width * _LETTERS_AN_INCH * 1.25), break_on_hyphens=False)
    longest = max(map(len, looks))
    n_columns = min(len(looks), max(1, int(width / (0.5 + longest / _LETTERS_AN_INCH))))
    height += _LINE_INCHES * (math.ceil(len(looks) / n_columns) + text.count("\n") + 1)
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(text, x=0.01, horizontalalignment="left", fontsize=6, color="#444444")
    handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=n_columns, fontsize=7, frameon=False
    )
    return figure


def _ladders(section: Section) -> list[_Ladder]:
    """Return the ladders of a section: at least two levels that have a score, one a degradation.

    A degradation with one level (the exact box, at noise 0) is a step of every ladder.
    """
    rows = _measured(section)
    scored = set(rows.loc[rows[list(PANELS)].notna().any(axis=1), "condition"])
    steps = [
        row for row in section.conditions if row["level"] is not None and row["name"] in scored
    ]
    kinds = [row["degradation"] for row in steps]
    steps.sort(key=lambda row: row["level"])
    longer = [kind for kind in dict.fromkeys(kinds) if kinds.count(kind) > 1]
    ladders = []
    for kind in longer or kinds[-1:]:
        others = set(longer) - {kind}
        rungs = [row for row in steps if row["degradation"] not in others]
        if len(rungs) > 1:
            levels = {row["name"]: row["level"] for row in rungs}
            axis = _axis(kind, [row for row in rungs if row["degradation"] == kind])
            ladders.append(_Ladder(levels, axis, suffix=f"-{kind}" if others else ""))
    return ladders


def _axis(kind: str, rungs: Sequence[Mapping[str, Any]]) -> str:
    """Return a degradation with those of its parameters that are the level."""
    names = [
        name
        for name in rungs[0]["parameters"]
        if all(row["parameters"][name] == row["level"] for row in rungs)
    ]
    return f"{kind} ({', '.join(names)})" if names else f"level of {kind}"


def _looks(sections: Sequence[Section]) -> dict[str, _Look]:
    """Return the look of each segmenter, in order of appearance; controls are grey and dashed."""
    looks: dict[str, _Look] = {}
    counts = {True: 0, False: 0}
    for section in sections:
        rows = _measured(section)
        for name, is_control in zip(rows["segmenter"], rows["is_control"], strict=True):
            if name not in looks:
                colours = _GREYS if is_control else _COLOURS
                number = counts[is_control]
                looks[name] = {
                    "color": colours[number % len(colours)],
                    "marker": _MARKERS[number % len(_MARKERS)],
                    "markeredgecolor": "white",
                    "linestyle": "--" if is_control else "-",
                }
                counts[is_control] += 1
    return looks


def _stem(section: Section) -> str:
    """Return the beginning of file names: protocol, data set, and what else makes it different."""
    words = [section.protocol, section.dataset]
    if section.version > 1:
        words[0] += f"-v{section.version}"
    if section.limit is not None:
        words.append(f"first-{section.limit}")
    if section.trials is not None:
        words.append(f"{section.trials}-trials")
    return "--".join(re.sub(r"[^A-Za-z0-9._]+", "-", word) for word in words)


def _save(figure: Figure, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # without its date a PDF of the same scores is the same file
        figure.savefig(
            path, dpi=DPI, metadata={"CreationDate": None} if path.suffix == ".pdf" else None
        )
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}") from error
