"""How far a run in reduced precision is from float32, stored beside the runs."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from samrobust.errors import RunError
from samrobust.files import write_atomic
from samrobust.runs.manifest import RunManifest
from samrobust.runs.store import Run

FORMAT = 1
LIMITS = {"miou": 0.002, "mbiou": 0.003, "msf": 0.002}
"""Statistic -> the largest difference from float32 that passes, in any condition; fractions
(facts/performance.md, end: a proposal, not yet calibrated with published weights)."""
_PREFIX = "gate--"


@dataclass(frozen=True)
class Gate:
    """What was measured of one segmenter in one reduced precision.

    Attributes:
        identity: the segmenter with its weights, settings and dtype, and the kind of device.
        protocol: its name.
        dataset: label of the data set.
        n_images: that both precisions segmented, on identical prompts.
        n_objects: of them.
        differences: statistic -> the largest difference over the conditions, reduced - float32, in
            [-1, 1].
        conditions: statistic -> the condition where it is.
        created: date and time of the reduced run, UTC, ISO 8601.
        command: what was typed.
    """

    identity: Mapping[str, Any]
    protocol: str
    dataset: str
    n_images: int
    n_objects: int
    differences: Mapping[str, float]
    conditions: Mapping[str, str]
    created: str
    command: str

    @property
    def passed(self) -> bool:
        """Return whether every statistic is within its limit."""
        return all(abs(value) <= LIMITS[name] for name, value in self.differences.items())


@dataclass(frozen=True)
class Precision:
    """What is known of the precision of a run that is not in float32.

    Attributes:
        segmenter: label of the run's segmenter.
        dtype: of its image encoder.
        gate: what was measured of it, None where nothing was.
    """

    segmenter: str
    dtype: str
    gate: Gate | None


def identity_of(manifest: RunManifest) -> dict[str, Any]:
    """Return what a gate must share with a run: segmenter, weights, settings, dtype and device."""
    plain = asdict(manifest.segmenter)
    plain.pop("trained_on")
    return {**plain, "prompts": sorted(manifest.segmenter.prompts), "device": manifest.device}


def write_gate(gate: Gate, run: Run) -> Path:
    """Store a gate beside the reduced run, over an earlier one of the same run; return its path.

    Raises:
        RunError: it cannot be written.
    """
    path = run.folder.with_name(f"{_PREFIX}{run.folder.name}.json")
    text = json.dumps({"format": FORMAT, **asdict(gate)}, indent=2, ensure_ascii=False) + "\n"
    try:
        write_atomic(path, text.encode())
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}") from error
    return path


def precision_of(run: Run, label: str) -> Precision | None:
    """Return what is known of a run's precision, None where it is float32.

    Of several gates of the very same segmenter, one of the run's own protocol and data is taken if
    there is one, and of those the newest.

    Args:
        run: gates are looked for beside it.
        label: of its segmenter.

    Raises:
        RunError: a gate cannot be read.
    """
    manifest = run.manifest
    if manifest.segmenter.dtype == "float32":
        return None
    gates = [_read(path) for path in sorted(run.folder.parent.glob(f"{_PREFIX}*.json"))]
    own = manifest.protocol["name"], manifest.dataset.label
    found = max(
        (gate for gate in gates if gate.identity == identity_of(manifest)),
        key=lambda gate: ((gate.protocol, gate.dataset) == own, gate.created),
        default=None,
    )
    return Precision(label, manifest.segmenter.dtype, found)


def _read(path: Path) -> Gate:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if plain.pop("format") != FORMAT:
            raise RunError(f"{path}: is of another format than {FORMAT}")
        gate = Gate(**plain)
        if not gate.differences.keys() <= LIMITS.keys():
            raise RunError(f"{path}: has other statistics than {', '.join(LIMITS)}")
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{path}: is not a gate: {error}") from error
    return gate
