"""Summaries as figures, PNG and PDF: scores against the level, and stability against accuracy."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from samrobust.report.aggregate import Section
from samrobust.report.looks import (
    COLUMN_INCHES,
    STYLE,
    Look,
    figure_text,
    looks_of,
    save_figure,
)
from samrobust.report.spreads import spread_figures

PANELS = {"miou": "mIoU (%)", "mbiou": "mBIoU (%)", "msf": "mSF (%)"}
"""Statistics that are drawn against the level -> their axis labels."""
PANEL_INCHES = 2.35
"""Width of each of several panels; three make a page's width."""
LEVEL_INCHES, STABILITY_INCHES = 1.9, 2.4
"""Heights of a panel with its axis labels."""


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


def write_plots(sections: Sequence[Section], folder: Path) -> Iterator[Path]:
    """Write the figures of all sections as PNG and PDF, and yield each path when it is written.

    `<protocol>--<data set>--level` shows mIoU, mBIoU and mSF against the level, with 95 % bands;
    `...--stability` mSF against mIoU; `...--objects` IoU of each object over its trials;
    `...--variance` its variance split; `...--heat` mIoU of segmenters x conditions. A figure that
    would be empty is not written. Published values are not drawn. A segmenter looks the same in all
    figures.

    Raises:
        RunError: a file cannot be written.
    """
    looks = looks_of(sections)
    with mpl.rc_context(STYLE):
        for section in sections:
            for name, figure in figures_of(section, looks):
                for ending in ("png", "pdf"):
                    path = folder / f"{stem_of(section)}--{name}.{ending}"
                    save_figure(figure, path)
                    yield path


def figures_of(section: Section, looks: Mapping[str, Look]) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of a section that would not be empty, each with its name.

    They are drawn and saved within `STYLE`.
    """
    rows = section.measured
    looks = {segmenter: looks[segmenter] for segmenter in rows["segmenter"].unique()}
    ladders = _ladders(section)
    for ladder in ladders:
        yield f"level{ladder.suffix}", _level_figure(section, ladder, looks=looks)
    if rows[["miou", "msf"]].notna().all(axis=1).any():
        yield "stability", _stability_figure(section, ladders, looks=looks)
    yield from spread_figures(section, looks)


def _level_figure(section: Section, ladder: _Ladder, *, looks: Mapping[str, Look]) -> Figure:
    rows = section.measured
    rows = rows[rows["condition"].isin(list(ladder.levels))].sort_values("level")
    panels = [name for name in PANELS if rows[name].notna().any()]
    width = COLUMN_INCHES if len(panels) == 1 else PANEL_INCHES * len(panels)
    figure = figure_text(section.title, looks=looks, size=(width, LEVEL_INCHES))
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
    section: Section, ladders: Sequence[_Ladder], *, looks: Mapping[str, Look]
) -> Figure:
    """Return mSF against mIoU: ladders as lines, their last level written at the end."""
    rows = section.measured.dropna(subset=["miou", "msf"])
    ladders = [ladder for ladder in ladders if rows["condition"].isin(list(ladder.levels)).any()]
    on_ladders = {name for ladder in ladders for name in ladder.levels}
    alone = [name for name in rows["condition"].unique() if name not in on_ladders]
    key = [f"at line ends: {ladder.axis}" for ladder in ladders]
    key += [f"({number})\N{NO-BREAK SPACE}{name}" for number, name in enumerate(alone, start=1)]
    title = f"{section.title}; {', '.join(key)}"
    figure = figure_text(title, looks=looks, size=(COLUMN_INCHES, STABILITY_INCHES))
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


def _draw_line(axes: Axes, line: pd.DataFrame, *, look: Look, text: str) -> None:
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


def _ladders(section: Section) -> list[_Ladder]:
    """Return the ladders of a section: at least two levels that have a score, one a degradation.

    A degradation with one level (the exact box, at noise 0) is a step of every ladder.
    """
    rows = section.measured
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


def stem_of(section: Section) -> str:
    """Return the beginning of file names: protocol, data set, and what else makes it different."""
    words = [section.protocol, section.dataset]
    if section.version > 1:
        words[0] += f"-v{section.version}"
    if section.limit is not None:
        words.append(f"first-{section.limit}")
    if section.trials is not None:
        words.append(f"{section.trials}-trials")
    return "--".join(re.sub(r"[^A-Za-z0-9._]+", "-", word) for word in words)
