"""The scores of runs, read in parts and reduced to one row per object and condition."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from samrobust.errors import RunError
from samrobust.files import shown
from samrobust.protocol import NOC_AT
from samrobust.report.columns import column_of
from samrobust.report.statistics import Tail
from samrobust.runs.manifest import SCORE_KEY, score_name
from samrobust.runs.store import Run
from samrobust.types import Floats

FAILED_BELOW = 0.5
"""IoU; the share of trials below it is the statistic `iou_failed`."""
WORSE_BY = 0.05
"""IoU that an answer must lose by one more click to count in `click_fell`."""
NESTED = ("random-points", "border-points", "part-points")
"""Degradations whose first points of a trial are its prompt of fewer points."""
AT_THRESHOLDS = ("iou-at-minus-1", "iou", "iou-at-plus-1")
"""Metrics of the same masks at three thresholds of the logits."""
FELL_BY = 0.05
"""IoU that a trial must lose by one more point to count in `iou_fell` (docs/sources/peers.md
5.4)."""
MAX_CELLS = 10**7
"""Of the arrays of one part, unless enough of them have scores."""
CELLS_PER_SCORE = 200
"""The most that the arrays may have per score; conditions have one trial or many."""
NO_SCORES = "holds no scores yet; give its command again"
MAX_HASH = 64
"""Bytes of the hash of a prompt."""

_KEY = ["sample_id", "instance_id"]
_MIX = np.uint64(0x9E3779B97F4A7C15)
Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.intp]


@dataclass(frozen=True)
class ObjectScores:
    """The scores of one run, reduced to one row per object and condition.

    Attributes:
        objects: O rows sorted by `sample_id` and `instance_id`; `image` is the place of an object's
            image among the I sorted images.
        statistics: column -> (C, O) float64, NaN where there is no score: the means of metrics over
            trials, and of IoU over trials `iou_std` and `iou_var` (both n - 1), `iou_failed` (share
            of trials below 0.5) and `iou_fell` (share of trials that lose more than 0.05 by one
            more point); of IoU at three thresholds `threshold_squares` and `all_squares`; in the
            row of the last click of a conversation those of `samrobust.report.columns.OF_CLICKS`.
        n_trials: (C,) the most trials with an IoU that an object has.
        prompts: (C, O) one hash for all prompts of a condition, 0 where there are no scores.
        tails: place of a condition -> the lowest IoU of all its trials.
    """

    objects: pd.DataFrame
    statistics: Mapping[str, Floats]
    n_trials: npt.NDArray[np.int64]
    prompts: Hashes
    tails: Mapping[int, Tail]

    @property
    def n_images(self) -> int:
        """Return I."""
        return int(self.objects["image"].iloc[-1]) + 1


def object_scores(run: Run) -> ObjectScores:
    """Return the scores of a run, one row per object and condition.

    Raises:
        RunError: the run holds no scores, or they cannot be read or are not sound.
    """
    conditions = run.manifest.protocol["conditions"]
    ladders, talks = point_ladders(conditions), conversations(conditions)

    def reduce(part: pa.Table) -> _Reduced:
        block = _block(part, run)
        statistics = _statistics(block, ladders, talks)
        prompts = np.stack([hashes.sum(axis=1, dtype=np.uint64) for hashes in block.prompts])
        ious = [None if values is None else values.copy() for values in block.scores_of("iou")]
        return _Reduced(block.keys, statistics, prompts, ious)

    parts = list(run.map_scores(reduce))
    objects, order = _objects(run, [part.keys for part in parts])
    columns = dict.fromkeys(column for part in parts for column in part.statistics)
    statistics = {
        column: np.concatenate(
            [
                part.statistics.pop(column)
                if column in part.statistics
                else np.full((len(conditions), len(part.keys)), np.nan)
                for part in parts
            ],
            axis=1,
        )[:, order]
        for column in columns
    }
    prompts = np.concatenate([part.prompts for part in parts], axis=1)[:, order]
    owners = objects["image"].to_numpy()

    def tail(place: int) -> tuple[int, Tail | None]:
        trials = _joined([part.ious[place] for part in parts], [len(part.keys) for part in parts])
        if trials is None:
            return 0, None
        trials = trials[order]
        scored = ~np.isnan(trials)
        owner = np.repeat(owners, scored.sum(axis=1))
        n_images = int(owners[-1]) + 1
        return int(scored.sum(axis=1).max()), Tail(trials[scored], owner, n_images=n_images)

    with ThreadPoolExecutor(2) as pool:
        tails = list(pool.map(tail, range(len(conditions))))
    return ObjectScores(
        objects,
        statistics,
        np.array([n_trials for n_trials, _ in tails]),
        prompts,
        {place: found for place, (_, found) in enumerate(tails) if found is not None},
    )


def iou_of_trials(run: Run, conditions: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
    """Return the IoU of each trial, as (O, T) with NaN where there is none, by condition.

    It reads the run again. Conditions without IoU are left out.

    Args:
        run: its objects are in the order of `ObjectScores.objects`.
        conditions: names.
    """
    names = [row["name"] for row in run.manifest.protocol["conditions"]]
    wanted = [names.index(name) for name in conditions]

    def reduce(part: pa.Table) -> tuple[pa.Table, list[npt.NDArray[np.float32] | None]]:
        block = _block(part, run)
        ious = block.scores_of("iou")
        copies = [ious[place] for place in wanted]
        return block.keys, [None if each is None else each.copy() for each in copies]

    parts = list(run.map_scores(reduce))
    _, order = _objects(run, [keys for keys, _ in parts])
    sizes = [len(keys) for keys, _ in parts]
    found = {
        name: _joined([ious[place] for _, ious in parts], sizes)
        for place, name in enumerate(conditions)
    }
    return {name: trials[order] for name, trials in found.items() if trials is not None}


def point_ladders(conditions: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Return places of conditions: of one and of that with the next number of points."""
    kinds: dict[Hashable, list[int]] = {}
    for place, row in enumerate(conditions):
        if row["degradation"] in NESTED:
            others = sorted((k, v) for k, v in row["parameters"].items() if k != "count")
            image = row["image"]["name"] if "image" in row else ""
            kinds.setdefault((row["degradation"], image, *others), []).append(place)
    return [
        pair
        for places in kinds.values()
        for pair in pairwise(
            sorted(places, key=lambda place: conditions[place]["parameters"].get("count", 1))
        )
    ]


@dataclass(frozen=True)
class Conversation:
    """The conditions of a conversation.

    Attributes:
        name: as in the protocol's file.
        first: clicks before its first answer: 1, or 0 for a box alone.
        places: of the conditions, first to last.
        interaction: as in the manifest.
    """

    name: str
    first: int
    places: tuple[int, ...]
    interaction: Mapping[str, Any]


def conversations(conditions: Sequence[Mapping[str, Any]]) -> list[Conversation]:
    """Return the conversations of a protocol, of its conditions as in a manifest."""
    places: dict[str, list[int]] = {}
    for place, row in enumerate(conditions):
        if row.get("turn"):
            places.setdefault(row["turn"]["conversation"], []).append(place)
    found = []
    for name, its_places in places.items():
        its_places.sort(key=lambda place: conditions[place]["turn"]["n_clicks"])
        turn = conditions[its_places[0]]["turn"]
        found.append(Conversation(name, turn["n_clicks"], tuple(its_places), turn["interaction"]))
    return found


def click_statistics(ious: npt.NDArray[np.float32], first: int) -> dict[str, Floats]:
    """Return the statistics of conversations, `samrobust.report.columns.OF_CLICKS`, of each trial.

    NoC counts the clicks until IoU is at least the threshold, and is that of the last click where
    it never is; NoF is 1 where it never is (RITM, docs/sources/peers.md 1.3). AuC is the mean IoU
    over clicks, by the trapezoidal rule (RClicks, docs/sources/peers.md 1.2).

    Args:
        ious: (K, ...) after each click, stored as float32; thresholds are compared as such.
        first: clicks before the first of them; 0 for a box alone.
    """
    found: dict[str, Floats] = {}
    last = first + len(ious) - 1
    for at in NOC_AT:
        reached = ious >= np.float32(at / 100)
        never = ~reached.any(axis=0)
        found[f"noc_{at}"] = np.where(never, last, first + reached.argmax(axis=0)).astype(float)
        found[f"nof_{at}"] = never.astype(float)
    values = ious.astype(np.float64)
    if len(values) > 1:
        found["click_auc"] = ((values[1:] + values[:-1]) / 2).mean(axis=0)
        found["click_fell"] = (values[:-1] - values[1:] > WORSE_BY).mean(axis=0)
    return found


@dataclass(frozen=True)
class Group:
    """Runs that can be compared: of one protocol, data set, limit and number of trials.

    Attributes:
        runs: in the order in which they were given.
        labels: of their segmenters, all different.
        scores: of the runs, on the same objects and prompts.
        has_others: whether some run has images that another lacks; `runs` are then of those that
            all of them have.
    """

    runs: tuple[Run, ...]
    labels: tuple[str, ...]
    scores: tuple[ObjectScores, ...]
    has_others: bool = False


def comparable_groups(runs: Sequence[Run], *, strict: bool = False) -> list[Group]:
    """Return the runs in groups that can be compared, both in order of first appearance.

    A segmenter label that stands for several checkpoints or settings is made distinct, the same way
    in all groups. Runs of a group are compared on the images that all of them have.

    Args:
        runs: in the order of the segmenters.
        strict: whether an image that one run of a group has and another lacks is an error.

    Raises:
        RunError: a run holds no scores, or two of one protocol, data set, limit and number of
            trials differ in their prompts, selection, image frame or protocol file, or have no
            image in common.
    """
    for run in runs:
        if run.is_empty:
            raise RunError(f"{run.folder}: {NO_SCORES}")
    labels = _told_apart(
        [run.label or run.manifest.segmenter.label for run in runs], runs, by=_settings
    )
    members: dict[Hashable, list[int]] = {}
    for index, run in enumerate(runs):
        manifest = run.manifest
        protocol = manifest.protocol["name"], manifest.protocol["version"]
        images = manifest.dataset.key, manifest.dataset.fingerprint, manifest.limit
        key = (*protocol, *images, manifest.trials)
        members.setdefault(key, []).append(index)
    return [
        _group(
            [runs[index] for index in indices], [labels[index] for index in indices], strict=strict
        )
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
        "segmenter": segmenter.label if run.label else "",
        "checkpoint": segmenter.checkpoint_sha256[:8],
        "dtype": segmenter.dtype,
        "frame": segmenter.frame or "",
        "multimask": "multimask" if segmenter.multimask else "",
        **{f"={key}": f"{key} {value}" for key, value in segmenter.settings.items()},
    }


def _surroundings(run: Run) -> dict[str, str]:
    versions = {name: f"{name} {version}" for name, version in run.manifest.versions.items()}
    return {"=device": run.manifest.device, **versions}


def _group(runs: Sequence[Run], labels: Sequence[str], *, strict: bool) -> Group:
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
    group = _on_shared_images(runs, labels, strict=strict)
    for run, scores in zip(group.runs[1:], group.scores[1:], strict=True):
        if not _have_same_prompts(group.scores[0], scores):
            raise _difference(group.runs[0], run)
    return group


def _on_shared_images(runs: Sequence[Run], labels: Sequence[str], *, strict: bool) -> Group:
    """Return the runs as a group; those with images that another lacks are read again without.

    Raises:
        RunError: no image is in all runs, or `strict` and one is not.
    """
    scores = [object_scores(run) for run in runs]
    images = [frozenset(each.objects["sample_id"]) for each in scores]
    shared = frozenset.intersection(*images)
    if strict:
        _check_images(runs, images)
    elif not shared:
        folders = " and ".join(str(run.folder) for run in runs)
        raise RunError(f"{folders}: have no image in common; finish them with the same commands")
    restricted = [
        run if found == shared else replace(run, only=shared)
        for run, found in zip(runs, images, strict=True)
    ]
    scores = [
        known if run.only is None else object_scores(run)
        for run, known in zip(restricted, scores, strict=True)
    ]
    has_others = any(found != shared for found in images)
    return Group(tuple(restricted), tuple(labels), tuple(scores), has_others)


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


def _check_images(runs: Sequence[Run], images: Sequence[frozenset[str]]) -> None:
    fullest = max(range(len(images)), key=lambda index: len(images[index]))
    for run, scored in zip(runs, images, strict=True):
        missing = images[fullest] - scored
        if missing:
            raise RunError(
                f"{run.folder}: lacks {len(missing)} of the {len(images[fullest])} images of "
                f"{runs[fullest].folder} ({len(missing & run.failures.keys())} failed); "
                "finish it with the same command"
            )


def _have_same_prompts(one: ObjectScores, other: ObjectScores) -> bool:
    return one.objects.equals(other.objects) and np.array_equal(one.prompts, other.prompts)


def _difference(one: Run, other: Run) -> RunError:
    """Return in how many rows the prompts of two runs differ; both are read again."""
    mine, theirs = _prompts(one), _prompts(other)
    shared = mine.to_frame("one").join(theirs.rename("other"), how="inner")
    n_rows = len(mine) + len(theirs) - len(shared)
    n_differ = int((shared["one"] != shared["other"]).sum())
    folders = f"{one.folder} and {other.folder}"
    if n_differ:
        return RunError(f"{folders}: the prompts differ, in {n_differ} of {n_rows} rows")
    return RunError(f"{folders}: the same images have other objects, conditions or trials")


def _prompts(run: Run) -> "pd.Series[Any]":
    """Return the prompts by object, condition and trial."""
    key = [*_KEY, "condition", "trial"]
    parts = run.map_scores(
        lambda part: pa.table(
            [*(part[name] for name in key), pa.array(_hashes(part["prompt_hash"], part["trial"]))],
            names=[*key, "prompt"],
        )
    )
    rows = pa.concat_tables(parts).unify_dictionaries().to_pandas()
    for name in key[:3]:
        rows[name] = rows[name].astype("str")
    prompts: pd.Series[Any] = rows.drop_duplicates(key).set_index(key)["prompt"]
    return prompts


@dataclass(frozen=True)
class _Reduced:
    """What is kept of some images of a run."""

    keys: pa.Table
    statistics: dict[str, Floats]
    prompts: Hashes
    ious: list[npt.NDArray[np.float32] | None]


@dataclass(frozen=True)
class _Block:
    """The scores of some images as arrays.

    Attributes:
        keys: O rows: `sample_id`, `instance_id`.
        scores: metric -> of each condition (O, T) float32, NaN where there is none, T = 1 for a
            metric over trials; None for a condition without such scores.
        prompts: of each condition (O, T + 1), a number for each prompt and its trial, that of all
            trials first; 0 where there is none.
    """

    keys: pa.Table
    scores: Mapping[str, list[npt.NDArray[np.float32] | None]]
    prompts: list[Hashes]

    def scores_of(self, metric: str) -> list[npt.NDArray[np.float32] | None]:
        return self.scores.get(metric, [None] * len(self.prompts))


def _block(part: pa.Table, run: Run) -> _Block:
    """Return the scores of some images, laid out as arrays.

    Raises:
        ValueError: a trial is not of the protocol, a score is there twice, or there are too few for
            so many objects and trials.
    """
    protocol = run.manifest.protocol
    conditions = [row["name"] for row in protocol["conditions"]]
    metrics = sorted(set(protocol["metrics"]))
    keys, row_object = _keys(part)
    row_condition = _places(part["condition"], conditions)
    row_trial = part["trial"].to_numpy()
    trials = np.array([row["trials"] for row in protocol["conditions"]], np.int64)
    if (row_trial >= trials[row_condition]).any():
        raise ValueError(f"trial {row_trial.max()} is not of its protocol")
    row_cell = row_condition * len(metrics) + _places(part["metric"], metrics)
    n_trials = _trials_stored(row_cell, row_trial, np.repeat(trials, len(metrics)))
    widths = 1 + n_trials.reshape(len(conditions), -1).max(axis=1)
    n_cells = len(keys) * int(n_trials.sum() + widths.sum())
    if n_cells > max(MAX_CELLS, CELLS_PER_SCORE * part.num_rows):
        raise ValueError(f"{part.num_rows} scores are too few for so many objects and trials")
    scores, score_starts = _empty(len(keys), n_trials, np.nan, np.float32)
    value_place = np.maximum(row_trial, 0) + row_object * n_trials[row_cell]
    scores[score_starts[row_cell] + value_place] = part["value"].to_numpy()
    if np.count_nonzero(scores == scores) != part.num_rows:
        raise ValueError(_twice(part))
    prompts, prompt_starts = _empty(len(keys), widths, 0, np.uint64)
    prompt_place = 1 + row_trial + row_object * widths[row_condition]
    prompts[prompt_starts[row_condition] + prompt_place] = _hashes(
        part["prompt_hash"], part["trial"]
    )
    cells = _split(scores, n_trials)
    return _Block(
        keys,
        {
            metric: [cell if cell.shape[1] else None for cell in cells[place :: len(metrics)]]
            for place, metric in enumerate(metrics)
        },
        _split(prompts, widths),
    )


def _twice(part: pa.Table) -> str:
    """Return which score of some images is there a second time, and with which values."""
    rows = part.select(list(SCORE_KEY)).to_pandas()
    second = int(rows.duplicated().to_numpy().argmax())
    places = (rows == rows.iloc[second]).all(axis=1).to_numpy().nonzero()[0]
    one, other = (part["value"][place].as_py() for place in places.tolist()[:2])
    return f"a score is there twice, as {one:.6g} and {other:.6g}: {score_name(part, second)}"


def _keys(part: pa.Table) -> tuple[pa.Table, Places]:
    """Return the objects of a part, and the place of each row's object."""
    columns = [part[name].combine_chunks() for name in _KEY]
    (images, image), (instances, instance) = (
        _sorted_codes(column.dictionary, column.indices.to_numpy()) for column in columns
    )
    number = image * len(instances) + instance
    starts = np.flatnonzero(np.diff(number, prepend=-1))  # rows of an object follow each other
    numbers, of_start = np.unique(number[starts], return_inverse=True)
    row_object = np.repeat(of_start, np.diff(starts, append=len(number)))
    image, instance = np.divmod(numbers, len(instances))
    return pa.table([images.take(image), instances.take(instance)], names=_KEY), row_object


def _sorted_codes(names: pa.Array, codes: npt.NDArray[np.int32]) -> tuple[pa.Array, Places]:
    """Return sorted different names, and codes that are places in them."""
    ordered = sorted(set(names.to_pylist()))
    place = {name: number for number, name in enumerate(ordered)}
    return pa.array(ordered, pa.string()), np.array([place[x] for x in names.to_pylist()])[codes]


def _places(column: pa.ChunkedArray, names: Sequence[str]) -> Places:
    """Return the place of each row's name."""
    coded = column.combine_chunks()
    places = np.array([names.index(name) for name in coded.dictionary.to_pylist()])
    row_places: Places = places[coded.indices.to_numpy()]
    return row_places


def _trials_stored(
    row_cell: Places, row_trial: npt.NDArray[np.int32], trials: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the T of each cell: 0 without scores, 1 for scores over trials."""
    has_scores, has_trials = np.zeros((2, len(trials)), np.bool_)
    has_scores[row_cell] = True
    has_trials[row_cell[row_trial >= 0]] = True
    return np.where(has_trials, trials, has_scores)


def _empty(
    n_objects: int, widths: npt.NDArray[np.int64], value: float, kind: type[Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Return one array for all cells of (n_objects, width) each, and where each cell starts."""
    ends = n_objects * np.cumsum(widths)
    return np.full(int(ends[-1]), value, kind), ends - n_objects * widths


def _split(flat: npt.NDArray[Any], widths: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
    """Return the cells of an array from `_empty`."""
    n_objects = len(flat) // max(1, int(widths.sum()))
    ends = n_objects * np.cumsum(widths)
    cells = np.split(flat, ends[:-1])
    return [cell.reshape(n_objects, width) for cell, width in zip(cells, widths, strict=True)]


def _hashes(texts: pa.ChunkedArray, trials: pa.ChunkedArray) -> Hashes:
    """Return a number for each prompt and its trial; different ones have different numbers.

    Their sum says whether two sets of prompts are the same; two that differ agree by a chance of
    2^-63.
    """
    longest = pc.max(pc.binary_length(texts)).as_py()
    if longest > MAX_HASH:
        raise ValueError(f"the hash of a prompt has {longest} bytes")
    n_words = -(-longest // 8) or 1
    padded = pc.ascii_rpad(texts, 8 * n_words, "\0").combine_chunks()
    words = np.frombuffer(padded.buffers()[2], np.uint64)[: len(padded) * n_words]
    weights = np.arange(1, n_words + 1, dtype=np.uint64) * _MIX | np.uint64(1)
    mixed = (words.reshape(-1, n_words) * weights).sum(axis=1, dtype=np.uint64)
    for salt in (trials.to_numpy().astype(np.uint64) * _MIX, np.uint64(0)):
        mixed = (mixed ^ salt ^ (mixed >> np.uint64(32))) * _MIX
    hashes: Hashes = (mixed ^ (mixed >> np.uint64(29))) | np.uint64(1)
    return hashes


def _statistics(
    block: _Block, ladders: Sequence[tuple[int, int]], talks: Sequence[Conversation]
) -> dict[str, Floats]:
    """Return `ObjectScores.statistics` of some images."""
    shape = len(block.prompts), block.keys.num_rows
    found: dict[str, Floats] = {}

    def put(column: str, condition: int, values: Floats) -> None:
        found.setdefault(column, np.full(shape, np.nan))[condition] = values

    for metric, cells in block.scores.items():
        for condition, values in enumerate(cells):
            if values is None:
                continue
            trials = values.astype(np.float64)
            n_trials = (~np.isnan(trials)).sum(axis=1)
            means = _ratio(np.nansum(trials, axis=1), n_trials)
            put(column_of(metric), condition, means)
            if metric == "iou":
                squares = np.nansum((trials - means[:, None]) ** 2, axis=1)
                variance = _ratio(squares, n_trials - 1)
                put("iou_std", condition, variance**0.5)
                put("iou_var", condition, variance)
                failed = (trials < FAILED_BELOW).sum(axis=1)
                put("iou_failed", condition, _ratio(failed, n_trials))
    ious = block.scores_of("iou")
    for fewer, more in ladders:
        before, after = ious[fewer], ious[more]
        if before is not None and after is not None:
            size = min(before.shape[1], after.shape[1])
            lost = before[:, :size].astype(np.float64) - after[:, :size]
            fell = (lost > FELL_BY).sum(axis=1)
            put("iou_fell", more, _ratio(fell, (~np.isnan(lost)).sum(axis=1)))
    for talk in talks:
        turns = [cell for place in talk.places if (cell := ious[place]) is not None]
        if len(turns) == len(talk.places):
            values = np.stack(turns)  # clicks x objects x trials
            scored = ~np.isnan(values).any(axis=0)
            for column, of_trials in click_statistics(values, talk.first).items():
                sums = np.where(scored, of_trials, 0).sum(axis=1)
                put(column, talk.places[-1], _ratio(sums, scored.sum(axis=1)))
    at_each = [block.scores_of(metric) for metric in AT_THRESHOLDS]
    for condition, at_thresholds in enumerate(zip(*at_each, strict=True)):
        there = [cell for cell in at_thresholds if cell is not None and cell.shape[1] > 1]
        if len(there) == len(AT_THRESHOLDS):
            part, whole = _squares(np.stack(there, axis=2).astype(np.float64))
            put("threshold_squares", condition, part)
            put("all_squares", condition, whole)
    return found


def _squares(ious: Floats) -> tuple[Floats, Floats]:
    """Return (O,) sums of squares per trial: between the means of K thresholds, and in all.

    Those of a two-way analysis of variance of (O, T, K) IoU by trial and threshold, where the rest
    is between trials and of both together.
    """
    mean = np.nanmean(ious, axis=(1, 2))
    part = ((np.nanmean(ious, axis=1) - mean[:, None]) ** 2).sum(axis=1)
    whole = np.nanmean((ious - mean[:, None, None]) ** 2, axis=(1, 2)) * ious.shape[2]
    return part, whole


def _ratio(sums: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> Floats:
    """Return sums / counts as float64, NaN where a count is 0."""
    missing = np.full(len(sums), np.nan)
    ratios: Floats = np.divide(sums.astype(np.float64), counts, out=missing, where=counts > 0)
    return ratios


def _joined(
    cells: Sequence[npt.NDArray[np.float32] | None], sizes: Sequence[int]
) -> npt.NDArray[np.float32] | None:
    """Return the (O, T) scores of all parts after each other; None where no part has any."""
    width = max((cell.shape[1] for cell in cells if cell is not None), default=0)
    if not width:
        return None
    return np.concatenate(
        [
            np.full((size, width), np.nan, np.float32) if cell is None else cell
            for cell, size in zip(cells, sizes, strict=True)
        ]
    )


def _objects(run: Run, keys: Sequence[pa.Table]) -> tuple[pd.DataFrame, Places]:
    """Return `ObjectScores.objects`, and the order in which the objects of all parts are theirs.

    Raises:
        RunError: there are none, or one is in two parts.
    """
    if not keys:
        raise RunError(f"{run.folder}: {NO_SCORES}")
    table = pa.concat_tables(keys)
    order = pc.sort_indices(table, [(name, "ascending") for name in _KEY])
    table = table.take(order).combine_chunks()
    is_new = [np.asarray(pc.not_equal(table[name][1:], table[name][:-1])) for name in _KEY]
    if not (is_new[0] | is_new[1]).all():
        image, instance = (table[name][1:].filter(~(is_new[0] | is_new[1]))[0] for name in _KEY)
        raise RunError(
            f"{run.folder}: is not a valid run: object {shown(instance.as_py())} of image "
            f"{shown(image.as_py())} has scores in two files of {run.folder / 'scores'}; delete "
            "one of the two and give the same command again"
        )
    objects: pd.DataFrame = table.to_pandas()
    objects["image"] = np.concatenate([[0], np.cumsum(is_new[0])])
    return objects, order.to_numpy()
