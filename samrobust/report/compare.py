"""Two runs side by side: what differs, and which objects gained and lost most."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from samrobust.errors import RunError
from samrobust.report.precision import LIMITS, Gate, identity_of
from samrobust.report.summary import Section, corrected, summarise
from samrobust.report.tables import Table, factor, head, p_text, records
from samrobust.runs.store import Run

STATISTICS = ("miou", "mbiou", "msf")


@dataclass(frozen=True)
class Comparison:
    """Two runs, paired on identical prompts.

    Attributes:
        section: the summary of both.
        differences: as `Section.differences`, of the second less the first, `p_holm` corrected over
            the conditions of each statistic; columns also `before` and `after`.
        objects: one an object and condition, in order of what it gained: `sample_id`,
            `instance_id`, `category`, `condition`, `before`, `after`, `gain`: means over trials of
            IoU.
    """

    section: Section
    differences: pd.DataFrame
    objects: pd.DataFrame


def compare(before: Run, after: Run) -> Comparison:
    """Return the second run against the first.

    Raises:
        RunError: they are not of one protocol and data set, or their prompts differ.
    """
    sections = summarise([before, after])
    if len(sections) != 1 or sections[0].arrays is None:
        one, other = (_what(run) for run in (before, after))
        raise RunError(f"{before.folder} and {after.folder}: cannot be paired: {one} and {other}")
    section = sections[0]
    first, second = section.segmenters
    values = {(row["segmenter"], row["condition"]): row for row in records(section.measured)}
    table = section.differences.copy()
    table[["difference", "low", "high"]] = -table[["difference", "high", "low"]].to_numpy()
    cells = list(zip(table["condition"], table["statistic"], strict=True))
    table["before"] = [values[first, condition][statistic] for condition, statistic in cells]
    table["after"] = [values[second, condition][statistic] for condition, statistic in cells]
    table = corrected(table, ["statistic"]).assign(segmenter=second, other=first)
    return Comparison(section, table, _objects(section))


def gate(reference: Run, reduced: Run, *, command: str) -> Gate:
    """Return how far the means of a run in a reduced precision are from those in float32.

    Args:
        reference: in float32.
        reduced: of the same segmenter.
        command: what was typed.

    Raises:
        RunError: they cannot be paired, or have no metric that a gate is about.
    """
    found = compare(reference, reduced)
    table = found.differences[found.differences["statistic"].isin(LIMITS)]
    if table.empty:
        raise RunError(f"{reduced.folder}: has none of the statistics {', '.join(LIMITS)}")
    order = table["difference"].abs().sort_values(kind="stable").index
    rows = {row["statistic"]: row for row in records(table.loc[order])}  # the largest last
    largest = [rows[statistic] for statistic in LIMITS if statistic in rows]
    return Gate(
        identity=identity_of(reduced.manifest),
        protocol=found.section.protocol,
        dataset=reduced.manifest.dataset.label,
        n_images=int(found.section.measured["n_images"].iloc[0]),
        n_objects=int(found.section.measured["n_objects"].iloc[0]),
        differences={row["statistic"]: row["difference"] for row in largest},
        conditions={row["statistic"]: row["condition"] for row in largest},
        created=reduced.manifest.created,
        command=command,
    )


def comparison_tables(found: Comparison, *, count: int) -> list[Table]:
    """Return the differences, and the `count` objects that gained and that lost most.

    An object stands in each of them once, with the condition in which it gained or lost most.
    """
    tables = [_difference_table(found)]
    one_each = ["sample_id", "instance_id"]
    up = found.objects[found.objects["gain"] > 0]
    down = found.objects[found.objects["gain"] < 0].iloc[::-1]
    gained, lost = (rows.drop_duplicates(one_each).head(count) for rows in (up, down))
    for title, rows in (("gained most", gained), ("lost most", lost)):
        if len(rows):
            tables.append(_object_table(f"objects that {title}", rows))
    return tables


def _difference_table(found: Comparison) -> Table:
    rows: list[tuple[str, ...]] = []
    chosen = found.differences[found.differences["statistic"].isin(STATISTICS)]
    chosen = chosen.sort_values("statistic", key=lambda names: names.map(STATISTICS.index))
    for condition in (row["name"] for row in found.section.conditions):
        for row in records(chosen[chosen["condition"] == condition]):
            unit = factor(row["statistic"])
            interval = f" [{unit * row['low']:+.1f}, {unit * row['high']:+.1f}]"
            rows.append(
                (
                    condition,
                    head(row["statistic"]),
                    f"{unit * row['before']:.1f}",
                    f"{unit * row['after']:.1f}",
                    f"{unit * row['difference']:+.1f}{'' if np.isnan(row['low']) else interval}",
                    p_text(row["p_holm"]),
                    "tie" if row["is_tie"] else "B" if row["difference"] > 0 else "A",
                )
            )
    first, second = found.section.segmenters
    about = (
        "In percent, on identical prompts; in brackets the 95 % interval, bootstrap over images; p "
        "of a sign-flip test over images, Holm-corrected over the conditions of a statistic."
    )
    header = ("condition", "", "A", "B", "B - A", "p", "higher")
    names = f"A: {first}. B: {second}."
    return Table(found.section.title, header, tuple(rows), (names, about))


def _object_table(title: str, objects: pd.DataFrame) -> Table:
    names = ("sample_id", "instance_id", "category", "condition")
    rows = tuple(
        (
            *(str(row[name]) for name in names),
            f"{100 * row['before']:.1f}",
            f"{100 * row['after']:.1f}",
            f"{100 * row['gain']:+.1f}",
        )
        for row in records(objects)
    )
    header = ("image", "object", "category", "condition", "A", "B", "B - A")
    return Table(title, header, rows, (), n_names=4)


def _objects(section: Section) -> pd.DataFrame:
    """Return what each object gained, most first."""
    columns = ["sample_id", "instance_id", "category"]
    arrays = section.arrays
    if arrays is None or "iou" not in arrays.scores:
        return pd.DataFrame(columns=[*columns, "condition", "before", "after", "gain"])
    iou = arrays.scores["iou"].astype(np.float64)
    means = np.nansum(iou, axis=3) / np.maximum((~np.isnan(iou)).sum(axis=3), 1)
    parts = [
        arrays.objects[columns].assign(condition=name, before=means[0, c], after=means[1, c])
        for c, name in enumerate(arrays.conditions)
    ]
    table = pd.concat(parts, ignore_index=True)
    table["gain"] = table["after"] - table["before"]
    return table.sort_values("gain", ascending=False, kind="stable", ignore_index=True)


def _what(run: Run) -> str:
    manifest = run.manifest
    return f"{manifest.protocol['name']} on {manifest.dataset.label}"
