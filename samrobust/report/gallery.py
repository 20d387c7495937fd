"""The failures that a page shows: which objects and trials, and how they are outlined."""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from PIL import Image as PillowImage

from samrobust.datasets.coco import decode_run_lengths
from samrobust.datasets.images import UNDECODABLE
from samrobust.errors import RunError
from samrobust.report.scores import Conversation, conversations, iou_of_trials
from samrobust.report.summary import Section
from samrobust.runs.manifest import TARGET_TRIAL
from samrobust.runs.store import read_masks, read_photographs
from samrobust.types import Floats, Mask

MARGIN = 0.25
"""Around what a panel shows, in its longer side."""
PANEL_PIXELS = 240
"""Width at which outlines are drawn: finer detail is left out."""
Row = Mapping[Any, Any]
"""A stored mask with its prompt."""


def prompt_marks(
    row: Row,
) -> tuple[tuple[float, ...], tuple[tuple[float, float, int], ...]]:
    """Return the box as x, y, width, height, pixels whole, and the points, pixel centres."""
    box = np.asarray(row["box"], np.float64)
    points = np.asarray(row["points"], np.float64).reshape(-1, 2) + 0.5
    labels = np.asarray(row["labels"], np.int64)
    marks = tuple((float(x), float(y), int(k)) for (x, y), k in zip(points, labels, strict=True))
    if not len(box):
        return (), marks
    x0, y0, x1, y1 = (round(float(value), 1) for value in box)
    return (x0, y0, round(x1 - x0 + 1, 1), round(y1 - y0 + 1, 1)), marks


def view_of(
    masks: Sequence[Mask], prompts: Sequence[Row], size_hw: tuple[int, int]
) -> tuple[float, ...]:
    """Return x, y, width and height of a square about masks and prompts, inside the image."""
    corners: list[tuple[float, float]] = []
    for mask in masks:
        y, x = np.nonzero(mask)
        if len(x):
            corners += [(float(x.min()), float(y.min())), (x.max() + 1.0, y.max() + 1.0)]
    for row in prompts:
        box, points = prompt_marks(row)
        corners += [(box[0], box[1]), (box[0] + box[2], box[1] + box[3])] if box else []
        corners += [(x, y) for x, y, _ in points]
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    side = float((high - low).max()) * (1 + 2 * MARGIN) + 4
    centre = (low + high) / 2
    limits = np.array(size_hw[::-1], np.float64)
    extent = np.minimum(side, limits)
    start = np.clip(centre - extent / 2, 0, limits - extent)
    return tuple(round(float(value), 1) for value in (*start, *extent))


def outline_of(mask: Mask, width: float) -> str:
    """Return the SVG path of a mask's contours, for a view of `width` pixels."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    tolerance = 0.5 * width / PANEL_PIXELS
    parts = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, tolerance, closed=True)[:, 0] + 0.5
        if len(points) == 1:  # a dot, drawn by its round line ends
            points = np.concatenate([points, points])
        text = " ".join(f"{x:g} {y:g}" for x, y in points)
        parts.append(f"M{text}Z")
    return "".join(parts)


PHOTOGRAPH_SIDE = 640
"""Longest side of a photograph in the page, in pixels."""
PHOTOGRAPH_QUALITY = 72
LARGEST_PHOTOGRAPHS = 4 * 2**20
"""Bytes of all photographs of a page; what would need more is left out."""


@dataclass(frozen=True)
class Panel:
    """One view of a photograph, in pixels of the original.

    Attributes:
        title: above it.
        view: x, y, width, height of what is shown.
        target: SVG path of the target.
        mask: SVG path of the predicted mask, "" where there is none.
        box: x, y, width, height of the prompt's box, () where it has none.
        points: x, y and label of its points.
        frame: x, y, width, height of what the other panels show, () for none.
    """

    title: str
    view: tuple[float, ...]
    target: str
    mask: str = ""
    box: tuple[float, ...] = ()
    points: tuple[tuple[float, float, int], ...] = ()
    frame: tuple[float, ...] = ()


@dataclass(frozen=True)
class Exhibit:
    """One object with some of its trials.

    Attributes:
        kind: "drop", "pair" where one segmenter beats another, or "talk" for a conversation.
        photograph: key of `Gallery.photographs`.
        name: image, object and category.
        segmenters: one, or the better and the worse.
        condition: of the protocol.
        loss: IoU lost, by which exhibits are ordered; of a conversation 1 - its mean IoU.
        caption: what is seen, in words.
        panels: the whole photograph, then trials.
    """

    kind: str
    photograph: str
    name: str
    segmenters: tuple[str, ...]
    condition: str
    loss: float
    caption: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Photograph:
    """A photograph as it is shown: JPEG, and the size of the original."""

    jpeg: bytes
    width: int
    height: int


@dataclass(frozen=True)
class Gallery:
    """Exhibits of a section, worst first; `n_left_out` did not fit in."""

    exhibits: tuple[Exhibit, ...]
    n_left_out: int


class Photographs:
    """The photographs of a page, each once, within a bound on their bytes."""

    def __init__(self) -> None:
        self.shown: dict[str, Photograph] = {}
        self._n_bytes = 0

    def show(self, key: str, row: Row) -> bool:
        """Return whether a stored photograph is in the page, or still fits in and now is."""
        if key not in self.shown:
            jpeg = _reduced(row["jpeg"])
            if self._n_bytes + len(jpeg) > LARGEST_PHOTOGRAPHS:
                return False
            self._n_bytes += len(jpeg)
            self.shown[key] = Photograph(jpeg, int(row["width"]), int(row["height"]))
        return True


def _reduced(jpeg: bytes) -> bytes:
    try:
        picture: PillowImage.Image = PillowImage.open(io.BytesIO(jpeg), formats=("JPEG",))
        picture.load()
    except UNDECODABLE as error:
        raise RunError("a kept photograph is no JPEG that can be read") from error
    side = max(picture.size)
    if side > PHOTOGRAPH_SIDE:
        size = tuple(math.ceil(length * PHOTOGRAPH_SIDE / side) for length in picture.size)
        picture = picture.resize((size[0], size[1]), PillowImage.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=PHOTOGRAPH_QUALITY)
    return buffer.getvalue()


PER_CELL = 4
"""Failures of each segmenter and condition."""
PER_PAIR = 4
"""Objects of each pair of segmenters at which the first beats the second."""
PER_TALK = 4
"""Objects of each segmenter and conversation, those of the lowest mean IoU over its clicks."""
TALK_TURNS = (0, 1, 2, 3, 5, 10, 20)
"""Clicks after which an answer is shown."""
TRIALS_SHOWN = 4
PAIRED_TRIALS = 2
LARGEST_OUTLINES = 3 * 2**20
"""Bytes of all outlines of a page, likewise; each section has the same share."""
_Key = tuple[str, str, str, int]  # sample, instance, condition, trial


def gallery_of(section: Section, photographs: Photographs, *, room: int) -> Gallery:
    """Return the failures of a section that masks are kept of, worst first.

    Args:
        section: empty for a group of data sets, and where no masks are kept.
        photographs: of the page; those needed are added.
        room: bytes that its outlines may take.

    Raises:
        RunError: a file of a run cannot be read.
    """
    stored = _StoredMasks(section)
    choices = [*stored.drops(), *stored.pairs(), *stored.talks()]
    chosen = sorted(choices, key=lambda choice: -choice.loss)
    exhibits = []
    for choice in chosen:
        if photographs.show(*stored.photograph(choice)):
            try:
                exhibit = stored.exhibit(choice)
            except (LookupError, ValueError) as error:
                folders = " and ".join(str(run.folder) for run in section.stored)
                raise RunError(f"{folders}: a kept mask is not of its image: {error}") from error
            room -= sum(len(panel.target) + len(panel.mask) for panel in exhibit.panels)
            if room < 0:
                break
            exhibits.append(exhibit)
    return Gallery(tuple(exhibits), len(chosen) - len(exhibits))


@dataclass(frozen=True)
class _Choice:
    """An object and condition to be shown; `place` is the object's in `Section.objects`."""

    kind: str
    segmenters: tuple[str, ...]
    condition: str
    place: int
    loss: float


class _StoredMasks:
    """The masks and photographs that are kept of the runs of a section, with their scores."""

    def __init__(self, section: Section) -> None:
        self._objects = section.objects
        self._segmenters = section.segmenters
        self._data = section.runs[0].dataset.fingerprint
        self._conditions = [row["name"] for row in section.conditions]
        self._talks = conversations(section.conditions)
        self._levels = {row["name"]: row["level"] for row in section.conditions}
        stored = dict(zip(section.segmenters, section.stored, strict=False))
        self._masks = {name: _by_key(read_masks(run.folder)) for name, run in stored.items()}
        self._photographs = _photographs([run.folder for run in section.stored])
        self._places = {
            (row.sample_id, row.instance_id): place
            for place, row in enumerate(section.objects.itertuples())
        }
        self._means = [scores.statistics.get("miou") for scores in section.scores]  # C x O each
        self._iou = {
            name: iou_of_trials(run, self._conditions) if self._masks[name] else {}
            for name, run in stored.items()
        }

    def talks(self) -> Iterator[_Choice]:
        """Yield the objects of the lowest mean IoU over the clicks of each conversation."""
        for s, segmenter in enumerate(self._masks):
            kept = self._kept(segmenter)
            for talk in self._talks:
                turns = self._turns(talk)
                places = set.intersection(*(kept.get(name, set()) for name in turns))
                means = self._means[s]
                if means is not None:
                    of_talk = means[list(talk.places)].mean(axis=0)
                    for place in sorted(places, key=lambda place: of_talk[place])[:PER_TALK]:
                        loss = 1 - float(of_talk[place])
                        yield _Choice("talk", (segmenter,), turns[-1], place, loss)

    def _turns(self, talk: Conversation) -> list[str]:
        """Return the conditions of a conversation that are shown."""
        names = [self._conditions[place] for place in talk.places]
        last = names[-1]
        return [name for name in names if self._levels[name] in TALK_TURNS or name == last]

    def drops(self) -> Iterator[_Choice]:
        """Yield the objects that lose most, of each segmenter and condition."""
        in_talks = {self._conditions[place] for talk in self._talks for place in talk.places}
        for s, segmenter in enumerate(self._masks):
            for condition, kept in self._kept(segmenter).items():
                if condition in in_talks:
                    continue
                loss = self._loss(s, condition)
                places = [place for place in kept if loss[place] > 0]
                for place in sorted(places, key=lambda place: -loss[place])[:PER_CELL]:
                    yield _Choice("drop", (segmenter,), condition, place, float(loss[place]))

    def pairs(self) -> Iterator[_Choice]:
        """Yield the objects at which a segmenter beats another most, one condition an object."""
        for better, worse in permutations(self._masks, 2):
            mine, theirs = self._kept(better), self._kept(worse)
            best: dict[int, _Choice] = {}
            for condition in self._conditions:
                for place in mine.get(condition, set()) & theirs.get(condition, set()):
                    gain = self._mean(better, condition, place) - self._mean(
                        worse, condition, place
                    )
                    if gain > max(0, best[place].loss if place in best else 0):
                        pair = (better, worse)
                        best[place] = _Choice("pair", pair, condition, place, gain)
            yield from sorted(best.values(), key=lambda choice: -choice.loss)[:PER_PAIR]

    def photograph(self, choice: _Choice) -> tuple[str, Row]:
        sample_id = str(self._objects["sample_id"][choice.place])
        return f"{self._data}/{sample_id}", self._photographs[sample_id]

    def exhibit(self, choice: _Choice) -> Exhibit:
        row = self._objects.iloc[choice.place]
        key, photograph = self.photograph(choice)
        size_hw = int(photograph["height"]), int(photograph["width"])
        where = (str(row["sample_id"]), str(row["instance_id"]))
        masks = self._masks[choice.segmenters[0]]
        target = decode_run_lengths(masks[*where, "", TARGET_TRIAL]["counts"], size_hw)
        shown = [
            (title, self._masks[name][*where, condition, trial])
            for title, name, condition, trial in self._shown_answers(choice, where)
        ]
        decoded = [decode_run_lengths(mask["counts"], size_hw) for _, mask in shown]
        view = view_of([target, *decoded], [mask for _, mask in shown], size_hw)
        outline = outline_of(target, view[2])
        whole = (0.0, 0.0, float(size_hw[1]), float(size_hw[0]))
        panels = [Panel("photograph", whole, outline_of(target, whole[2]), frame=view)]
        for (title, mask), pixels in zip(shown, decoded, strict=True):
            panels.append(
                Panel(title, view, outline, outline_of(pixels, view[2]), *prompt_marks(mask))
            )
        image = photograph["file_name"] or f"image {where[0]}"
        words = [image, f"object {where[1]}", str(row["category"])]
        return Exhibit(
            choice.kind,
            key,
            ", ".join(word for word in words if word),
            choice.segmenters,
            choice.condition,
            choice.loss,
            self._caption(choice),
            tuple(panels),
        )

    def _shown_answers(
        self, choice: _Choice, where: tuple[str, str]
    ) -> Iterator[tuple[str, str, str, int]]:
        """Yield the title, segmenter, condition and trial of the answers that are shown."""
        if choice.kind == "talk":
            (name,) = choice.segmenters
            last = self._conditions.index(choice.condition)
            talk = next(talk for talk in self._talks if talk.places[-1] == last)
            for condition in self._turns(talk):
                clicks = "click" if self._levels[condition] == 1 else "clicks"
                value = self._iou[name][condition][choice.place, 0]
                title = f"{self._levels[condition]:g} {clicks}: IoU {100 * value:.0f}"
                yield title, name, condition, 0
            return
        for name, trial in self._shown_trials(choice, where):
            value = self._iou[name][choice.condition][choice.place, trial]
            words = [name] if choice.kind == "pair" else []
            title = ", ".join([*words, f"trial {trial + 1}: IoU {100 * value:.0f}"])
            yield title, name, choice.condition, trial

    def _shown_trials(self, choice: _Choice, where: tuple[str, str]) -> list[tuple[str, int]]:
        """Return the segmenters and trials that are shown, of those that are kept."""
        kept = [
            sorted(key[3] for key in self._masks[name] if key[:3] == (*where, choice.condition))
            for name in choice.segmenters
        ]
        if choice.kind == "pair":
            shared = [trial for trial in kept[0] if trial in kept[1]][:PAIRED_TRIALS]
            return [(name, trial) for trial in shared for name in choice.segmenters]
        (name,) = choice.segmenters
        ious = self._iou[name][choice.condition][choice.place]
        lowest = min(kept[0], key=lambda trial: float(ious[trial]))
        others = [trial for trial in kept[0] if trial != lowest][: TRIALS_SHOWN - 1]
        return [(name, trial) for trial in (lowest, *others)]

    def _caption(self, choice: _Choice) -> str:
        means = [
            100 * self._mean(name, choice.condition, choice.place) for name in choice.segmenters
        ]
        if choice.kind == "pair":
            better, worse = choice.segmenters
            return f"mean IoU {means[0]:.0f} of {better} against {means[1]:.0f} of {worse}"
        if choice.kind == "talk":
            over = 100 * (1 - choice.loss)
            return f"mean IoU over the clicks {over:.0f}, at the end {means[0]:.0f}"
        return f"loses {100 * choice.loss:.0f} points in its lowest trial; mean IoU {means[0]:.0f}"

    def _mean(self, segmenter: str, condition: str, place: int) -> float:
        means = self._means[self._segmenters.index(segmenter)]
        return math.nan if means is None else means[self._conditions.index(condition), place]

    def _loss(self, s: int, condition: str) -> Floats:
        """Return (O,) the mean of the best other condition less the lowest trial."""
        means, ious = self._means[s], self._iou[self._segmenters[s]].get(condition)
        if means is None or ious is None:
            return np.zeros(len(self._objects))
        others = np.delete(means, self._conditions.index(condition), axis=0)
        before = np.nanmax(others, axis=0) if len(others) else np.ones(len(ious))
        return np.asarray(before - np.nanmin(ious, axis=1))

    def _kept(self, segmenter: str) -> dict[str, set[int]]:
        """Return condition -> places of the objects that have scores and kept masks."""
        found: dict[str, set[int]] = {}
        for sample_id, instance_id, condition, trial in self._masks[segmenter]:
            place = self._places.get((sample_id, instance_id))
            if trial != TARGET_TRIAL and place is not None and sample_id in self._photographs:
                found.setdefault(condition, set()).add(place)
        return found


def _by_key(masks: pd.DataFrame) -> dict[_Key, Row]:
    rows = masks.to_dict("records")
    return {
        (row["sample_id"], row["instance_id"], row["condition"], row["trial"]): row for row in rows
    }


def _photographs(folders: Sequence[Path]) -> dict[str, Row]:
    """Return the photographs of all runs by sample id."""
    if not folders:
        return {}
    table = pd.concat([read_photographs(folder) for folder in folders], ignore_index=True)
    return {row["sample_id"]: row for row in table.to_dict("records")}
