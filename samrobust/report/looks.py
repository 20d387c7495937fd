"""How figures look: sizes, colours for all kinds of colour vision, titles and legends."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from samrobust.errors import RunError
from samrobust.report.aggregate import Section

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
Look = Mapping[str, Any]


def figure_text(
    title: str, *, size: tuple[float, float], looks: Mapping[str, Look] | None = None
) -> Figure:
    """Return an empty figure with a title above and, of `looks`, a legend below.

    Args:
        title: broken into lines.
        size: width and height in inches of what is between.
        looks: name -> how its line looks.
    """
    width, height = size
    text = textwrap.fill(title, int(width * _LETTERS_AN_INCH * 1.17), break_on_hyphens=False)
    height += _LINE_INCHES * (text.count("\n") + 1)
    n_columns = 1
    if looks:
        longest = max(map(len, looks))
        n_columns = min(len(looks), max(1, int(width / (0.5 + longest / _LETTERS_AN_INCH))))
        height += _LINE_INCHES * math.ceil(len(looks) / n_columns)
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(text, x=0.01, horizontalalignment="left", fontsize=6, color="#444444")
    if looks:
        handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=n_columns, fontsize=7, frameon=False
        )
    return figure


def shortened(name: str) -> str:
    """Return a name that leaves room for what it stands beside."""
    return (
        name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"
    )


def looks_of(sections: Sequence[Section]) -> dict[str, Look]:
    """Return the look of each segmenter, in order of appearance; controls are grey and dashed."""
    looks: dict[str, Look] = {}
    counts = {True: 0, False: 0}
    for section in sections:
        rows = section.measured
        for name, is_control in zip(rows["segmenter"], rows["is_control"], strict=True):
            if name not in looks:
                colours = _GREYS if is_control else COLOURS
                number = counts[is_control]
                looks[name] = {
                    "color": colours[number % len(colours)],
                    "marker": _MARKERS[number % len(_MARKERS)],
                    "markeredgecolor": "white",
                    "linestyle": "--" if is_control else "-",
                }
                counts[is_control] += 1
    return looks


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
