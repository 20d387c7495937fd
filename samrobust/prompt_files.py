"""Prompts in files: read those of people as a protocol, and write those that a protocol draws.

A file has one prompt a row, as CSV, JSON lines or Parquet:

| column | what it is |
| --- | --- |
| `image` | id of the image in the data set, or its file name |
| `instance` | id of the object in its image; "" or no column where images have one object |
| `rater` | who gave the prompt; "" or no column if that is unknown |
| `kind` | `box`, `points` or `box-points`; may be missing |
| `x0`, `y0`, `x1`, `y1` | first and last column and row of the box |
| `box` | instead: four numbers, corners or x, y, width, height |
| `x`, `y`, `w`, `h` | instead: left, top, width and height of the box |
| `points`, `labels` | lists of x, y and of 1 (foreground) or 0 (background) |
| `x`, `y`, `label` | instead: one point |
| `condition`, `trial` | how prompts are grouped and ordered; by their kind, as they stand |
| `width`, `height` | of the image as it was shown; prompts are enlarged to its file |
| `hash` | of the prompt; checked |

In CSV, lists are written as in JSON. Other columns are passed over. Besides, the folder of
rectangle masks of BREPS and the `clicks.csv` of RClicks are read (docs/sources/peers.md 1.1, 1.2).
"""

import csv
import hashlib
import io
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from samrobust.datasets.folder import targets_of
from samrobust.datasets.images import read_mask
from samrobust.degradations.human import HumanBox
from samrobust.errors import DatasetError, NoObjectError, PromptError
from samrobust.files import convert, errors_at, shown
from samrobust.geometry import mask_to_box
from samrobust.registry import known
from samrobust.seeding import prompt_hash
from samrobust.types import (
    FOREGROUND,
    Condition,
    Dataset,
    Detection,
    Detections,
    EvalProtocol,
    Prompt,
    PromptKind,
    RecordedPrompt,
    Recording,
    image_key,
)

BoxFormat = Literal["auto", "corners", "xywh"]
"""How the column `box` is written; "auto" tells it from the numbers."""
ENDINGS = (".csv", ".jsonl", ".parquet")
METRICS = ("iou", "boundary-iou", "stability")
BETWEEN_RATERS = "agreement"
"""Metric of masks from prompts of several raters: how alike they are."""
LOCAL = "human-box-p25"
"""Condition that is added for several raters: boxes that are nearer than three of four of people's.
The agreement of its masks is compared with that between raters."""
LOCAL_TRIALS = 20
AGAIN = "-again"
"""Ends the condition of a rater's further prompts for an object: masks of one condition are then
all of different raters."""
MAX_PROMPTS = 1_000
"""Of an object in one condition: their masks are in memory at once."""
MAX_IMAGES_READ = 20
"""To tell corners from widths by the sizes of images."""
MAX_BYTES = 2**30
"""Of a file."""
_BATCH = 10_000
"""Rows that are written together."""


def load_prompts(
    path: str | Path, dataset: Dataset | None = None, *, boxes: BoxFormat = "auto"
) -> EvalProtocol:
    """Return the prompts of a file as a protocol, which `samrobust.evaluate` takes as any other.

    Its conditions are those of the column `condition`, or the kinds of prompt: "box", "points-3".
    With several raters, masks are also scored for their agreement, and boxes at the 25th human
    percentile are drawn beside theirs.

    Args:
        path: CSV, JSON lines or Parquet, BREPS' folder of masks or RClicks' `clicks.csv`.
        dataset: of the prompts; its images are read only to tell the format of boxes.
        boxes: how the column `box` is written.

    Raises:
        PromptError: the file cannot be read, a row is wrong, or the format of boxes cannot be told.
    """
    path = Path(path)
    digest, rows = _breps(path) if path.is_dir() else _table(path)
    if not rows:
        raise PromptError(f"{path}: has no prompts")
    box_format = _box_format(path, rows, dataset, boxes)
    grouped: dict[str, dict[str, list[tuple[int, RecordedPrompt]]]] = defaultdict(dict)
    kinds: dict[str, _Structure] = {}
    counts: Counter[tuple[str, ...]] = Counter()
    n_raters = len({row.rater for _, row in rows} - {""})
    for place, row in rows:
        with errors_at(f"{path}, {place}", PromptError):
            prompt = _prompt(row, box_format)
            recorded = RecordedPrompt(row.instance, prompt, row.rater, row.size_wh, place)
            structure = prompt.box is not None, len(prompt.points)
            name = row.condition or _name(structure)
            image = image_key(row.image)
            given = name, image, row.instance, row.rater
            counts[given] += 1
            if n_raters > 1 and row.rater and counts[given] > 1:
                name += AGAIN
            if kinds.setdefault(name, structure) != structure:
                raise ValueError(
                    f"condition '{name}' has {_name(kinds[name])} and {_name(structure)}; one "
                    "condition has one kind of prompts"
                )
            counts[name, image, row.instance] += 1
            if counts[name, image, row.instance] > MAX_PROMPTS:
                raise ValueError(f"an object has more than {MAX_PROMPTS} prompts")
            order = row.trial if row.trial is not None else counts[name, image, row.instance]
            grouped[name].setdefault(image, []).append((order, recorded))
    conditions = []
    for name, by_image in grouped.items():
        has_box, n_points = kinds[name]
        gives: set[PromptKind] = {"box"} if has_box else set()
        gives |= {"points"} if n_points else set()
        recording = Recording(
            path.name,
            digest,
            box_format,
            frozenset(gives),
            {
                image: tuple(each for _, each in sorted(prompts, key=lambda pair: pair[0]))
                for image, prompts in by_image.items()
            },
        )
        trials = max(n for key, n in counts.items() if len(key) == 3 and key[0] == name)
        conditions.append(Condition(name, recording, "recorded", trials))
    metrics = (*METRICS, BETWEEN_RATERS) if n_raters > 1 else METRICS
    if n_raters > 1 and any(each.degradation.gives == {"box"} for each in conditions):
        conditions.append(Condition(LOCAL, HumanBox(25), "human-box", LOCAL_TRIALS))
    return EvalProtocol(
        name=path.name if path.is_dir() else path.stem,
        version=1,
        summary=f"the prompts of {path.name}",
        source=path.name,
        seed=0,
        metrics=metrics,
        selection="single",
        conditions=tuple(conditions),
    )


def load_detections(path: str | Path, dataset: Dataset) -> EvalProtocol:
    """Return the boxes of a detector as a protocol.

    All of them give masks, for average precision; those that match an object are scored as any
    other prompt.

    Args:
        path: results of COCO's format, JSON: a list of `image_id`, `category_id`, `bbox` (x, y,
            width and height) and `score`.
        dataset: of COCO's format.

    Raises:
        PromptError: the file cannot be read, a row is wrong, or the data set is of another format.
    """
    path = Path(path)
    annotated = targets_of(dataset)
    if annotated is None:
        raise PromptError(
            f"{path}: boxes of a detector need a data set of COCO's format, got {dataset.info.key}"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PromptError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        rows = msgspec.json.decode(content, type=list[DetectionRow])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise PromptError(f"{path}: is not a list of detections: {error}") from error
    by_image: dict[str, list[Detection]] = defaultdict(list)
    for number, row in enumerate(rows, start=1):
        place = f"row {number}"
        x, y, w, h = row.bbox
        if not (math.isfinite(sum(row.bbox)) and math.isfinite(row.score) and w >= 0 and h >= 0):
            raise PromptError(
                f"{path}, {place}: bbox must be x, y, width and height, and score a number, got "
                f"{shown(row.bbox)} and {row.score}"
            )
        box = np.array([x, y, x + max(w - 1, 0), y + max(h - 1, 0)], np.float32)
        detection = Detection(
            "",
            Prompt(box),
            place=place,
            category_id=row.category_id,
            score=row.score,
            bbox=row.bbox,
        )
        by_image[image_key(str(row.image_id))].append(detection)
    if not by_image:
        raise PromptError(f"{path}: has no detections")
    detections = Detections(
        path.name,
        hashlib.sha256(content).hexdigest(),
        "xywh",
        frozenset({"box"}),
        {image: tuple(found) for image, found in by_image.items()},
        categories=annotated.categories,
    )
    return EvalProtocol(
        name=path.stem,
        version=1,
        summary=f"the detections of {path.name}",
        source=path.name,
        seed=0,
        metrics=("iou", "boundary-iou"),
        selection="single",
        conditions=(Condition("detected-box", detections, "recorded", 1),),
    )


class DetectionRow(msgspec.Struct):
    """One row of results of COCO's format; other keys are passed over."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True)
class PromptRow:
    """One row of a file of prompts; the module says what its columns are."""

    image: str
    instance: str = ""
    rater: str = ""
    condition: str = ""
    trial: int | None = None
    kind: str = ""
    x0: float | None = None
    y0: float | None = None
    x1: float | None = None
    y1: float | None = None
    box: tuple[float, float, float, float] | None = None
    x: float | None = None
    y: float | None = None
    w: float | None = None
    h: float | None = None
    label: int | None = None
    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    width: int | None = None
    height: int | None = None
    hash: str = ""

    @property
    def size_wh(self) -> tuple[int, int] | None:
        """Return the size of the image as it was shown, None if it is not given."""
        if self.width is None or self.height is None:
            return None
        return self.width, self.height


@dataclass(frozen=True)
class _Click:
    """The columns of RClicks' `clicks.csv` that are read."""

    image_stem: str
    click_type: str
    x: float
    y: float
    w: int
    h: int
    object_stem: str = ""
    device: str = ""


WRITTEN = (
    *("image", "instance", "condition", "trial", "rater", "kind", "x0", "y0", "x1", "y1"),
    *("points", "labels", "width", "height", "hash"),
)
"""Columns of a file that is written."""
_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("image", "instance", "condition")),
        ("trial", pa.int32()),
        *((name, pa.string()) for name in ("rater", "kind")),
        *((name, pa.float32()) for name in ("x0", "y0", "x1", "y1")),
        ("points", pa.list_(pa.list_(pa.float32()))),
        ("labels", pa.list_(pa.int32())),
        *((name, pa.int32()) for name in ("width", "height")),
        ("hash", pa.string()),
    ]
)
_Structure = tuple[bool, int]
"""Of a prompt: whether it has a box, and its number of points."""
_Rows = list[tuple[str, PromptRow]]
"""Rows, each with its place in the file."""


def written_row(prompt: Prompt, **names: str | int) -> dict[str, Any]:
    """Return a row of a file, with the columns of `WRITTEN`.

    Args:
        prompt: in pixels of the image.
        names: the columns that say what it is of.
    """
    box = [None] * 4 if prompt.box is None else prompt.box.tolist()
    return {
        "rater": "",
        **names,
        "kind": _name((prompt.box is not None, len(prompt.points))).rstrip("-0123456789"),
        **dict(zip(("x0", "y0", "x1", "y1"), box, strict=True)),
        "points": prompt.points.tolist(),
        "labels": prompt.labels.tolist(),
        "hash": prompt_hash(prompt),
    }


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write prompts, as what the ending of the path says, and return their number.

    Args:
        path: of a .csv, .jsonl or .parquet file; its old content stays until all is written.
        rows: from `written_row`.

    Raises:
        PromptError: the file cannot be written, or has another ending.
    """
    known(path.suffix, ENDINGS, kind="ending of a file of prompts")
    temporary = path.with_name(path.name + ".tmp")
    n_rows = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            left = iter(rows)
            table = pq.ParquetWriter(file, _SCHEMA) if path.suffix == ".parquet" else None
            if path.suffix == ".csv":
                file.write((",".join(WRITTEN) + "\n").encode())
            while batch := list(islice(left, _BATCH)):
                n_rows += len(batch)
                if table is not None:
                    table.write_table(pa.Table.from_pylist(batch, _SCHEMA))
                elif path.suffix == ".csv":
                    file.write(_csv(batch).encode())
                else:
                    lines = ({name: row[name] for name in WRITTEN} for row in batch)
                    file.writelines(msgspec.json.encode(line) + b"\n" for line in lines)
            if table is not None:
                table.close()
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise PromptError(f"{path}: cannot be written: {error.strerror}") from error
    return n_rows


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        cells = (row[name] for name in WRITTEN)
        writer.writerow(
            msgspec.json.encode(cell).decode() if isinstance(cell, list) else cell for cell in cells
        )
    return text.getvalue()


def read_rows(path: Path, texts: Sequence[str]) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    """Return the SHA-256 of a table, and its rows, each with its place in the file.

    Args:
        path: CSV, JSON lines or Parquet.
        texts: columns that are texts: a number there is read as one.

    Raises:
        PromptError: the file cannot be read.
    """
    known(path.suffix, ENDINGS, kind=f"ending of {path.name}: a table has one;")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PromptError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise PromptError(f"{path}: is larger than {MAX_BYTES:,} bytes")
    reader = {".csv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}[path.suffix]
    rows = []
    with errors_at(str(path), PromptError):
        for place, row in reader(content, frozenset(texts)):
            there = {name: value for name, value in row.items() if value is not None}
            for name in texts:
                if type(there.get(name)) is int:
                    there[name] = str(there[name])
            rows.append((place, there))
    return hashlib.sha256(content).hexdigest(), rows


def _csv_rows(content: bytes, texts: frozenset[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    try:
        for row in reader:
            place = f"line {reader.line_num}"
            if None in row or None in row.values():
                raise ValueError(f"{place} has not as many cells as the first line")
            yield (
                place,
                {
                    name: cell if name in texts else _cell(cell, f"{place}, {name}", name)
                    for name, cell in row.items()
                    if cell
                },
            )
    except csv.Error as error:
        raise ValueError(f"is not CSV: {error}") from error


def _cell(cell: str, place: str, name: str) -> Any:  # noqa: ANN401
    """Return a number or list of CSV; the text of columns that nobody reads stays."""
    try:
        return msgspec.json.decode(cell)
    except ValueError as error:
        if name in _NUMBERS:
            raise ValueError(f"{place} is not a number or list: {shown(cell)}") from error
        return cell


def _json_rows(content: bytes, _texts: frozenset[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not a JSON object")
        yield f"line {number}", row


def _parquet_rows(content: bytes, _texts: frozenset[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        table = pq.read_table(pa.BufferReader(content), use_threads=False)
    except (ValueError, pa.ArrowException) as error:
        raise ValueError(f"is not Parquet: {error}") from error
    for number, row in enumerate(table.to_pylist(), start=1):
        yield f"row {number}", row


_TEXTS = ("image", "instance", "rater", "condition", "kind", "hash")
_CLICK_TEXTS = ("image_stem", "click_type", "object_stem", "device")
_NUMBERS = frozenset(field.name for field in fields(PromptRow)) - {*_TEXTS}
_BREPS_MASK = re.compile(r"(.+)_1_(.+)\.png", re.DOTALL)


def _table(path: Path) -> tuple[str, _Rows]:
    """Return the SHA-256 and the prompts of a table."""
    digest, rows = read_rows(path, (*_TEXTS, *_CLICK_TEXTS))
    if rows and {"image_stem", "click_type"} <= rows[0][1].keys():
        clicks = [(place, _converted(row, _Click, f"{path}, {place}")) for place, row in rows]
        return digest, [(place, _of_click(row)) for place, row in clicks if _is_first(row)]
    return digest, [(place, _converted(row, PromptRow, f"{path}, {place}")) for place, row in rows]


def _converted(row: Mapping[str, Any], kind: type[Any], place: str) -> Any:  # noqa: ANN401
    with errors_at(place, PromptError):
        return convert(row, kind, where="the row", ignore_unknown=True)


def _is_first(click: _Click) -> bool:
    """Return whether a click is a prompt of its own; later ones correct a mask that is not here."""
    return click.click_type == "first"


def _of_click(click: _Click) -> PromptRow:
    condition = f"first-click-{click.device}" if click.device else "first-click"
    return PromptRow(
        click.image_stem,
        "" if click.object_stem == click.image_stem else click.object_stem,
        condition=condition,
        x=click.x,
        y=click.y,
        label=FOREGROUND,
        width=click.w,
        height=click.h,
    )


def _breps(folder: Path) -> tuple[str, _Rows]:
    """Return a SHA-256 of names and contents, and the boxes, of BREPS' folder of rectangle masks.

    A file is `<image>_1_<rater>.png`; the box is that of its pixels above 0.
    """
    rows: _Rows = []
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.png")):
        match = _BREPS_MASK.fullmatch(path.name)
        if match is None:
            raise PromptError(f"{path}: a mask of a box must be named <image>_1_<rater>.png")
        try:
            mask = read_mask(path)
            digest.update(os.fsencode(path.name) + b"\0" + path.read_bytes())
        except (DatasetError, OSError) as error:
            raise PromptError(str(error)) from error
        x0, y0, x1, y1 = mask_to_box(mask).tolist()
        image, rater = match.groups()
        height, width = mask.shape
        row = PromptRow(image, rater=rater, x0=x0, y0=y0, x1=x1, y1=y1, width=width, height=height)
        rows.append((path.name, row))
    return digest.hexdigest(), rows


def _box_format(
    path: Path, rows: _Rows, dataset: Dataset | None, wanted: BoxFormat
) -> Literal["corners", "xywh"]:
    """Return how the column `box` is written.

    Raises:
        PromptError: it cannot be told.
    """
    boxed = [(row, row.box) for _, row in rows if row.box is not None]
    if wanted != "auto" or not boxed:
        return "xywh" if wanted == "xywh" else "corners"
    if any(box[2] < box[0] or box[3] < box[1] for _, box in boxed):
        return "xywh"
    sizes = _sizes([row for row, _ in boxed], dataset)
    for row, box in boxed:
        width, height = sizes.get(image_key(row.image), (np.inf, np.inf))
        if box[0] + box[2] > width or box[1] + box[3] > height:
            return "corners"
    raise PromptError(
        f"{path}: it cannot be told whether the column box has corners or x, y, width and height; "
        "give --box-format corners or --box-format xywh"
    )


def _sizes(rows: Sequence[PromptRow], dataset: Dataset | None) -> dict[str, tuple[int, int]]:
    """Return the width and height of images: as the rows say, or of the first in the data set."""
    sizes = {image_key(row.image): row.size_wh for row in rows if row.size_wh is not None}
    wanted = {image_key(row.image) for row in rows} - sizes.keys()
    ids = [] if dataset is None else [name for name in dataset.ids() if image_key(name) in wanted]
    for sample_id in ids[:MAX_IMAGES_READ]:
        try:
            height, width = dataset[sample_id].image.shape[:2]  # type: ignore[index]
        except NoObjectError:
            continue
        sizes[image_key(sample_id)] = width, height
    return sizes


def _prompt(row: PromptRow, box_format: Literal["corners", "xywh"]) -> Prompt:
    """Return the prompt of a row.

    Raises:
        ValueError: it has none, is no box, or has another kind or hash than it says.
    """
    corners = row.x0, row.y0, row.x1, row.y1
    place = row.x, row.y, row.w, row.h
    box: Sequence[float | None] | None = None
    if row.box is not None:
        box = _to_corners(row.box) if box_format == "xywh" else row.box
    elif corners != (None,) * 4:
        box = corners
    elif None not in (row.w, row.h):
        box = _to_corners(place)
    points, labels = row.points, row.labels
    if row.label is not None or (box is None and row.x is not None):
        points = ((_number(row.x, "x"), _number(row.y, "y")),)
        labels = (FOREGROUND if row.label is None else row.label,)
    array = None if box is None else np.array([_number(each, "a corner") for each in box])
    prompt = Prompt(
        None if array is None else array.astype(np.float32),
        np.array(points, np.float32).reshape(-1, 2),
        np.array(labels, np.int32),
    )
    kind = _name((prompt.box is not None, len(points))).rstrip("-0123456789")
    if row.kind not in ("", kind):
        raise ValueError(f"kind is {shown(row.kind)}, the prompt is {kind}")
    if row.hash and row.hash != prompt_hash(prompt):
        raise ValueError(
            f"the prompt was changed: its hash is {prompt_hash(prompt)}, not {row.hash}"
        )
    return prompt


def _to_corners(xywh: Sequence[float | None]) -> list[float]:
    x, y, w, h = (_number(value, "a side") for value in xywh)
    if w <= 0 or h <= 0:
        raise ValueError(f"width and height must be above 0, got {w:g} and {h:g}")
    return [x, y, x + w - 1, y + h - 1]


def _number(value: float | None, what: str) -> float:
    if value is None:
        raise ValueError(f"{what} is missing")
    return value


def _name(structure: _Structure) -> str:
    has_box, n_points = structure
    return "-".join(chain(["box"] * has_box, ["points", str(n_points)] if n_points else []))
