"""Summaries as tables of text, for a terminal, a page and Markdown."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from samrobust.registry import known
from samrobust.report.calibration import CALIBRATION, RANKING
from samrobust.report.columns import (
    DETAILS,
    NO_VALUE,
    OF_CLICKS,
    PRECISIONS,
    Statistic,
    statistic_of,
)
from samrobust.report.corruptions import ALL
from samrobust.report.precision import Precision
from samrobust.report.scores import conversations
from samrobust.report.statistics import KINDS
from samrobust.report.summary import MEASURED, Section

Row = dict[str, Any]


def p_text(p: float) -> str:
    """Return a p value with as many digits as there is reason for."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def value_text(row: Row, statistic: str) -> str:
    """Return a statistic of a row as it is shown, a dash where there is none."""
    return statistic_of(statistic).text(row[statistic])


def interval_text(row: Row, statistic: str, shown_as: Statistic | None = None) -> str:
    """Return the interval of a statistic in brackets, nothing where there is none.

    Args:
        row: with the ends in `..._low` and `..._high`.
        statistic: name of the column.
        shown_as: how it is shown, None for as it is called.
    """
    low, high = row[f"{statistic}_low"], row[f"{statistic}_high"]
    if math.isnan(low):
        return ""
    shown_as = shown_as or statistic_of(statistic)
    return f"[{shown_as.text(low)}, {shown_as.text(high)}]"


def half_width(row: Row, statistic: str, shown_as: Statistic | None = None) -> str:
    """Return half of the interval of a statistic after a sign, nothing where there is none."""
    half = (row[f"{statistic}_high"] - row[f"{statistic}_low"]) / 2
    if math.isnan(half):
        return ""
    shown_as = shown_as or statistic_of(statistic)
    return f"±{shown_as.text(half)}" if shown_as.unit else f"±{half:.2g}"


def points(difference: float) -> str:
    """Return a difference of fractions in points, with a sign."""
    return f"{100 * difference:+.2f}"


CLASS_STATISTIC = "miou"
FEW_IMAGES = 30
"""Below this number of images a footnote says that intervals are rough (docs/sources/peers.md
5.6)."""
IN_DOMAIN = "‡"
"""Marks a segmenter that was trained on images of the data set's own collection."""


@dataclass(frozen=True)
class Table:
    """A table of one section, ready to be printed.

    Attributes:
        title: protocol, data set and marks.
        header: one text a column: segmenter, condition, then the statistics that there are.
        rows: as many texts each; metrics in percent, those of plug-ins in their own unit.
        footnotes: what the numbers are, and the sources of published rows.
        bold: (row, column) of the best values, where they are not ties.
        n_names: columns that are names, before those of numbers.
        segmenters: those that each row is about.
        dispensable: columns that may go where there is no room, the first ones first; () for all
            numbers but the first, the last ones first.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    footnotes: tuple[str, ...]
    bold: frozenset[tuple[int, int]] = frozenset()
    n_names: int = 2
    segmenters: tuple[tuple[str, ...], ...] = ()
    dispensable: tuple[int, ...] = ()


def terminal_tables(sections: Sequence[Section], *, details: bool = False) -> list[Table]:
    """Return the tables of all sections, with half widths of intervals: "57.3 ±2.1".

    They are for 80 columns, as long as names are short; `print_tables` makes them fit into fewer.

    Args:
        sections: the summaries.
        details: also what is known over trials, by classes of objects and of pairs of segmenters.
    """
    spread, where = half_width, "± half of"
    tables = []
    for section in sections:
        tables.append(_table(section, spread, where=where))
        tables += _click_tables(section, spread, where=where)
        tables += _detector_tables(section, spread, where=where)
        tables += _rater_tables(section)
        tables += _search_tables(section, spread, where=where)
        tables += _corruption_tables(section, spread, where=where)
        if details:
            tables += _by_corruption(section, spread, where=where)
            tables += _details(section, spread, where=where)
    return tables


_RELATIVE = Statistic("relative", "drop in %", "%", higher_is_better=False)


def glance_table(section: Section, *, brackets: bool = False) -> Table | None:
    """Return the table of `Section.glance`, one row a segmenter; None where that is empty.

    Args:
        section: the summary.
        brackets: whether intervals stand in brackets, else half widths after a sign.
    """
    rows = records(section.glance)
    if not rows:
        return None
    unit, count = statistic_of(rows[0]["statistic"]), rows[0]["n_conditions"]
    columns = {"exact": (f"exact {unit.label}", unit), "mean": (f"mean of {count}", unit)}
    columns |= {"drop": ("drop", unit), "relative": (_RELATIVE.label, _RELATIVE)}
    has_exact = not math.isnan(rows[0]["exact"])
    if not has_exact:
        columns = {"mean": columns["mean"]}
    spread = interval_text if brackets else half_width
    decodes = section.decodes
    costs = {name: (str(n),) if max(decodes.values()) > 1 else () for name, n in decodes.items()}
    texts = [
        (
            row["segmenter"],
            *costs[row["segmenter"]],
            *(
                f"{shown_as.text(row[name])} {spread(row, name, shown_as)}".rstrip()
                for name, (_, shown_as) in columns.items()
            ),
        )
        for row in rows
    ]
    heads = [head for head, _ in columns.values()]
    over = "the one condition" if count == 1 else f"the {count} conditions"
    about = f"Mean {unit.label} over {over}{' with degraded prompts' if has_exact else ''}"
    if has_exact:
        about += ", and the drop to it from the exact prompt, in points and in % of the exact one"
    about += f"; {'in brackets' if brackets else '± half of'} the 95 % interval over images."
    if any(costs.values()):
        about += " Decodes: how often a prompt passes the decoder."
    return Table(
        f"{section.title}; at a glance",
        ("segmenter", *(["decodes"] if any(costs.values()) else []), *heads),
        tuple(texts),
        (about,),
        n_names=1,
        segmenters=tuple((row["segmenter"],) for row in rows),
    )


def page_tables(section: Section) -> list[Table]:
    """Return the main table and its details, with intervals in brackets."""
    where = "in brackets"
    return [
        _table(section, interval_text, where=where),
        *_click_tables(section, interval_text, where=where),
        *_detector_tables(section, interval_text, where=where),
        *_rater_tables(section),
        *_search_tables(section, spread=interval_text, where=where),
        *_corruption_tables(section, interval_text, where=where),
        *_by_corruption(section, interval_text, where=where),
        *_details(section, interval_text, where=where),
    ]


def _table(
    section: Section,
    spread: Callable[[Row, str], str],
    *,
    where: str,
    statistics: Sequence[str] = (),
    about: str = "over trials",
) -> Table:
    names, best = list(statistics) or shown(section), section.best
    rows: list[tuple[str, ...]] = []
    bold: set[tuple[int, int]] = set()
    segmenters: list[tuple[str, ...]] = []
    for row in rows_of(section):
        cells = [f"{value_text(row, name)} {spread(row, name)}".rstrip() for name in names]
        if statistics and set(cells) == {NO_VALUE}:
            continue  # a condition of one trial, or published, has nothing over trials
        bold |= {
            (len(rows), 2 + place)
            for place, name in enumerate(names)
            if row["source"] == MEASURED and (name, row["segmenter"], row["condition"]) in best
        }
        segmenters.append((row["segmenter"],))
        rows.append((f"{row['segmenter']}{mark_of(section, row)}", row["condition"], *cells))
    header = ("segmenter", "condition", *(statistic_of(name).label for name in names))
    first, *others = footnotes(section, where)
    notes = (" ".join([first, *trial_terms(names)]), *([] if statistics else others))
    title = f"{section.title}; {about}" if statistics else section.title
    notes = (*notes, *bold_note(bold))
    of = tuple(segmenters)
    return Table(title, header, tuple(rows), notes, frozenset(bold), segmenters=of)


def _details(section: Section, spread: Callable[[Row, str], str], *, where: str) -> Iterator[Table]:
    over_trials = shown_over_trials(section)
    if over_trials:
        yield _table(section, spread, where=where, statistics=over_trials)
    for kind in section.breakdown["kind"].unique():
        yield _class_table(section, str(kind), spread, where=where)
    if len(section.differences):
        yield difference_table(section, CLASS_STATISTIC)
    for about in ("calibration", "ranking"):
        if len(section.calibration):
            yield _quality_table(section, about, spread, where=where)


_QUALITY = {
    "calibration": CALIBRATION,
    "ranking": RANKING,
}
_QUALITY_TERMS = {
    "bias": "bias: mean of estimate - IoU",
    "growth": "growth: bias less that of the exact prompt",
    "mae": "MAE: mean size of the difference",
    "iou_ece": "IoU-ECE: mean over 15 bins of equal mass of the size of the mean difference",
    "recalibrated": "recalibrated: IoU-ECE after isotonic regression on other images",
    "d_ece_50": "D-ECE: as IoU-ECE, with the share of masks of IoU >= .5 or .75 for the mean IoU",
    "spearman": "Spearman: rank correlation of estimate and IoU",
    "auroc": "AUROC: of the estimate, for IoU >= .5",
    "aurc": "AURC: mean of 1 - mIoU over all shares of the prompts, highest estimate first",
    "e_aurc": "E-AURC: AURC less the lowest that there could be",
    "iou_at_80": "IoU at 80 %: without the fifth of lowest estimate",
    "gap": "gap: IoU of the best candidate less that of the one of highest estimate",
    "best_chosen": "best chosen: prompts in which these are one",
}


def _quality_table(
    section: Section, about: str, spread: Callable[..., str], *, where: str
) -> Table:
    """Return what the segmenters' own estimates of IoU are worth: one of the two halves."""
    frame = section.calibration
    frame = frame[frame["condition"].isin(section.shown_conditions)]
    shown_here = [each for each in _QUALITY[about] if frame[each.column].notna().any()]
    rows = [
        (
            row["segmenter"],
            row["condition"],
            *(
                f"{each.text(row[each.column])} {spread(row, each.column, each)}".rstrip()
                for each in shown_here
            ),
        )
        for row in records(frame)
    ]
    columns = [each.column for each in shown_here]
    sentence = "; ".join(_QUALITY_TERMS[name] for name in columns if name in _QUALITY_TERMS)
    note = (
        f"The segmenter's own estimate of each mask's IoU, in percent; {where} the 95 % interval, "
        f"bootstrap over images. {sentence[0].upper()}{sentence[1:]}."
    )
    header = ("segmenter", "condition", *(each.label for each in shown_here))
    of = tuple((row[0],) for row in rows)
    title = f"{section.title}; {about} of the estimated IoU"
    return Table(title, header, tuple(rows), (note,), segmenters=of)


_CLICK_COLUMNS = tuple(name for name in OF_CLICKS if name not in ("nof_80", "nof_85"))
_GROUPS = {
    "noc_90": OF_CLICKS["noc_90"],
    "dgr": Statistic("dgr", "dGR", "%", higher_is_better=False),
    "nsr": Statistic("nsr", "NSR", "%", higher_is_better=False),
}


def _click_tables(section: Section, spread: Callable[..., str], *, where: str) -> Iterator[Table]:
    """Yield what conversations need in clicks, where there are some."""
    filled = section.table.notna().any()
    names = [name for name in _CLICK_COLUMNS if filled.get(name)]
    if names and not section.columns:
        table = _table(section, spread, where=where, statistics=names, about="number of clicks")
        yield replace(table, footnotes=(*table.footnotes, *_feedback_note(section)))
    rows = records(section.click_groups)
    if rows:
        texts = [
            (
                row["segmenter"],
                *(
                    f"{each.text(row[name])} {spread(row, name, each)}".rstrip()
                    for name, each in _GROUPS.items()
                ),
            )
            for row in rows
        ]
        about = (
            f"NoC@90: mean over ten groups of clicks, from unlikely to likely; dGR: group 1 less "
            f"group 10, in percent of group 10; NSR: standard deviation over the groups, mean over "
            f"objects, in percent of the NoC; {where} the 95 % interval over images."
        )
        header = ("segmenter", *(each.label for each in _GROUPS.values()))
        title = f"{section.title}; groups of clicks"
        of = tuple((row["segmenter"],) for row in rows)
        yield Table(title, header, tuple(texts), (about,), n_names=1, segmenters=of)


def _feedback_note(section: Section) -> Iterator[str]:
    """Yield which segmenters were given their last answer, where a conversation does that."""
    talks = conversations(section.conditions)
    if any(talk.interaction["feedback"] for talk in talks):
        pairs = zip(section.segmenters, section.runs, strict=False)
        fed = [label for label, run in pairs if "mask" in run.segmenter.prompts]
        yield f"With each click given the logits of their last answer: {', '.join(fed) or 'none'}."


_SPLIT = {
    "between": Statistic("between", "std between", "%", higher_is_better=False),
    "within": Statistic("within", "std within", "%", higher_is_better=False),
    "icc": Statistic("icc", "ICC", "", higher_is_better=False),
}
_AMBIGUITY = {
    "agreement": Statistic("agreement", "of different raters", "%", higher_is_better=True),
    "local": Statistic("local", "of boxes at p25", "%", higher_is_better=True),
}


def _rater_tables(section: Section) -> Iterator[Table]:
    """Yield what differs between raters and how ambiguous prompts are, if several gave them."""
    rows = records(section.raters)
    if not rows:
        return
    of = tuple((row["segmenter"],) for row in rows)
    split = (
        "Standard deviation of IoU between the means of raters on the same objects, and within a "
        "rater, in percent; ICC: the share of that variance that is between raters; in brackets "
        "the 95 % interval of an analysis of variance."
    )
    ambiguity = (
        "Mean IoU of pairs of masks of an object, in percent: of different raters (low where the "
        "prompt is ambiguous), and of boxes at the 25th human percentile (low where the segmenter "
        "is sensitive); in brackets the 95 % interval over images."
    )
    for title, statistics, about in (
        ("raters", _SPLIT, split),
        ("agreement of masks", _AMBIGUITY, ambiguity),
    ):
        texts = [
            (
                row["segmenter"],
                f"{row['condition']}, {row['n_raters']} raters",
                *(_with_ends(row, name, shown_as) for name, shown_as in statistics.items()),
            )
            for row in rows
        ]
        header = ("segmenter", "prompts", *(each.label for each in statistics.values()))
        yield Table(f"{section.title}; {title}", header, tuple(texts), (about,), segmenters=of)


_SEARCHED = (
    Statistic("worst", "worst", "%", higher_is_better=True),
    Statistic("exact", "exact", "%", higher_is_better=True),
    Statistic("best", "best", "%", higher_is_better=True),
    Statistic("broken", "broken", "%", higher_is_better=False),
    Statistic("breaks_at", "breaks at", "%", higher_is_better=True),
)


def _search_tables(section: Section, spread: Callable[..., str], *, where: str) -> Iterator[Table]:
    """Yield what searches for the worst prompts found, where there are any."""
    found = records(section.searches)
    if not found:
        return
    rows = tuple(
        (
            row["segmenter"],
            row["condition"],
            *(
                f"{each.text(row[each.column])} {spread(row, each.column, each)}".rstrip()
                for each in _SEARCHED
            ),
        )
        for row in found
    )
    first = found[0]
    about = (
        f"mIoU in percent of the worst, the exact and the best of {first['n_asked']} prompts that "
        f"each segmenter was asked for each of {first['n_objects']} objects, all below the human "
        f"percentile {first['percentile']:g}; {where} the 95 % interval, bootstrap over images. "
        "The search goes where this segmenter is weak: only its start is the same for all. Broken: "
        "objects with a prompt of IoU below 0.5. Breaks at: mean over objects of the lowest human "
        f"percentile of such a prompt, {first['percentile']:g} where none was found."
    )
    header = ("segmenter", "search", *(each.label for each in _SEARCHED))
    title = f"{section.title}; worst plausible prompts"
    of = tuple((row[0],) for row in rows)
    yield Table(title, header, rows, (about,), segmenters=of)


def _detector_tables(
    section: Section, spread: Callable[[Row, str], str], *, where: str
) -> Iterator[Table]:
    """Yield what the masks of a detector's boxes are worth, where prompts are such."""
    precisions = records(section.average_precision)
    if precisions:
        first = precisions[0]
        columns = [each for each in PRECISIONS if each.column in first]
        rows = tuple(
            (row["segmenter"], *(each.text(row[each.column]) for each in columns))
            for row in precisions
        )
        rules = "LVIS" if "ap_rare" in first else "COCO"
        about = (
            f"{rules}'s average precision of masks, in percent, by the detector's scores, over "
            f"{first['n_detections']} detections in {first['n_images']} images: those with an "
            "annotation. Boundary AP: with the lower of IoU and boundary IoU."
        )
        if rules == "LVIS":
            about += " AP r, c, f: of rare, common and frequent categories."
        header = ("segmenter", *(each.label for each in columns))
        title = f"{section.title}; average precision"
        of = tuple((row[0],) for row in rows)
        yield Table(title, header, rows, (about,), n_names=1, segmenters=of)
    errors = section.detector_error
    if len(errors):
        counts = dict(zip(errors["boxes"], errors["n_boxes"], strict=True))
        cells: dict[str, dict[str, str]] = {}
        for row in records(errors):
            text = f"{value_text(row, CLASS_STATISTIC)} {spread(row, CLASS_STATISTIC)}".rstrip()
            cells.setdefault(row["segmenter"], {})[row["boxes"]] = text
        rows = tuple(
            (label, *(of_label.get(name, NO_VALUE) for name in counts))
            for label, of_label in cells.items()
        )
        boxes = ", ".join(f"{name} ({count})" for name, count in counts.items())
        about = (
            f"mIoU in percent of the boxes that match an object (IoU >= 0.5 with its tight box, "
            f"same category); {where} the 95 % interval. By the human percentile of the box's "
            f"error (boxes): {boxes}."
        )
        title = f"{section.title}; by error of the box"
        of = tuple((row[0],) for row in rows)
        yield Table(title, ("segmenter", *counts), rows, (about,), n_names=1, segmenters=of)


def _with_ends(row: Row, name: str, shown_as: Statistic) -> str:
    if shown_as.unit:
        return f"{shown_as.text(row[name])} {interval_text(row, name, shown_as)}".rstrip()
    return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"


def _class_table(
    section: Section, kind: str, spread: Callable[[Row, str], str], *, where: str
) -> Table:
    frame = section.breakdown[section.breakdown["kind"] == kind]
    counts = dict(zip(frame["class"], frame["n_objects"], strict=True))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in records(frame):
        text = f"{value_text(row, CLASS_STATISTIC)} {spread(row, CLASS_STATISTIC)}".rstrip()
        cells.setdefault((row["segmenter"], row["condition"]), {})[row["class"]] = text
    order = [(row["segmenter"], row["condition"]) for row in rows_of(section)]
    rows = [(*key, *(cells[key][name] for name in counts)) for key in order if key in cells]
    if kind in KINDS:
        words = KINDS[kind].words
        bounds = [
            f"{name} {f'below {below:g}' if math.isfinite(below) else 'the rest'} ({counts[name]})"
            for name, below in KINDS[kind].below.items()
            if name in counts
        ]
    else:
        words = "the data set's groups of categories"
        bounds = [f"{name} ({count})" for name, count in counts.items()]
    about = f"mIoU in percent; {where} the 95 % interval. By {words} (objects): "
    about += f"{', '.join(bounds)}."
    header = ("segmenter", "condition", *counts)
    title = f"{section.title}; by {kind} of the object"
    of = tuple((row[0],) for row in rows)
    return Table(title, header, tuple(rows), (about,), segmenters=of)


_LEFT = Statistic("relative", "left in %", "%", higher_is_better=True)


def _corruption_tables(
    section: Section, spread: Callable[..., str], *, where: str
) -> Iterator[Table]:
    """Yield the means over corruptions by severity, then their interaction with prompts."""
    frame = section.corruptions[section.corruptions["corruption"] == ALL]
    if frame.empty:
        return
    unit = statistic_of(str(frame["statistic"].iloc[0]))
    count = section.corruptions["corruption"].nunique() - 1
    over = "the one corruption" if count == 1 else f"the {count} corruptions"
    by_prompt = frame.assign(row=frame["severity"].map(_severity), column=frame["condition"])
    interval = f"{where} the 95 % interval over images"
    yield _crossed_table(
        by_prompt,
        "value",
        lambda row: f"{unit.text(row['value'])} {spread(row, 'value', unit)}".rstrip(),
        head=(f"{section.title}; on corrupted images", "severity"),
        about=f"Mean {unit.label} over {over}, by prompt; {interval}.",
    )
    by_severity = frame[frame["interaction"].notna()]
    if len(by_severity):
        names = by_severity["severity"].map(_severity)
        yield _crossed_table(
            by_severity.assign(row=by_severity["condition"], column=names),
            "interaction",
            lambda row: f"{points(row['interaction'])} {spread(row, 'interaction', unit)}".rstrip(),
            head=(f"{section.title}; interaction of corruption and prompt", "condition"),
            about=f"m(c, p) - m(c, 0) - m(0, p) + m(0, 0) in points of {unit.label}, c a "
            "corruption, p a prompt, 0 none and the exact box; below 0 both together cost more "
            f"than the sum of what each costs alone. Mean over {over}, by severity; {interval}.",
        )


def _by_corruption(section: Section, spread: Callable[..., str], *, where: str) -> Iterator[Table]:
    """Yield what is left under each corruption, as the mean over its severities."""
    frame = section.corruptions[section.corruptions["severity"].isna()]
    if frame.empty:
        return
    unit = statistic_of(str(frame["statistic"].iloc[0]))
    yield _crossed_table(
        frame.assign(row=frame["corruption"], column=frame["condition"]),
        "relative",
        lambda row: f"{_LEFT.text(row['relative'])} {spread(row, 'relative', _LEFT)}".rstrip(),
        head=(f"{section.title}; by corruption", "corruption"),
        about=f"{unit.label} in % of that on the images as they are stored, for the same prompts; "
        f"mean over severities; {where} the 95 % interval over images.",
    )


def _crossed_table(
    frame: pd.DataFrame,
    value: str,
    text: Callable[[Row], str],
    *,
    head: tuple[str, str],
    about: str,
) -> Table:
    """Return a table of one row per segmenter and `row`, and one column per `column`."""
    columns = list(frame["column"].unique())
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in records(frame.dropna(subset=value)):
        cells.setdefault((row["segmenter"], row["row"]), {})[row["column"]] = text(row)
    rows = [
        (*key, *(found.get(name, NO_VALUE) for name in columns)) for key, found in cells.items()
    ]
    title, second = head
    of = tuple((row[0],) for row in rows)
    return Table(title, ("segmenter", second, *columns), tuple(rows), (about,), segmenters=of)


def _severity(level: float) -> str:
    """Return a severity as a text; "mean" for that over all."""
    return "mean" if math.isnan(level) else f"{level:g}"


def difference_table(section: Section, statistic: str) -> Table:
    """Return the paired differences of a statistic, one row a condition and pair."""
    chosen = section.differences[section.differences["statistic"] == statistic]
    chosen = chosen[chosen["condition"].isin(section.shown_conditions)]
    unit = statistic_of(statistic).factor
    rows = []
    for row in records(chosen):
        interval = f"[{unit * row['low']:+.1f}, {unit * row['high']:+.1f}]"
        rows.append(
            (
                f"{row['segmenter']} - {row['other']}",
                row["condition"],
                f"{unit * row['difference']:+.1f} {'' if math.isnan(row['low']) else interval}",
                p_text(row["p_holm"]),
                "tie" if row["is_tie"] else row["segmenter" if row["difference"] > 0 else "other"],
            )
        )
    about = (
        "In points, on identical prompts; in brackets the 95 % interval, bootstrap over images; "
        "p of a sign-flip test over images, Holm-corrected over the pairs of a condition."
    )
    header = ("pair", "condition", statistic_of(statistic).label, "p", "higher")
    of = tuple(zip(chosen["segmenter"], chosen["other"], strict=True))
    return Table(f"{section.title}; differences", header, tuple(rows), (about,), segmenters=of)


def rows_of(section: Section) -> list[Row]:
    """Return the rows of a section that tables show, as dictionaries."""
    return records(section.table[section.table["condition"].isin(section.shown_conditions)])


def records(frame: pd.DataFrame) -> list[Row]:
    """Return the rows of a table as dictionaries."""
    return [{str(key): row[key] for key in row} for row in frame.to_dict("records")]


def with_columns(sections: Sequence[Section], names: Sequence[str]) -> list[Section]:
    """Return the sections with tables of some statistics only.

    Args:
        sections: the summaries.
        names: columns or what stands above them ("miou", "mIoU", "low 10 %"), in any case.

    Raises:
        UnknownNameError: a name is that of no statistic of any section.
    """
    columns = dict.fromkeys(name for section in sections for name in section.statistics)
    named = {statistic_of(column).label.casefold(): column for column in columns}
    named |= {column.casefold(): column for column in columns}
    labels = [statistic_of(column).label for column in columns]
    for name in names:
        if name.casefold() not in named:
            known(name, labels, kind="column")
    chosen = tuple(dict.fromkeys(named[name.casefold()] for name in names))
    return [replace(section, columns=chosen) for section in sections]


def shown(section: Section) -> list[str]:
    """Return the statistics of the main table that have any value."""
    filled = section.table.notna().any()
    if section.columns:
        return [name for name in section.columns if filled.get(name)]
    apart = {*DETAILS, *OF_CLICKS}
    return [name for name in section.statistics if filled[name] and name not in apart]


def shown_over_trials(section: Section) -> list[str]:
    """Return the statistics over trials that there are, where any condition has several trials.

    There are none where columns are chosen: the main table has what is wanted of them.
    """
    filled = section.table.notna().any()
    if section.columns or not filled["iou_var"]:
        return []
    return [name for name in DETAILS if filled.get(name)]


def daggers_of(section: Section) -> dict[str, str]:
    """Return the mark of each source of published rows: a dagger, numbered if there are several."""
    sources = [source for source in section.table["source"].unique() if source != MEASURED]
    if len(sources) == 1:
        return {sources[0]: "†"}
    return {source: f"†{number}" for number, source in enumerate(sources, start=1)}


def mark_of(section: Section, row: Row) -> str:
    """Return what stands behind a segmenter's name: where it is published, or was trained."""
    return IN_DOMAIN if row["in_domain"] else daggers_of(section).get(row["source"], "")


def footnotes(section: Section, where: str) -> tuple[str, ...]:
    """Return what the numbers are, and the sources of published rows."""
    measured = section.measured.iloc[0]
    few = measured["n_images"] < FEW_IMAGES
    statistics = [statistic_of(name) for name in shown(section)]
    others = [statistic.label for statistic in statistics if statistic.unit != "%"]
    but = f", but {' and '.join(others)} in its own unit" if others else ""
    about = (
        f"Percent{but}; {where} the 95 % interval, bootstrap over {measured['n_images']} images, "
        f"{measured['n_objects']} objects{'; with so few images it is rough' if few else ''}."
    )
    sources = (
        f"{dagger} As published: {source}." for source, dagger in daggers_of(section).items()
    )
    origins = sorted({name for name in section.table["in_domain"] if name})
    in_domain = (f"{IN_DOMAIN} Trained on images of {' and '.join(origins)} too.",)
    precisions = dict.fromkeys(map(_precision_note, section.precisions))
    human = [
        f"{name} {value:.0f}" for name, value in section.human_percentiles.items() if value > 0
    ]
    how_human = (f"Human percentiles of the median box: {', '.join(human)}.",) if human else ()
    return about, *precisions, *(in_domain if origins else ()), *sources, *how_human


def _precision_note(precision: Precision) -> str:
    """Return how far a segmenter in reduced precision is from float32, as far as is known."""
    about = f"{precision.segmenter}: image encoder in {precision.dtype}"
    verdict = precision.verdict
    if verdict is None:
        return (
            f"{about}; how far that is from float32 was not measured "
            "(samrobust compare --tolerance)."
        )
    values = ", ".join(
        f"{statistic_of(name).label} {points(difference)}"
        for name, difference in verdict.differences.items()
    )
    return (
        f"{about}; {'within' if verdict.passed else 'NOT WITHIN'} the tolerance: largest "
        f"difference from float32 {values} points ({verdict.protocol} on {verdict.dataset}, "
        f"{verdict.n_images} images)."
    )


def trial_terms(names: Iterable[str]) -> tuple[str, ...]:
    """Return what statistics over trials are, in one sentence; nothing where none is named."""
    terms = {
        "iou_low": "low 10 %: mean IoU of the lowest tenth of all trials",
        "iou_failed": "IoU < 0.5: trials with such an IoU",
        "iou_var": "var: variance of IoU in percent squared, between objects and between the "
        "trials of one",
        "iou_var_between": "var: variance of IoU in percent squared, between objects and between "
        "the trials of one",
        "iou_fell": "fell: trials that lose more than 5 points by one more point",
        "threshold_share": "threshold's: share of an object's variance of IoU, over trials and the "
        "logit thresholds -1, 0 and 1, that is between thresholds",
        **{
            name: "NoC@t: clicks until IoU is at least t %, all of them where it never is"
            for name in OF_CLICKS
            if name.startswith("noc")
        },
        **{
            name: "NoF@t: share that never reaches t %"
            for name in OF_CLICKS
            if name.startswith("nof")
        },
        "click_auc": "AuC: mean IoU over the clicks",
        "click_fell": "worse: clicks after which IoU is more than 5 points lower",
    }
    found = list(dict.fromkeys(terms[name] for name in names if name in terms))
    if not found:
        return ()
    sentence = "; ".join(found)
    return (f"{sentence[0].upper()}{sentence[1:]}.",)


def bold_note(bold: Iterable[object]) -> tuple[str, ...]:
    """Return what bold means, nothing where nothing is."""
    if not bold:
        return ()
    return (
        (
            "Bold: better than every other segmenter, no tie (paired sign-flip test over images, "
            "p < 0.05 after Holm's correction)."
        ),
    )
