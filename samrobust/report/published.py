"""Published values: TOML files of them, and whether stored runs meet them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from samrobust.datasets import DATASETS, GROUPS
from samrobust.errors import ProtocolError
from samrobust.files import convert, errors_at, read_toml
from samrobust.metrics import METRICS
from samrobust.protocol import find_file, load_protocol, packaged_folder
from samrobust.registry import known
from samrobust.report.columns import PRECISIONS, column_of
from samrobust.segmenters import SEGMENTERS, published_sha256
from samrobust.types import Frame, Selection

if TYPE_CHECKING:
    from samrobust.runs.store import Run

_OF_FILE = {"name", "version", "summary"}


@dataclass(frozen=True)
class Expected:
    """One published value and all that it was measured with.

    Attributes:
        segmenter: as registered.
        dataset: data set, or a group, whose members are averaged unweighted.
        protocol: packaged, or the path of a file; of a detector's boxes the name of their file,
            without its ending.
        condition: of the protocol.
        metric: of the protocol; of a detector's boxes "ap", "ap_50" and the like.
        value: as published, in [0, 1].
        tolerance: how far from it is still the same, in the same unit.
        source: paper and table.
        variant: of the segmenter.
        output: of an HQ-SAM, "" for others.
        frame: how images reach the model.
        selection: which mask counts.
        split: of the data set.
        boxes: whether the prompts are the boxes of a detector.
    """

    segmenter: str
    dataset: str
    protocol: str
    condition: str
    metric: str
    value: Annotated[float, Meta(ge=0, le=1)]
    tolerance: Annotated[float, Meta(ge=0, le=1)]
    source: str
    variant: str = ""
    output: Literal["", "sum", "hq"] = ""
    frame: Frame = "longest-side"
    selection: Selection = "single"
    split: str = ""
    boxes: bool = False

    def __post_init__(self) -> None:
        known(self.segmenter, SEGMENTERS.names(), kind="segmenter")
        known(self.dataset, [*DATASETS.names(), *GROUPS], kind="dataset")
        if self.boxes:
            known(self.metric, [each.column for each in PRECISIONS], kind="average precision")
            return
        known(self.metric, METRICS.names(), kind="metric")
        conditions = [condition.name for condition in load_protocol(self.protocol).conditions]
        known(self.condition, conditions, kind=f"condition of {self.protocol}")

    @property
    def members(self) -> tuple[str, ...]:
        """Return the names of the data sets that are averaged."""
        return GROUPS.get(self.dataset, (self.dataset,))

    @property
    def protocol_name(self) -> str:
        """Return what the protocol calls itself."""
        return self.protocol if self.boxes else load_protocol(self.protocol).name

    @property
    def label(self) -> str:
        """Return the segmenter with its variant and output, for tables."""
        return " ".join(filter(None, (self.segmenter, self.variant, self.output)))


@dataclass(frozen=True)
class ExpectedFile:
    """Published values of one kind."""

    name: str
    version: int
    summary: str
    rows: tuple[Expected, ...]


def packaged_expected() -> dict[str, Path]:
    """Return name -> file of the expected values that come with the package."""
    return {file.stem: file for file in sorted((packaged_folder() / "published").glob("*.toml"))}


def load_expected(name: str) -> ExpectedFile:
    """Return a packaged file by its name, or a user's own by its path.

    What stands outside of its rows, `[[expected]]`, holds for all that do not say otherwise.

    Raises:
        ProtocolError: the file is missing or wrong; the message names file, row and key.
        UnknownNameError: no packaged file has that name.
    """
    path = find_file(name, packaged_expected(), kind="file of expected values")
    table = read_toml(path, error=ProtocolError)
    with errors_at(path.name, ProtocolError):
        return _build(table)


@dataclass(frozen=True)
class _Rows:
    expected: Annotated[tuple[dict[str, Any], ...], Meta(min_length=1)]


def _build(table: Mapping[str, Any]) -> ExpectedFile:
    rows = convert(table, _Rows, where="the file", ignore_unknown=True).expected
    shared = {key: value for key, value in table.items() if key not in {*_OF_FILE, "expected"}}
    built = []
    for number, row in enumerate(rows, start=1):
        with errors_at(f"row {number} of 'expected'"):
            built.append(convert({**shared, **row}, Expected, where="the row"))
    about = {key: value for key, value in table.items() if key in _OF_FILE}
    return convert({**about, "rows": built}, ExpectedFile, where="the file")


Verdict = Literal["met", "off", "no run"]


@dataclass(frozen=True)
class Verified:
    """One published value with what was measured.

    Attributes:
        expected: the value and what it was measured with.
        measured: the same by stored runs, in [0, 1]; None where a run is missing.
    """

    expected: Expected
    measured: float | None

    @property
    def difference(self) -> float | None:
        """Return measured less published."""
        return None if self.measured is None else self.measured - self.expected.value

    @property
    def verdict(self) -> Verdict:
        """Return whether the value is met within its tolerance."""
        if self.difference is None:
            return "no run"
        return "met" if abs(self.difference) <= self.expected.tolerance else "off"


def verify(rows: Sequence[Expected], runs: "Sequence[Run]") -> list[Verified]:
    """Return each published value with what complete runs of the very same setting measured.

    A run over some of the images, with another number of trials, or with weights that are not the
    published ones does not count. Of several runs that do, the newest is taken.
    """
    whole = sorted((run for run in runs if _is_whole(run)), key=lambda run: run.manifest.created)
    return [Verified(row, _measured(row, whole)) for row in rows]


def _is_whole(run: "Run") -> bool:
    manifest = run.manifest
    changed = manifest.limit is not None or manifest.trials is not None or manifest.dataset.part
    return not changed and not run.failures and run.n_missing == 0


def _measured(row: Expected, runs: "Sequence[Run]") -> float | None:
    values = []
    for member in row.members:
        fitting = [run for run in runs if _fits(run, row, member)]
        if not fitting:
            return None
        values.append(_mean(fitting[-1], row))
    return sum(values) / len(values)


def _fits(run: "Run", row: Expected, dataset: str) -> bool:
    manifest, segmenter = run.manifest, run.manifest.segmenter
    published = published_sha256(row.segmenter, row.variant)
    return (
        (manifest.protocol["name"], manifest.protocol["selection"])
        == (row.protocol_name, row.selection)
        and (manifest.dataset.name, segmenter.name) == (dataset, row.segmenter)
        and (not row.split or manifest.dataset.split == row.split)
        and (not row.variant or segmenter.variant == row.variant)
        and segmenter.frame in (None, row.frame)
        and segmenter.settings.get("output", "") == row.output
        and published in ("", segmenter.checkpoint_sha256)
    )


def _mean(run: "Run", row: Expected) -> float:
    """Return the mean over objects of the mean over trials, or an average precision."""
    if row.boxes:
        from samrobust.report.average_precision import average_precisions
        from samrobust.runs.store import read_detections

        return average_precisions(*read_detections(run.folder))[row.metric]

    from samrobust.report.scores import object_scores

    conditions = [condition["name"] for condition in run.manifest.protocol["conditions"]]
    statistics = object_scores(run).statistics
    return float(np.nanmean(statistics[column_of(row.metric)][conditions.index(row.condition)]))
