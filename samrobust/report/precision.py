"""How far one run is from another: a verdict, stored beside runs in reduced precision."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from samrobust.errors import RunError
from samrobust.files import read_json
from samrobust.runs.manifest import RunManifest, write_json
from samrobust.runs.store import Run

FORMAT = 1
LIMITS = {"miou": 0.002, "mbiou": 0.003, "msf": 0.002}
"""Statistic -> the largest difference that is within the tolerance, in any condition; fractions
(docs/sources/performance.md, end: a proposal, not yet calibrated with published weights)."""
_PREFIX = "gate--"
"""Of the names of stored verdicts, which version 0.1.0 called gates."""


@dataclass(frozen=True)
class Verdict:
    """Whether one run is within a tolerance of another, in float32 where it is not itself.

    Attributes:
        identity: the second run's segmenter with its weights, settings and dtype, and the kind of
            device.
        protocol: its name.
        dataset: label of the data set.
        n_images: that both segmented, on identical prompts.
        n_objects: of them.
        differences: statistic -> the largest difference over the conditions, second run - first, in
            [-1, 1].
        conditions: statistic -> the condition of that difference.
        created: date and time of the second run, UTC, ISO 8601.
        command: what was typed.
        limits: statistic -> the largest difference that passes.
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
    limits: Mapping[str, float] = field(default_factory=lambda: LIMITS)

    @property
    def passed(self) -> bool:
        """Return whether every statistic is within its limit."""
        return all(abs(value) <= self.limits[name] for name, value in self.differences.items())


@dataclass(frozen=True)
class Precision:
    """What is known of the precision of a run that is not in float32.

    Attributes:
        segmenter: label of the run's segmenter.
        dtype: of its image encoder.
        verdict: how far it is from float32, None where that was not measured.
    """

    segmenter: str
    dtype: str
    verdict: Verdict | None


def identity_of(manifest: RunManifest) -> dict[str, Any]:
    """Return what a verdict must share with a run: segmenter, weights, settings, dtype, device."""
    plain = asdict(manifest.segmenter)
    plain.pop("trained_on")
    return {**plain, "prompts": sorted(manifest.segmenter.prompts), "device": manifest.device}


def differ_in_precision(reference: Run, reduced: Run) -> bool:
    """Return whether two runs differ in nothing but that the first is in float32."""
    exact = {**identity_of(reduced.manifest), "dtype": "float32"}
    return reduced.manifest.segmenter.dtype != "float32" and (
        identity_of(reference.manifest) == exact
    )


def write_verdict(verdict: Verdict, run: Run) -> Path:
    """Store a verdict beside the run in reduced precision; return its path.

    An earlier verdict of the same run is replaced.

    Raises:
        RunError: it cannot be written.
    """
    path = run.folder.with_name(f"{_PREFIX}{run.folder.name}.json")
    write_json(path, {"format": FORMAT, **asdict(verdict)})
    return path


def precision_of(run: Run, label: str) -> Precision | None:
    """Return what is known of a run's precision, None where it is float32.

    Of several verdicts about the very same segmenter, one of the run's own protocol and data is
    preferred, and of those the newest.

    Args:
        run: verdicts are looked for beside it.
        label: of its segmenter.

    Raises:
        RunError: a verdict cannot be read.
    """
    manifest = run.manifest
    if manifest.segmenter.dtype == "float32":
        return None
    verdicts = [_read(path) for path in sorted(run.folder.parent.glob(f"{_PREFIX}*.json"))]
    own = manifest.protocol["name"], manifest.dataset.label
    preferred = max(
        (verdict for verdict in verdicts if verdict.identity == identity_of(manifest)),
        key=lambda verdict: ((verdict.protocol, verdict.dataset) == own, verdict.created),
        default=None,
    )
    return Precision(label, manifest.segmenter.dtype, preferred)


def _read(path: Path) -> Verdict:
    plain = read_json(path, error=RunError)
    try:
        if plain.pop("format") != FORMAT:
            raise RunError(f"{path}: is of another format than {FORMAT}")
        verdict = Verdict(**plain)
        if not verdict.differences.keys() <= verdict.limits.keys() <= LIMITS.keys():
            raise RunError(f"{path}: has other statistics than {', '.join(LIMITS)}")
        verdict.passed  # noqa: B018  a difference must be a number
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: is not a verdict: {error}") from error
    return verdict
