"""Summaries as figures, PNG and PDF."""

import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation, Transform

from samrobust.degradations import DEGRADATION_ENTRIES
from samrobust.errors import RunError
from samrobust.report.calibration import Estimates, reliability, risk_coverage
from samrobust.report.columns import SPREADS, statistic_of
from samrobust.report.corruptions import ALL
from samrobust.report.scores import iou_of_trials
from samrobust.report.summary import Section
from samrobust.types import Floats

COLUMN_INCHES = 3.4
"""Width of one column of a paper: of a figure with one panel."""
DPI = 200
LONGEST_NAME = 24
"""Characters of a name on an axis."""

_LINE_INCHES = 0.15  # height of a line of the title or the legend
_LETTERS_AN_INCH = 19  # of a legend; a title's are smaller

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
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
LineStyle = Mapping[str, Any]


def empty_figure(
    *,
    size: tuple[float, float],
    styles: Mapping[str, LineStyle] | None = None,
    notes: Sequence[str] = (),
) -> Figure:
    """Return an empty figure with a legend below, where there is something to say in one.

    Args:
        size: width and height in inches of what is above the legend.
        styles: name -> the style of its line.
        notes: entries of the legend without a line.
    """
    width, height = size
    handles = [Line2D([], [], label=name, **style) for name, style in (styles or {}).items()]
    handles += [Line2D([], [], label=note, linestyle="none") for note in notes]
    n_columns = 1
    if handles:
        longest = max(len(str(handle.get_label())) for handle in handles)
        n_columns = min(len(handles), max(1, int(width / (0.5 + longest / _LETTERS_AN_INCH))))
        height += _LINE_INCHES * math.ceil(len(handles) / n_columns)
    figure = Figure(figsize=(width, height), layout="constrained")
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=n_columns, fontsize=7, frameon=False
        )
    return figure


def add_title(figure: Figure, title: str) -> None:
    """Write a title, broken into lines, above a figure, which becomes higher by it."""
    width, height = figure.get_size_inches()
    text = textwrap.fill(title, int(width * _LETTERS_AN_INCH * 1.17), break_on_hyphens=False)
    figure.set_size_inches(width, height + _LINE_INCHES * (text.count("\n") + 1))
    figure.suptitle(text, x=0.01, horizontalalignment="left", fontsize=6, color="#444444")


def shortened(name: str) -> str:
    """Return a name that leaves room for what it stands beside."""
    return (
        name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"
    )


def line_styles(sections: Sequence[Section]) -> dict[str, LineStyle]:
    """Return the style of each segmenter, in order of appearance; controls are grey and dashed."""
    styles: dict[str, LineStyle] = {}
    counts = {True: 0, False: 0}
    for section in sections:
        rows = section.measured
        for name, is_control in zip(rows["segmenter"], rows["is_control"], strict=True):
            if name not in styles:
                colours = _GREYS if is_control else COLOURS
                number = counts[is_control]
                styles[name] = {
                    "color": colours[number % len(colours)],
                    "marker": _MARKERS[number % len(_MARKERS)],
                    "markeredgecolor": "white",
                    "linestyle": "--" if is_control else "-",
                }
                counts[is_control] += 1
    return styles


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as what the ending of its path says.

    Raises:
        RunError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # without its date a PDF of the same scores is the same file
        figure.savefig(
            path, dpi=DPI, metadata={"CreationDate": None} if path.suffix == ".pdf" else None
        )
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}") from error


BETWEEN, WITHIN = "#0072B2", "#E69F00"
HEAT = "cividis"
"""A map for all kinds of colour vision, from dark to light."""
RANGE_ALPHA, QUARTILES_ALPHA = 0.2, 0.45
_OF_TRIALS: Mapping[str, LineStyle] = {
    "median": {"color": "#555555"},
    "quartiles": {"color": "#555555", "alpha": QUARTILES_ALPHA, "linewidth": 6},
    "range of trials": {"color": "#555555", "alpha": RANGE_ALPHA, "linewidth": 6},
}
PANELS_A_ROW = 2
SPREAD_INCHES, BAR_INCHES, CELL_INCHES = 1.25, 0.115, 0.2
"""Heights: of a panel of spreads, of a bar, of a row of the heat map."""
HEAT_POINTS = 20.0
"""Percent that the colours of a heat map span at least: small differences look small."""
MOST_CONDITIONS = 9
"""Conditions of a heat map that is one column wide; with more it is two columns wide."""


def spread_figures(
    section: Section, styles: Mapping[str, LineStyle]
) -> Iterator[tuple[str, Figure]]:
    """Yield the names and figures that a section has scores for."""
    rows = section.measured
    rows = rows[rows["condition"].isin(section.shown_conditions)]
    order = list(rows["segmenter"].unique())
    if section.stored and rows["iou_var"].notna().any():
        means = rows.groupby("condition", sort=False)["iou_var"].mean()
        yield "objects", _object_figure(section, str(means.idxmax()), styles)
    if rows["iou_var_between"].notna().any():
        yield "variance", _variance_figure(section, order)
    if rows["miou"].notna().any() and len({*rows["condition"]}) > 1:
        yield "heat", _heat_figure(section, order)
    if len(section.glance) and max(section.decodes.values()) > 1:
        yield "cost", _cost_figure(section, styles)
    searches = section.search_rows
    names = searches["condition"].unique()
    for name in names:
        of = f"-{name}" if len(names) > 1 else ""
        yield f"broken{of}", _broken_figure(searches[searches["condition"] == name], styles)
    if len(section.corruptions):
        yield "corruptions", _corruption_figure(section, order)


def _cost_figure(section: Section, styles: Mapping[str, LineStyle]) -> Figure:
    """Return the score at a glance against what it costs, with 95 % intervals."""
    names = list(section.glance["segmenter"])
    marks = {name: {**styles[name], "linestyle": "none"} for name in names}
    figure = empty_figure(size=(COLUMN_INCHES, 0.7 * COLUMN_INCHES), styles=marks)
    axes = figure.subplots()
    decodes = section.decodes
    axes.set_xscale("log")
    for number, row in enumerate(section.glance.to_dict("records")):
        name = row["segmenter"]
        factor = statistic_of(row["statistic"]).factor
        mean, low, high = (factor * row[key] for key in ("mean", "mean_low", "mean_high"))
        axes.errorbar(
            decodes[name],
            mean,
            [[mean - low], [high - mean]],
            elinewidth=0.6,
            transform=_beside(axes, number, len(names)),
            **marks[name],
        )
        axes.update_datalim([(decodes[name], low), (decodes[name], high)])
    axes.autoscale_view()
    ticks = sorted({*decodes.values()})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    statistic = statistic_of(section.glance["statistic"].iloc[0])
    axes.set(xlabel="decodes a prompt", ylabel=f"mean {statistic.axis}")
    return figure


def _broken_figure(rows: pd.DataFrame, styles: Mapping[str, LineStyle]) -> Figure:
    """Return which share of objects is broken by a prompt up to each human percentile.

    Args:
        rows: `Section.search_rows` of one search.
        styles: of the segmenters.
    """
    lines = {name: {**styles[name], "marker": ""} for name in rows["segmenter"].unique()}
    figure = empty_figure(size=(COLUMN_INCHES, 0.7 * COLUMN_INCHES), styles=lines)
    axes = figure.subplots()
    for name, group in rows.groupby("segmenter", sort=False):
        at = np.sort(group["breaks_at"].dropna().to_numpy(np.float64))
        shares = 100 * np.arange(len(at) + 1) / len(group)
        ends = [0, *at, group["limit"].iloc[0]]
        axes.step(ends, [*shares, shares[-1]], where="post", **lines[str(name)])
    axes.set(xlabel="human percentile of the prompt", ylabel="broken objects (%)", ylim=(0, 100))
    return figure


def _object_figure(section: Section, condition: str, styles: Mapping[str, LineStyle]) -> Figure:
    """Return the IoU of each object over its trials, objects in order of their median."""
    order = list(section.measured["segmenter"].unique())
    n_rows = -(-len(order) // PANELS_A_ROW)
    n_columns = min(PANELS_A_ROW, len(order))
    size = (COLUMN_INCHES, SPREAD_INCHES * n_rows)
    figure = empty_figure(size=size, styles=_OF_TRIALS, notes=[f"at {condition}"])
    grid = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(order) :]:
        axes.set_axis_off()
        grid[-2, -1].tick_params(labelbottom=True)
    for axes, segmenter in zip(grid.flat, order, strict=False):
        run = section.stored[section.segmenters.index(segmenter)]
        trials = iou_of_trials(run, [condition])[condition]
        low, first, middle, third, high = _quantiles(trials)
        rank = np.linspace(0, 100, len(middle)) if len(middle) > 1 else np.zeros(1)
        colour = styles[segmenter]["color"]
        axes.fill_between(rank, low, high, color=colour, alpha=RANGE_ALPHA, lw=0)
        axes.fill_between(rank, first, third, color=colour, alpha=QUARTILES_ALPHA, lw=0)
        axes.plot(rank, middle, color=colour, linewidth=1.0)
        axes.set_title(shortened(segmenter), fontsize=7, loc="left", pad=2)
        axes.set(xlim=(0, 100), ylim=(0, 100))
    for axes in grid[-1]:
        axes.set_xlabel("objects, by median (%)")
    figure.supylabel("IoU (%)", fontsize=8)
    return figure


def _quantiles(trials: npt.NDArray[np.float32]) -> Floats:
    """Return (5, O) quartiles of the (O, T) trials in percent, objects in order of the median."""
    there = trials[~np.isnan(trials).all(axis=1)].astype(np.float64)
    quantiles: Floats = 100 * np.nanquantile(there, [0, 0.25, 0.5, 0.75, 1], axis=1)
    ordered: Floats = quantiles[:, np.argsort(quantiles[2], kind="stable")]
    return ordered


def _variance_figure(section: Section, order: Sequence[str]) -> Figure:
    """Return stacked bars: variance of IoU between objects, and between trials of one."""
    rows = section.measured.dropna(subset=["iou_var_between"])
    rows = rows[rows["condition"].isin(section.shown_conditions)]
    conditions = list(rows["condition"].unique())
    step = len(order) + 1.4
    size = (COLUMN_INCHES, BAR_INCHES * (step * len(conditions) + 4))
    figure = empty_figure(size=size)
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
    axes.set_xlabel("variance of IoU (percent squared)")
    figure.legend(loc="outside lower center", ncols=2, fontsize=7, frameon=False)
    return figure


_PARTS = ("iou_var_between", "iou_var")


def _heat_figure(section: Section, order: Sequence[str]) -> Figure:
    """Return mIoU as a table of colours, segmenters x conditions."""
    rows = section.measured
    rows = rows[rows["condition"].isin(section.shown_conditions)]
    table = 100 * rows.pivot_table(
        "miou", "segmenter", "condition", sort=False, observed=True
    ).reindex(index=list(order))
    n_conditions = table.shape[1]
    width = COLUMN_INCHES * (1 if n_conditions <= MOST_CONDITIONS else 2.07)
    longest = max(map(len, table.columns))
    size = (width, CELL_INCHES * len(order) + 0.052 * longest + 0.1)
    figure = empty_figure(size=size)
    axes = figure.subplots()
    values = table.to_numpy()
    scale = Normalize(*heat_range(values))
    image = _draw_heat(axes, values, scale, "{:.1f}")
    figure.colorbar(image, ax=axes, pad=0.02, aspect=12).set_label("mIoU (%)", fontsize=7)
    axes.set_xticks(range(n_conditions), list(table.columns), rotation=40, ha="right", fontsize=6)
    axes.set_yticks(range(len(order)), [*map(shortened, order)], fontsize=6)
    return figure


def _draw_heat(axes: Axes, values: Floats, scale: Normalize, form: str) -> AxesImage:
    """Draw a table of colours with the values written in them."""
    image = axes.imshow(values, cmap=HEAT, norm=scale, aspect="auto")
    for (y, x), value in np.ndenumerate(values):
        if not np.isnan(value):
            ink = "black" if scale(value) > 0.5 else "white"
            axes.text(x, y, form.format(value), ha="center", va="center", color=ink, fontsize=6)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image


def _corruption_figure(section: Section, order: Sequence[str]) -> Figure:
    """Return severities x prompts as tables of colours: the mean over corruptions, interaction."""
    frame = section.corruptions
    statistic = statistic_of(str(frame["statistic"].iloc[0]))
    rows = frame[(frame["corruption"] == ALL) & frame["severity"].notna()]
    prompts, severities = list(rows["condition"].unique()), sorted(rows["severity"].unique())
    clean = section.measured.pivot_table(
        str(frame["statistic"].iloc[0]), "segmenter", "condition", sort=False, observed=True
    )
    tables = {
        segmenter: {
            value: rows[rows["segmenter"] == segmenter]
            .pivot_table(value, "severity", "condition", sort=False, dropna=False)
            .reindex(index=severities, columns=prompts)
            for value in ("value", "interaction")
        }
        for segmenter in order
        if segmenter in set(rows["segmenter"])
    }
    values = {
        segmenter: statistic.factor
        * np.vstack([clean.loc[segmenter, prompts].to_numpy(np.float64), table["value"]])
        for segmenter, table in tables.items()
    }
    joint = {
        segmenter: statistic.factor * table["interaction"].to_numpy(np.float64)
        for segmenter, table in tables.items()
    }
    has_joint = any(np.isfinite(table).any() for table in joint.values())
    n_columns = 1 + has_joint
    longest = max(map(len, prompts))
    height = CELL_INCHES * (len(severities) + 2.2) * len(tables) + 0.052 * longest + 0.2
    figure = empty_figure(size=(COLUMN_INCHES * (1.3 if has_joint else 1), height))
    grid = figure.subplots(len(tables), n_columns, sharex=True, squeeze=False)
    heat = Normalize(*heat_range(np.vstack(list(values.values()))))
    reach = max([1.0, *(float(np.nanmax(np.abs(table))) for table in joint.values() if has_joint)])
    for (segmenter, table), panels in zip(values.items(), grid, strict=True):
        _draw_heat(panels[0], table, heat, "{:.1f}")
        panels[0].set_yticks(range(len(table)), ["0", *(f"{each:g}" for each in severities)])
        panels[0].set_title(f"{shortened(segmenter)}: {statistic.label}", fontsize=7, loc="left")
        panels[0].set_ylabel("severity")
        if has_joint:
            _draw_heat(panels[1], joint[segmenter], Normalize(-reach, reach), "{:+.1f}")
            panels[1].set_yticks(range(len(severities)), [f"{each:g}" for each in severities])
            panels[1].set_title("interaction (points)", fontsize=7, loc="left")
    for axes in grid[-1]:
        axes.set_xticks(range(len(prompts)), prompts, rotation=40, ha="right", fontsize=6)
    return figure


def heat_range(values: Floats) -> tuple[float, float]:
    """Return the values of the darkest and the lightest colour, `HEAT_POINTS` apart or more."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    missing = max(0.0, HEAT_POINTS - (high - low))
    low = max(0.0, min(low - missing / 2, 100 - max(HEAT_POINTS, high - low)))
    return low, max(high, low + HEAT_POINTS)


MOST_LINES = 4
"""Conditions in a panel of the figures of estimates: the first, the last and some between."""


def _reliability_figure(section: Section) -> Figure:
    """Return mean IoU against mean estimate in bins of equal mass, a panel per segmenter."""
    figure, panels = _estimate_panels(section)
    for axes, lines in panels:
        axes.axline((0, 0), slope=1, color="#999999", linewidth=0.6)
        for style, found in lines:
            quality, iou = reliability(found)
            axes.plot(100 * quality, 100 * iou, marker=".", **style)
        axes.set(xlim=(0, 100), ylim=(0, 100))
        axes.set_xlabel("estimated IoU (%)")
    figure.supylabel("IoU (%)", fontsize=8)
    return figure


def _risk_figure(section: Section) -> Figure:
    """Return 1 - mIoU of the prompts of the highest estimate against their share."""
    figure, panels = _estimate_panels(section)
    for axes, lines in panels:
        for style, found in lines:
            coverage, risk = risk_coverage(found)
            few = np.linspace(0, len(risk) - 1, min(len(risk), 500)).astype(int)
            axes.plot(100 * coverage[few], 100 * risk[few], **style)
        axes.set(xlim=(0, 100), ylim=(0, None))
        axes.set_xlabel("prompts kept (%)")
    figure.supylabel("1 - mIoU (%)", fontsize=8)
    return figure


def _estimate_panels(
    section: Section,
) -> tuple[Figure, list[tuple[Axes, list[tuple[LineStyle, Estimates]]]]]:
    """Return a figure with a panel per segmenter that estimates IoU, and the lines of each."""
    conditions = list(dict.fromkeys(name for each in section.estimates.values() for name in each))
    places = np.linspace(0, len(conditions) - 1, min(len(conditions), MOST_LINES))
    chosen = [conditions[place] for place in places.round().astype(int)]
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.85, len(chosen)))
    styles: dict[str, LineStyle] = {
        name: {"color": shade} for name, shade in zip(chosen, shades, strict=True)
    }
    n_columns = min(PANELS_A_ROW, len(section.estimates))
    n_rows = -(-len(section.estimates) // n_columns)
    figure = empty_figure(size=(COLUMN_INCHES, LEVEL_INCHES * n_rows), styles=styles)
    grid = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(section.estimates) :]:
        axes.set_axis_off()
    panels = []
    for axes, (segmenter, found) in zip(grid.flat, section.estimates.items(), strict=False):
        axes.set_title(shortened(segmenter), fontsize=7, loc="left", pad=2)
        panels.append((axes, [(styles[name], found[name]) for name in chosen if name in found]))
    return figure, panels


PANEL_INCHES = 2.35
"""Width of each of several panels; three make a page's width."""
BESIDE_POINTS = 1.6
"""Points that a segmenter is drawn beside the one before, so that no interval hides another."""
MOST_HUMAN_LEVELS = 7
"""Levels whose human percentiles have room above a panel in the usual size."""
LEVEL_INCHES, STABILITY_INCHES = 1.9, 2.4
"""Heights of a panel with its axis labels."""
RUNG_MARKER, TEXT_POINTS = 2.5, 5
"""Points: size of a marker on lines that may cross; from the end of a line to its text."""


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


def write_plots(
    sections: Sequence[Section], folder: Path, *, titles: bool = False
) -> Iterator[Path]:
    """Write the figures of all sections as PNG and PDF, and yield each path when it is written.

    `<protocol>--<data set>--level` shows all metrics against the level, with 95 % intervals;
    `...--stability` mSF against mIoU; `...--objects` IoU of each object over its trials;
    `...--variance` its variance split; `...--heat` mIoU of segmenters x conditions;
    `...--reliability` and `...--risk` what estimates of IoU are worth; `...--corruptions` means
    over corruptions and their interaction with prompts. A figure that would be empty is not
    written. Published values are not drawn. A segmenter has one style in all figures.

    Args:
        sections: the summaries.
        folder: made where there is none.
        titles: write the title of the section above each figure; papers have captions.

    Raises:
        RunError: a file cannot be written.
    """
    styles = line_styles(sections)
    with mpl.rc_context(STYLE):
        for section in sections:
            for name, figure in figures_of(section, styles):
                if titles:
                    add_title(figure, section.title)
                for ending in ("png", "pdf"):
                    path = folder / f"{stem_of(section)}--{name}.{ending}"
                    save_figure(figure, path)
                    yield path


def draw_figures(section: Section) -> dict[str, Figure]:
    """Return the figures of a section by name, drawn in the style of `write_plots`."""
    with mpl.rc_context(STYLE):
        return dict(figures_of(section, line_styles([section])))


def figures_of(section: Section, styles: Mapping[str, LineStyle]) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of a section that would not be empty, each with its name.

    They are drawn and saved within `STYLE`.
    """
    rows = section.measured
    styles = {segmenter: styles[segmenter] for segmenter in rows["segmenter"].unique()}
    ladders = _ladders(section)
    for ladder in ladders:
        yield f"level{ladder.suffix}", _level_figure(section, ladder, styles=styles)
    if rows[["miou", "msf"]].notna().all(axis=1).any():
        yield "stability", _stability_figure(section, ladders, styles=styles)
    yield from spread_figures(section, styles)
    if section.estimates:
        yield "reliability", _reliability_figure(section)
        yield "risk", _risk_figure(section)


def _metrics(section: Section) -> list[str]:
    """Return the columns of the means of metrics."""
    return [name for name in section.statistics if name not in SPREADS]


def _level_figure(section: Section, ladder: _Ladder, *, styles: Mapping[str, LineStyle]) -> Figure:
    rows = section.measured
    rows = rows[rows["condition"].isin(list(ladder.levels))].sort_values("level")
    panels = [name for name in _metrics(section) if rows[name].notna().any()]
    width = COLUMN_INCHES if len(panels) == 1 else PANEL_INCHES * len(panels)
    figure = empty_figure(styles=styles, size=(width, LEVEL_INCHES))
    grid = figure.subplots(1, len(panels), sharex=True, squeeze=False)
    for axes, name in zip(grid[0], panels, strict=True):
        factor = statistic_of(name).factor
        for number, (segmenter, style) in enumerate(styles.items()):
            line = rows[rows["segmenter"] == segmenter].dropna(subset=[name])
            score = factor * line[name]
            ends = [score - factor * line[f"{name}_low"], factor * line[f"{name}_high"] - score]
            moved = _beside(axes, number, len(styles))
            sides = np.maximum(ends, 0)  # an interval holds its score, but for rounding
            levels = line["level"].to_numpy(np.float64)
            axes.errorbar(levels, score, sides, elinewidth=0.6, transform=moved, **style)
            for end in (score - sides[0], score + sides[1]):
                axes.update_datalim(np.column_stack([levels, end]))
        axes.autoscale_view()
        whole = all(level.is_integer() for level in ladder.levels.values())
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole, steps=[1, 2, 5, 10]))
        axes.set(xlabel=ladder.axis, ylabel=statistic_of(name).axis)
        _add_human_axis(axes, ladder, section.human_percentiles)
    return figure


def _beside(axes: Axes, number: int, count: int) -> Transform:
    """Return where in the data's coordinates one of several segmenters is drawn, beside the others.

    Args:
        axes: in which.
        number: of the segmenter, from 0.
        count: of segmenters.
    """
    aside = (number - (count - 1) / 2) * BESIDE_POINTS / 72
    scale = axes.get_figure(root=True).dpi_scale_trans  # type: ignore[union-attr]
    return axes.transData + ScaledTranslation(aside, 0, scale)


def _add_human_axis(axes: Axes, ladder: _Ladder, percentiles: Mapping[str, float]) -> None:
    """Write above the levels of boxes how human they are, where the level is not that itself."""
    levels = {name: level for name, level in ladder.levels.items() if name in percentiles}
    texts = [f"{percentiles[name]:.0f}" for name in levels]
    if not levels or texts == [f"{level:.0f}" for level in levels.values()]:
        return
    above = axes.secondary_xaxis("top")
    fontsize = 6 if len(texts) <= MOST_HUMAN_LEVELS else 5
    above.set_xticks(list(levels.values()), texts, fontsize=fontsize)
    above.set_xlabel("human percentile of the median box", fontsize=6)
    above.tick_params(length=2, width=0.4, pad=1)


def _stability_figure(
    section: Section, ladders: Sequence[_Ladder], *, styles: Mapping[str, LineStyle]
) -> Figure:
    """Return mSF against mIoU: ladders as lines, their last level written at the end."""
    rows = section.measured.dropna(subset=["miou", "msf"])
    ladders = [ladder for ladder in ladders if rows["condition"].isin(list(ladder.levels)).any()]
    on_ladders = {name for ladder in ladders for name in ladder.levels}
    alone = [name for name in rows["condition"].unique() if name not in on_ladders]
    notes = [f"at line ends: {ladder.axis}" for ladder in ladders]
    notes += [f"({number}) {name}" for number, name in enumerate(alone, start=1)]
    figure = empty_figure(styles=styles, size=(COLUMN_INCHES, STABILITY_INCHES), notes=notes)
    axes = figure.subplots()
    for segmenter, style in styles.items():
        points = rows[rows["segmenter"] == segmenter]
        for ladder in ladders:
            line = points[points["condition"].isin(list(ladder.levels))].sort_values("level")
            _draw_line(axes, line, style=style, text=f"{line['level'].max():g}")
        for number, name in enumerate(alone, start=1):
            _draw_line(axes, points[points["condition"] == name], style=style, text=f"({number})")
    axes.margins(0.08)
    axes.set(xlabel=statistic_of("miou").axis, ylabel=statistic_of("msf").axis)
    return figure


def _draw_line(axes: Axes, line: pd.DataFrame, *, style: LineStyle, text: str) -> None:
    """Draw mSF against mIoU with a text beyond the last point, where the line itself is not."""
    x, y = 100 * line["miou"].to_numpy(), 100 * line["msf"].to_numpy()
    small: LineStyle = {"markersize": RUNG_MARKER} if len(x) > 1 else {}
    axes.plot(x, y, **{**style, **small})
    right, up = x[-1] >= x[0], y[-1] > y[0]
    axes.annotate(
        text,
        (x[-1], y[-1]),
        xytext=(TEXT_POINTS if right else -TEXT_POINTS, TEXT_POINTS if up else -TEXT_POINTS),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=6,
        color=style["color"],
        path_effects=[withStroke(linewidth=1.5, foreground="white")],
    )


def _ladders(section: Section) -> list[_Ladder]:
    """Return the ladders of a section: at least two levels that have a score, one a degradation.

    The clicks of a conversation are a ladder of their own.
    A degradation with one level (the exact box, at noise 0) is a step of every ladder.
    """
    rows = section.measured
    scored = set(rows.loc[rows[_metrics(section)].notna().any(axis=1), "condition"])
    steps = [
        row for row in section.conditions if row["level"] is not None and row["name"] in scored
    ]
    kinds = [_kind(row) for row in steps]
    steps.sort(key=lambda row: row["level"])
    longer = [kind for kind in dict.fromkeys(kinds) if kinds.count(kind) > 1]
    ladders = []
    for kind in longer or kinds[-1:]:
        others = set(longer) - {kind}
        rungs = [row for row in steps if _kind(row) not in others]
        if len(rungs) > 1:
            levels = {row["name"]: row["level"] for row in rungs}
            axis = _axis(kind, [row for row in rungs if _kind(row) == kind])
            suffix = re.sub(r"[^A-Za-z0-9._]+", "-", f"-{kind}")
            ladders.append(_Ladder(levels, axis, suffix=suffix if others else ""))
    return ladders


def _kind(row: Mapping[str, Any]) -> str:
    """Return what the conditions of a ladder share: a degradation, or a conversation."""
    turn = row.get("turn")
    return str(turn["conversation"] if turn else row["degradation"])


def _axis(kind: str, rungs: Sequence[Mapping[str, Any]]) -> str:
    """Return what the level of a degradation is: in words, where its row has them."""
    if rungs[0].get("turn"):
        return "clicks"
    names = [
        name
        for name in rungs[0]["parameters"]
        if all(row["parameters"][name] == row["level"] for row in rungs)
    ]
    if not names:
        return f"level of {kind}"
    entry = DEGRADATION_ENTRIES.get(kind)
    together = ", ".join(names)
    words = entry.axes.get(together) if entry else None
    return words or f"{kind} ({together})"


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
