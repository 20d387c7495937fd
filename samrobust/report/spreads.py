"""Figures of what a mean hides: the spread of each object, the variance split, and a heat map."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from samrobust.report.aggregate import Section
from samrobust.report.arrays import ScoreArrays
from samrobust.report.looks import COLUMN_INCHES, Look, figure_text, shortened
from samrobust.types import Floats

BETWEEN, WITHIN = "#0072B2", "#E69F00"
HEAT = "cividis"
"""A map for all kinds of colour vision, from dark to light."""
PANELS_A_ROW = 2
PANEL_INCHES, BAR_INCHES, CELL_INCHES = 1.25, 0.115, 0.2
"""Heights: of a panel of spreads, of a bar, of a row of the heat map."""
MOST_CONDITIONS = 9
"""Conditions of a heat map that is one column wide; with more it is two columns wide."""


def spread_figures(section: Section, looks: Mapping[str, Look]) -> Iterator[tuple[str, Figure]]:
    """Yield the names and figures that a section has scores for."""
    rows = section.measured
    order = list(rows["segmenter"].unique())
    if section.arrays is not None and rows["iou_var"].notna().any():
        means = rows.groupby("condition", sort=False)["iou_var"].mean()
        condition = str(means.idxmax())
        yield "objects", _object_figure(section, section.arrays, condition, looks)
    if rows["iou_var_between"].notna().any():
        yield "variance", _variance_figure(section, order)
    if rows["miou"].notna().any() and rows["condition"].nunique() > 1:
        yield "heat", _heat_figure(section, order)


def _object_figure(
    section: Section, arrays: ScoreArrays, condition: str, looks: Mapping[str, Look]
) -> Figure:
    """Return the IoU of each object over its trials, objects in order of their median."""
    order = list(section.measured["segmenter"].unique())
    n_rows = -(-len(order) // PANELS_A_ROW)
    n_columns = min(PANELS_A_ROW, len(order))
    title = (
        f"{section.title}; {condition}, where trials differ most: median (line), quartiles (dark) "
        "and range (light) of each object's trials"
    )
    figure = figure_text(title, size=(COLUMN_INCHES, PANEL_INCHES * n_rows))
    grid = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(order) :]:
        axes.set_axis_off()
        grid[-2, -1].tick_params(labelbottom=True)
    for axes, segmenter in zip(grid.flat, order, strict=False):
        place = arrays.segmenters.index(segmenter), arrays.conditions.index(condition)
        low, first, middle, third, high = _quantiles(arrays.scores["iou"][place])
        rank = np.linspace(0, 100, len(middle)) if len(middle) > 1 else np.zeros(1)
        colour = looks[segmenter]["color"]
        axes.fill_between(rank, low, high, color=colour, alpha=0.2, lw=0)
        axes.fill_between(rank, first, third, color=colour, alpha=0.45, lw=0)
        axes.plot(rank, middle, color=colour, linewidth=1.0)
        axes.set_title(shortened(segmenter), fontsize=7, loc="left", pad=2)
        axes.set(xlim=(0, 100), ylim=(0, 100))
    figure.supxlabel("objects, by median (%)", fontsize=8)
    figure.supylabel("IoU (%)", fontsize=8)
    return figure


def _quantiles(trials: Any) -> Floats:  # noqa: ANN401
    """Return (5, O) quartiles of the (O, T) trials in percent, objects in order of the median."""
    there = trials[~np.isnan(trials).all(axis=1)].astype(np.float64)
    quantiles: Floats = 100 * np.nanquantile(there, [0, 0.25, 0.5, 0.75, 1], axis=1)
    ordered: Floats = quantiles[:, np.argsort(quantiles[2], kind="stable")]
    return ordered


def _variance_figure(section: Section, order: Sequence[str]) -> Figure:
    """Return stacked bars: variance of IoU between objects, and between trials of one."""
    rows = section.measured.dropna(subset=["iou_var_between"])
    conditions = list(rows["condition"].unique())
    step = len(order) + 1.4
    size = (COLUMN_INCHES, BAR_INCHES * (step * len(conditions) + 4))
    figure = figure_text(f"{section.title}; variance of IoU, in percent squared", size=size)
    axes = figure.subplots()
    ticks, names = [], []
    for number, condition in enumerate(conditions):
        axes.annotate(
            condition,
            (0, step * number - 0.8),
            xytext=(3, 0),
            textcoords="offset points",
            fontsize=6,
            va="center",
        )
        for place, segmenter in enumerate(order):
            cell = rows[(rows["condition"] == condition) & (rows["segmenter"] == segmenter)]
            between, within = (1e4 * float(cell[name].sum()) for name in _PARTS)
            y = step * number + place
            axes.barh(y, max(between, 0), color=BETWEEN, height=0.8)
            axes.barh(y, within, left=max(between, 0), color=WITHIN, height=0.8)
            ticks.append(y)
            names.append(shortened(segmenter))
    axes.set_yticks(ticks, names, fontsize=5.5)
    axes.set_ylim(step * len(conditions) - 1, -1.3)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    for colour, text in ((BETWEEN, "between objects"), (WITHIN, "between trials of one object")):
        axes.bar(0, 0, color=colour, label=text)
    axes.set_xlim(left=0)
    figure.legend(loc="outside lower center", ncols=2, fontsize=7, frameon=False)
    return figure


_PARTS = ("iou_var_between", "iou_var")


def _heat_figure(section: Section, order: Sequence[str]) -> Figure:
    """Return mIoU as a table of colours, segmenters x conditions."""
    table = 100 * section.measured.pivot_table(
        "miou", "segmenter", "condition", sort=False, observed=True
    ).reindex(index=list(order))
    n_conditions = table.shape[1]
    width = COLUMN_INCHES * (1 if n_conditions <= MOST_CONDITIONS else 2.07)
    longest = max(map(len, table.columns))
    size = (width, CELL_INCHES * len(order) + 0.052 * longest + 0.1)
    figure = figure_text(f"{section.title}; mIoU (%)", size=size)
    axes = figure.subplots()
    values = table.to_numpy()
    scale = Normalize(np.nanmin(values), np.nanmax(values))
    axes.imshow(values, cmap=HEAT, norm=scale, aspect="auto")
    for (y, x), value in np.ndenumerate(values):
        if not np.isnan(value):
            ink = "black" if scale(value) > 0.5 else "white"
            axes.text(x, y, f"{value:.1f}", ha="center", va="center", color=ink, fontsize=6)
    axes.set_xticks(range(n_conditions), list(table.columns), rotation=40, ha="right", fontsize=6)
    axes.set_yticks(range(len(order)), [*map(shortened, order)], fontsize=6)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure
