"""Stored runs with made-up scores, written through the real `RunWriter`."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from samrobust.protocol import describe_protocol, load_protocol, with_trials
from samrobust.runs.manifest import ObjectRow, RunManifest, Score
from samrobust.runs.store import Run, RunWriter, read_run
from samrobust.seeding import keyed_generator
from samrobust.types import DatasetInfo, SegmenterInfo

SAM = SegmenterInfo(
    "sam", frozenset({"box", "points"}), "vit_b", "longest-side", checkpoint_sha256="a" * 64
)
STABLE = SegmenterInfo(
    "stable-sam", frozenset({"box", "points"}), "vit_b", "longest-side", checkpoint_sha256="b" * 64
)
CONTROL = SegmenterInfo("box-as-mask", frozenset({"box"}), is_control=True)
SCENES = DatasetInfo("scenes", "6", "f1")
PAIR = ("coift", "hrsod")


def described(name: str, *, trials: int = 4, conditions: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a packaged protocol says, as if its file had this many trials."""
    protocol = describe_protocol(with_trials(load_protocol(name), trials))
    chosen = [row for row in protocol["conditions"] if not conditions or row["name"] in conditions]
    return {**protocol, "conditions": chosen}


def member(name: str) -> DatasetInfo:
    """Return a data set of the group `pair`, which has two."""
    return DatasetInfo(name, "", f"{name}-1", group="pair", group_members=PAIR)


@dataclass(frozen=True)
class MadeUp:
    """A run and how its scores come about.

    Attributes:
        missing: sample ids that were not reached.
        failed: sample ids recorded as failed.
        left_out: sample id -> why objects of it, or all, cannot be scored.
        prompts: a part of the key of the prompts; another one gives other prompts.
        accuracy: of the segmenter, in [0, 1].
        has_objects: whether it says what its objects are; runs of earlier versions do not.
    """

    segmenter: SegmenterInfo = SAM
    dataset: DatasetInfo = SCENES
    protocol: Mapping[str, Any] = field(default_factory=lambda: described("noisy-box"))
    n_samples: int = 6
    limit: int | None = None
    trials: int | None = None
    device: str = "cpu"
    reported: Sequence[Mapping[str, Any]] = ()
    constants: Mapping[str, float] = field(default_factory=lambda: {"boundary-width": 0.02})
    missing: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    prompts: str = "p"
    accuracy: float = 0.8
    has_objects: bool = True

    def store(self, results: Path) -> Run:
        """Write the run below `results` and return it as it is read back."""
        with RunWriter(results, self._manifest()) as writer:
            for name, reasons in self.left_out.items():
                writer.leave_out(name, reasons)
            for index in range(self.n_samples):
                sample_id = f"image-{index}"
                if sample_id in self.failed:
                    writer.fail(sample_id, "is broken")
                elif sample_id not in self.missing:
                    scores = list(self._scores(sample_id, n_objects=1 + index % 3))
                    writer.write(sample_id, scores, objects=self._objects(sample_id, index))
        return read_run(writer.folder)

    def but(self, **changes: Any) -> "MadeUp":  # noqa: ANN401
        """Return this run with something else in it."""
        return replace(self, **changes)

    def _manifest(self) -> RunManifest:
        return RunManifest(
            protocol=self.protocol,
            reported=self.reported,
            dataset=self.dataset,
            segmenter=self.segmenter,
            n_samples=self.n_samples,
            limit=self.limit,
            trials=self.trials,
            device=self.device,
            constants=self.constants,
            versions={"samrobust": "0.1.0"},
            command="samrobust eval",
            created="2026-01-01T00:00:00+00:00",
        )

    def _objects(self, sample_id: str, index: int) -> list[ObjectRow]:
        """Return objects of all sizes, from compact to thin; none where the run has none."""
        rows = [
            ObjectRow(sample_id, str(number), f"kind {number}", area, perimeter)
            for number, (area, perimeter) in enumerate(
                ((300, 70.0), (5000, 400.0), (20000, 1400.0))
            )
        ]
        return rows[: 1 + index % 3] if self.has_objects else []

    def _scores(self, sample_id: str, *, n_objects: int) -> Iterator[Score]:
        for index in range(n_objects):
            for place, condition in enumerate(self.protocol["conditions"]):
                key = (sample_id, str(index), condition["name"])
                yield from self._condition_scores(key, condition, hardness=1 + place / 5)

    def _condition_scores(
        self, key: tuple[str, str, str], condition: Mapping[str, Any], *, hardness: float
    ) -> Iterator[Score]:
        """Yield scores that fall, and spread, with the hardness of the condition."""
        rng = keyed_generator(self.segmenter.label, self.dataset.key, *key)
        trials = condition["trials"]
        worse = (1 - self.accuracy) * hardness * rng.uniform(0.5, 1.5)
        ious = np.clip(1 - worse * rng.uniform(0.6, 1.4, trials), 0, 1)
        prompts = [_hash(self.prompts, *key, str(trial)) for trial in range(trials)]
        for metric, values in {
            "iou": ious,
            "boundary-iou": ious**1.5,
            "hausdorff": ious * 9,
        }.items():
            if metric in self.protocol["metrics"]:
                for trial, value in enumerate(values):
                    yield Score(*key, trial, metric, float(value), prompts[trial])
        if "stability" in self.protocol["metrics"] and trials > 1:
            steadiness = float(ious.mean() ** (1.2 - self.accuracy))
            yield Score(*key, -1, "stability", steadiness, _hash("".join(prompts)))


def _hash(*key: str) -> str:
    return hashlib.sha256("/".join(key).encode()).hexdigest()[:16]
