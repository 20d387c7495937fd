"""Files of published values that a segmenter is expected to meet: TOML in, checked rows out."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samrobust.datasets import DATASETS, GROUPS
from samrobust.errors import ProtocolError, SamrobustError
from samrobust.interfaces import HqOutput
from samrobust.metrics import METRICS
from samrobust.protocol import load_protocol
from samrobust.registry import known, one_of
from samrobust.segmenters import SEGMENTERS
from samrobust.settings import build_from, make_settings
from samrobust.types import Frame, Selection

_OF_FILE = {"name", "version", "summary", "expected"}


@dataclass(frozen=True)
class Expected:
    """One published value and all that it was measured with.

    Attributes:
        segmenter: as registered.
        dataset: data set, or a group, whose members are averaged unweighted.
        protocol: packaged, or the path of a file.
        condition: of the protocol.
        metric: of the protocol.
        value: as published, in [0, 1].
        tolerance: how far from it is still the same, in the same unit.
        source: paper and table.
        variant: of the segmenter.
        output: of an HQ-SAM, "" for others.
        frame: how images reach the model.
        selection: which mask counts.
        split: of the data set.
    """

    segmenter: str
    dataset: str
    protocol: str
    condition: str
    metric: str
    value: float
    tolerance: float
    source: str
    variant: str = ""
    output: str = ""
    frame: str = "longest-side"
    selection: str = "single"
    split: str = ""

    def __post_init__(self) -> None:
        known(self.segmenter, SEGMENTERS.names(), kind="segmenter")
        known(self.dataset, [*DATASETS.names(), *GROUPS], kind="dataset")
        known(self.metric, METRICS.names(), kind="metric")
        conditions = [condition.name for condition in load_protocol(self.protocol).conditions]
        known(self.condition, conditions, kind=f"condition of {self.protocol}")
        one_of(Frame, self.frame, kind="frame")
        one_of(Selection, self.selection, kind="selection")
        if self.output:
            one_of(HqOutput, self.output, kind="output")
        for name in ("value", "tolerance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")

    @property
    def members(self) -> tuple[str, ...]:
        """Return the names of the data sets that are averaged."""
        return GROUPS.get(self.dataset, (self.dataset,))

    @property
    def protocol_name(self) -> str:
        """Return what the protocol calls itself."""
        return load_protocol(self.protocol).name

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
    inside = Path(__file__).parent / "expected"
    folder = inside if inside.is_dir() else Path(__file__).parents[1] / "expected"  # a checkout
    return {file.stem: file for file in sorted(folder.glob("*.toml"))}


def load_expected(name: str) -> ExpectedFile:
    """Return a packaged file by its name, or a user's own by its path.

    What stands outside of its rows, `[[expected]]`, holds for all that do not say otherwise.

    Raises:
        ProtocolError: the file is missing or wrong; the message names file, row and key.
        UnknownNameError: no packaged file has that name.
    """
    own = name.endswith(".toml") or "/" in name
    packaged = packaged_expected()
    path = Path(name) if own else packaged[known(name, packaged, kind="file of expected values")]
    return build_from(path, _build, error=ProtocolError)


def _build(table: Mapping[str, Any]) -> ExpectedFile:
    rows = table.get("expected")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError("'expected' must be a list of tables, each opened by [[expected]]")
    shared = {key: value for key, value in table.items() if key not in _OF_FILE}
    built = []
    for number, row in enumerate(rows, start=1):
        try:
            built.append(make_settings(Expected, {**shared, **row}, kind="the row"))
        except (SamrobustError, ValueError) as error:
            raise ValueError(f"row {number} of 'expected': {error}") from error
    about = {key: table[key] for key in ("name", "version", "summary") if key in table}
    return make_settings(_About, about, kind="the file").with_rows(tuple(built))


@dataclass(frozen=True)
class _About:
    name: str
    version: int
    summary: str

    def with_rows(self, rows: tuple[Expected, ...]) -> ExpectedFile:
        return ExpectedFile(**dataclasses.asdict(self), rows=rows)
