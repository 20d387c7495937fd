"""Summaries as tables of text, for a terminal, a page and Markdown."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from samrobust.registry import known
from samrobust.report.average_precision import detector_tables
from samrobust.report.calibration import quality_tables
from samrobust.report.clicks import group_tables
from samrobust.report.columns import DETAILS, NO_VALUE, OF_CLICKS, Statistic, statistic_of
from samrobust.report.corruptions import corruption_tables, tables_by_corruption
from samrobust.report.layout import (
    Row,
    Spread,
    Table,
    half_width,
    interval_text,
    p_text,
    points,
    records,
    with_spread,
)
from samrobust.report.precision import Precision
from samrobust.report.raters import rater_tables
from samrobust.report.scores import conversations
from samrobust.report.searches import search_tables
from samrobust.report.statistics import KINDS
from samrobust.report.summary import MEASURED, Section

CLASS_STATISTIC = "miou"
FEW_IMAGES = 30
"""Below this number of images a footnote says that intervals are rough (docs/sources/peers.md
5.6)."""
IN_DOMAIN = "‡"
"""Marks a segmenter that was trained on images of the data set's own collection."""


def terminal_tables(sections: Sequence[Section], *, details: bool = False) -> list[Table]:
    """Return the tables of all sections, with half widths of intervals: "57.3 ±2.1".

    They are for 80 columns, as long as names are short; `print_tables` makes them fit into fewer.

    Args:
        sections: the summaries.
        details: also what is known over trials, by classes of objects and of pairs of segmenters.
    """
    return [
        table
        for section in sections
        for table in _all_tables(section, half_width, "± half of", details=details)
    ]


def page_tables(section: Section) -> list[Table]:
    """Return the main table and its details, with intervals in brackets."""
    return list(_all_tables(section, interval_text, "in brackets", details=True))


def _all_tables(section: Section, spread: Spread, where: str, *, details: bool) -> Iterator[Table]:
    yield _table(section, spread, where=where)
    for subject in (*SUBJECTS, *(DETAILED if details else ())):
        yield from subject(section, spread, where=where)


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
            *(with_spread(row, name, spread, shown_as) for name, (_, shown_as) in columns.items()),
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


def _table(
    section: Section,
    spread: Spread,
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
        cells = [with_spread(row, name, spread) for name in names]
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


def _details(section: Section, spread: Spread, *, where: str) -> Iterator[Table]:
    over_trials = shown_over_trials(section)
    if over_trials:
        yield _table(section, spread, where=where, statistics=over_trials)
    for kind in section.breakdown["kind"].unique():
        yield _class_table(section, str(kind), spread, where=where)
    if len(section.differences):
        yield difference_table(section, CLASS_STATISTIC)


_CLICK_COLUMNS = tuple(name for name in OF_CLICKS if name not in ("nof_80", "nof_85"))


def _click_tables(section: Section, spread: Spread, *, where: str) -> Iterator[Table]:
    """Yield what conversations need in clicks, where there are some."""
    filled = section.table.notna().any()
    names = [name for name in _CLICK_COLUMNS if filled.get(name)]
    if names and not section.columns:
        table = _table(section, spread, where=where, statistics=names, about="number of clicks")
        yield replace(table, footnotes=(*table.footnotes, *_feedback_note(section)))


def _feedback_note(section: Section) -> Iterator[str]:
    """Yield which segmenters were given their last answer, where a conversation does that."""
    talks = conversations(section.conditions)
    if any(talk.interaction["feedback"] for talk in talks):
        pairs = zip(section.segmenters, section.runs, strict=False)
        fed = [label for label, run in pairs if "mask" in run.segmenter.prompts]
        yield f"With each click given the logits of their last answer: {', '.join(fed) or 'none'}."


def _class_table(section: Section, kind: str, spread: Spread, *, where: str) -> Table:
    frame = section.breakdown[section.breakdown["kind"] == kind]
    counts = dict(zip(frame["class"], frame["n_objects"], strict=True))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in records(frame):
        text = with_spread(row, CLASS_STATISTIC, spread)
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


SUBJECTS = (
    _click_tables,
    group_tables,
    detector_tables,
    rater_tables,
    search_tables,
    corruption_tables,
)
"""What tables are there besides the main one, each for a section that has something of it."""
DETAILED = (tables_by_corruption, _details, quality_tables)
"""Those that are shown where details are asked for."""
