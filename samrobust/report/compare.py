"""Two runs side by side: what differs, and which objects gained and lost most."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from samrobust.errors import RunError
from samrobust.report.columns import NO_VALUE, SPREADS, statistic_of
from samrobust.report.layout import Table, p_text, points, records
from samrobust.report.precision import LIMITS, Verdict, identity_of
from samrobust.report.summary import Section, corrected, summarise
from samrobust.runs.store import Run


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


def compare(before: Run, after: Run, *, strict: bool = False) -> Comparison:
    """Return the second run against the first, on the images that both have.

    Args:
        before: the first.
        after: the second.
        strict: whether an image that only one of them has is an error.

    Raises:
        RunError: they are not of one protocol and data set, or their prompts differ.
    """
    sections = summarise([before, after], strict=strict)
    if len(sections) != 1:
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


def verdict_of(
    comparison: Comparison, after: Run, *, limits: Mapping[str, float] = LIMITS, command: str = ""
) -> Verdict:
    """Return whether the second of two runs is within a tolerance of the first.

    Args:
        comparison: of both.
        after: the second run.
        limits: statistic -> the largest difference that passes, a fraction.
        command: what was typed.

    Raises:
        RunError: the runs have none of the statistics.
    """
    table = comparison.differences[comparison.differences["statistic"].isin(list(limits))]
    if table.empty:
        raise RunError(f"{after.folder}: has none of the statistics {', '.join(limits)}")
    order = table["difference"].abs().sort_values(kind="stable").index
    rows = {row["statistic"]: row for row in records(table.loc[order])}  # the largest last
    largest = [rows[statistic] for statistic in limits if statistic in rows]
    measured = comparison.section.measured.iloc[0]
    return Verdict(
        identity=identity_of(after.manifest),
        protocol=comparison.section.protocol,
        dataset=after.manifest.dataset.label,
        n_images=int(measured["n_images"]),
        n_objects=int(measured["n_objects"]),
        differences={row["statistic"]: row["difference"] for row in largest},
        conditions={row["statistic"]: row["condition"] for row in largest},
        created=after.manifest.created,
        command=command,
        limits=limits,
    )


def verdict_table(verdict: Verdict) -> Table:
    """Return the largest differences beside their limits."""
    rows = tuple(
        (
            statistic_of(name).label,
            points(verdict.differences[name]) if name in verdict.differences else NO_VALUE,
            f"{100 * limit:.2f}",
            verdict.conditions.get(name, NO_VALUE),
        )
        for name, limit in verdict.limits.items()
    )
    title = f"{'within' if verdict.passed else 'NOT WITHIN'} the tolerance"
    about = f"Largest difference over the conditions, in points; {verdict.n_images} images."
    return Table(title, ("", "B - A", "limit", "condition"), rows, (about,), n_names=1)


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
    metrics = [name for name in found.section.statistics if name not in SPREADS]
    chosen = found.differences[found.differences["statistic"].isin(metrics)]
    chosen = chosen.sort_values("statistic", key=lambda names: names.map(metrics.index))
    for condition in (row["name"] for row in found.section.conditions):
        for row in records(chosen[chosen["condition"] == condition]):
            shown_as = statistic_of(row["statistic"])
            low, high = (shown_as.text(row[end], sign="+") for end in ("low", "high"))
            interval = "" if np.isnan(row["low"]) else f" [{low}, {high}]"
            rows.append(
                (
                    condition,
                    shown_as.label,
                    shown_as.text(row["before"]),
                    shown_as.text(row["after"]),
                    f"{shown_as.text(row['difference'], sign='+')}{interval}",
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
    return Table(found.section.title, header, tuple(rows), (names, about), dispensable=(2, 3, 5))


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
    return Table(title, header, rows, (), n_names=4, dispensable=(4, 5, 2))


def _objects(section: Section) -> pd.DataFrame:
    """Return what each object gained, most first."""
    columns = ["sample_id", "instance_id", "category"]
    before, after = (scores.statistics.get("miou") for scores in section.scores)
    if before is None or after is None:
        return pd.DataFrame(columns=[*columns, "condition", "before", "after", "gain"])
    parts = [
        section.objects[columns].assign(condition=row["name"], before=before[c], after=after[c])
        for c, row in enumerate(section.conditions)
    ]
    table = pd.concat(parts, ignore_index=True)
    table["gain"] = table["after"] - table["before"]
    return table.sort_values("gain", ascending=False, kind="stable", ignore_index=True)


def _what(run: Run) -> str:
    manifest = run.manifest
    return f"{manifest.protocol['name']} on {manifest.dataset.label}"
