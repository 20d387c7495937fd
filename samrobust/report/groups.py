"""Stored runs in, groups that can be compared out; what cannot be compared is refused."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from samrobust.errors import RunError
from samrobust.report.rows import Rows, objects_of, rows_of
from samrobust.store import Run


@dataclass(frozen=True)
class Group:
    """Runs that can be compared: of one protocol, data set, limit and number of trials.

    Attributes:
        runs: in the order in which they were given.
        labels: of their segmenters, all different.
        objects: of all images, as from `objects_of`.
    """

    runs: tuple[Run, ...]
    labels: tuple[str, ...]
    objects: pd.DataFrame

    @property
    def conditions(self) -> list[str]:
        """Return the names of the conditions, in protocol order."""
        return [row["name"] for row in self.runs[0].manifest.protocol["conditions"]]

    @cached_property
    def metrics(self) -> list[str]:
        """Return the names of the metrics that there are scores of, sorted."""
        return sorted({str(name) for run in self.runs for name in run.scores["metric"].unique()})

    def rows(self, run: Run) -> Iterator[Rows]:
        """Yield the scores of one of the runs."""
        names = {"conditions": self.conditions, "metrics": self.metrics}
        return rows_of(run, self.objects, **names)


def comparable_groups(runs: Sequence[Run]) -> list[Group]:
    """Return the runs in groups that can be compared, both in order of first appearance.

    A segmenter label that stands for several checkpoints or settings is made distinct, the same way
    in all groups.

    Raises:
        RunError: a run holds no scores, or two of one protocol, data set, limit and number of
            trials differ in their prompts, images, selection, image frame or protocol file.
    """
    for run in runs:
        if run.scores.empty:
            raise RunError(f"{run.folder}: holds no scores yet; give its command again")
    labels = _told_apart([run.manifest.segmenter.label for run in runs], runs, by=_settings)
    members: dict[Hashable, list[int]] = {}
    for index, run in enumerate(runs):
        manifest = run.manifest
        protocol = manifest.protocol["name"], manifest.protocol["version"]
        images = manifest.dataset.key, manifest.dataset.fingerprint, manifest.limit
        key = (*protocol, *images, manifest.trials)
        members.setdefault(key, []).append(index)
    return [
        _group([runs[index] for index in indices], [labels[index] for index in indices])
        for indices in members.values()
    ]


def _told_apart(
    labels: Sequence[str], runs: Sequence[Run], *, by: Callable[[Run], dict[str, str]]
) -> list[str]:
    """Return the labels, those that stand there twice with the settings in which they differ."""
    distinct = []
    for label, run in zip(labels, runs, strict=True):
        mine = by(run)
        others = [by(other) for name, other in zip(labels, runs, strict=True) if name == label]
        differs = [key for key in mine if any(other.get(key) != mine[key] for other in others)]
        words = ", ".join(mine[key] for key in differs if mine[key])
        distinct.append(f"{label} ({words})" if words else label)
    return distinct


def _settings(run: Run) -> dict[str, str]:
    segmenter = run.manifest.segmenter
    return {
        "checkpoint": segmenter.checkpoint_sha256[:8],
        "dtype": segmenter.dtype,
        "frame": segmenter.frame or "",
        "multimask": "multimask" if segmenter.multimask else "",
        **{f"={key}": f"{key} {value}" for key, value in segmenter.settings.items()},
    }


def _surroundings(run: Run) -> dict[str, str]:
    versions = {name: f"{name} {version}" for name, version in run.manifest.versions.items()}
    return {"=device": run.manifest.device, **versions}


def _group(runs: Sequence[Run], labels: Sequence[str]) -> Group:
    for run in runs[1:]:
        _check_settings(runs[0], run)
    framed = [run for run in runs if run.manifest.segmenter.frame]
    for run in framed[1:]:
        frames = framed[0].manifest.segmenter.frame, run.manifest.segmenter.frame
        _check_equal(framed[0], run, what="image frames", values=frames)
    labels = _told_apart(labels, runs, by=_surroundings)
    for index, label in enumerate(labels):
        first = labels.index(label)
        if first < index:
            folders = f"{runs[first].folder} and {runs[index].folder}"
            raise RunError(f"{folders}: are of one segmenter with the same settings; name one")
    group = Group(tuple(runs), tuple(labels), objects_of(runs))
    _check_images(group)
    _check_prompts(group)
    return group


def _check_settings(one: Run, other: Run) -> None:
    mine, theirs = one.manifest, other.manifest
    pair = mine.protocol["selection"], theirs.protocol["selection"]
    _check_equal(one, other, what="selections", values=pair)
    keys = [key for key in mine.protocol if mine.protocol[key] != theirs.protocol.get(key)]
    if keys:
        raise RunError(
            f"{one.folder} and {other.folder}: the protocol files differ, in {', '.join(keys)}; "
            "a changed protocol needs another version"
        )
    _check_equal(one, other, what="metric constants", values=(mine.constants, theirs.constants))


def _check_equal(one: Run, other: Run, *, what: str, values: tuple[object, object]) -> None:
    if values[0] != values[1]:
        raise RunError(
            f"{one.folder} and {other.folder}: the {what} differ: {values[0]} and {values[1]}"
        )


def _check_images(group: Group) -> None:
    images = [set(run.scores["sample_id"].unique()) for run in group.runs]
    fullest = max(range(len(images)), key=lambda index: len(images[index]))
    for run, held in zip(group.runs, images, strict=True):
        missing = images[fullest] - held
        if missing:
            raise RunError(
                f"{run.folder}: lacks {len(missing)} of the {len(images[fullest])} images of "
                f"{group.runs[fullest].folder} ({len(missing & run.failures.keys())} failed); "
                "finish it with the same command"
            )


def _check_prompts(group: Group) -> None:
    if len(group.runs) == 1:
        return
    n_trials = max(int(run.scores["trial"].max()) + 1 for run in group.runs)
    expected = _prompts(group, group.runs[0], n_trials)
    for run in group.runs[1:]:
        prompts = _prompts(group, run, n_trials)
        either = np.count_nonzero(expected | prompts)
        both = (expected != 0) & (prompts != 0)
        n_differ = np.count_nonzero(both & (expected != prompts))
        folders = f"{group.runs[0].folder} and {run.folder}"
        if n_differ:
            raise RunError(f"{folders}: the prompts differ, in {n_differ} of {either} rows")
        if np.count_nonzero(both) < either:
            raise RunError(f"{folders}: the same images have other objects, conditions or trials")


def _prompts(group: Group, run: Run, n_trials: int) -> npt.NDArray[np.uint64]:
    """Return (C, O, T + 1), the hash of each prompt, all trials' last; 0 where there is none."""
    shape = len(group.conditions), len(group.objects), n_trials + 1
    found = np.zeros(shape, np.uint64)
    for rows in group.rows(run):
        found[rows.condition, rows.object, rows.trial] = rows.prompt
    return found
