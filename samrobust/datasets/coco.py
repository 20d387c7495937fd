"""Data sets of MS-COCO's format, and its masks: polygons and run-length encoding (RLE)."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco

from samrobust.datasets import COCO_SPLITS, changed_settings
from samrobust.datasets.images import files_fingerprint, read_image, root_name
from samrobust.errors import DatasetError, NoObjectError
from samrobust.files import leaves_root, shown
from samrobust.registry import known
from samrobust.types import DatasetInfo, DatasetOptions, Instance, Mask, Sample, Target

_FIRST, _LAST = ord("0"), ord("o")
"""First and last of the 64 characters of compressed RLE."""
_MAX_BITS = 35
"""Of a run length: enough for any image; longer runs are refused."""


def encode_mask(mask: Mask) -> bytes:
    """Return the compressed RLE of a (H, W) bool mask, as COCO's `counts`."""
    counts: bytes = coco.encode(np.asfortranarray(mask, np.uint8))["counts"]
    return counts


def decode_run_lengths(counts: bytes, size_hw: tuple[int, int]) -> Mask:
    """Return the (H, W) bool mask of compressed RLE from `encode_mask`.

    Raises:
        ValueError: the run lengths do not add up to the size.
    """
    check_runs(run_lengths(counts), size_hw)
    mask: Mask = coco.decode({"counts": counts, "size": list(size_hw)}).astype(np.bool_)
    return mask


def run_lengths(counts: bytes) -> list[int]:
    """Return the run lengths of COCO's compressed RLE.

    A character has five bits of a number, lowest first, and a sixth that says whether more follow;
    the highest bit of a number is its sign. From the fourth run on, numbers are differences to the
    run two before (pycocotools, `common/maskApi.c`).

    Raises:
        ValueError: a character is not one of the 64, or a run is longer than any image.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in counts:
        if not _FIRST <= character <= _LAST or shift > _MAX_BITS:
            raise ValueError("counts are not run lengths")
        bits = character - _FIRST
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    if shift:
        raise ValueError("counts end within a run length")
    return runs


def check_runs(runs: Sequence[object], size_hw: tuple[int, int]) -> None:
    """Check run lengths, as pycocotools would write beyond a mask that they do not fit.

    Raises:
        ValueError: one is not a number of pixels, or they do not add up to the size.
    """
    numbers = [run for run in runs if type(run) is int and run >= 0]
    if len(numbers) < len(runs) or sum(numbers) != size_hw[0] * size_hw[1]:
        raise ValueError("the run lengths do not add up to the size of the image")


_WANTED = (
    "ROOT/<split>/*.jpg and ROOT/annotations/instances_<split>.json with --data-root ROOT; "
    "get MS-COCO 2017 at cocodataset.org (Download: val2017 images, train/val annotations)"
)
MAX_CONTOUR = 2**22
"""Length of a mask's polygons in pixels; pycocotools needs some 80 bytes per pixel."""
MAX_COORDINATE = 1e8
"""Coordinate of a polygon; pycocotools stores fifths of a pixel in 32 bits."""
MAX_MASK_BYTES = 2**32
"""Of all objects of an image, at one byte per pixel."""

MIN_NUMBERS = 6
"""Of a polygon: x and y of three points."""
MAX_DIGITS = 18
"""Of an id as text."""
_OF_LVIS = "neg_category_ids", "not_exhaustive_category_ids"
"""What LVIS says of each image; `_Listed` has them in this order."""
_OTHER_KINDS = {
    "caption": "captions",
    "segments_info": "panoptic segmentations",
    "keypoints": "keypoints without segmentations",
}
"""A key of annotations in MS-COCO's other JSON files -> what these files hold."""
_UNREADABLE = (
    AttributeError,
    IndexError,
    KeyError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)
"""Errors of reading JSON that has not COCO's structure."""


class CocoDataset:
    """Images with the objects of an instance annotation file.

    The files are `ROOT/<split>/*.jpg` and `ROOT/annotations/instances_<split>.json`, or those that
    the options name. Sample ids are COCO image ids, in ascending order; instance ids are annotation
    ids. Crowds, and images without an object, are left out.

    Raises:
        DatasetError: the folder or the JSON is missing, or the JSON is not an instance file.
    """

    def __init__(self, options: DatasetOptions) -> None:
        self._options = options
        self._folder, self._json, wanted = _places(options)
        if not self._folder.is_dir():
            raise DatasetError(f"{self._folder}: there is no such folder; needed: {wanted}")
        content = self._read(wanted)
        try:
            table = json.loads(content.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{self._json}: is not JSON: {error}") from error
        try:
            self._load(table)
        except _UNREADABLE as error:
            raise DatasetError(f"{self._json}: is not a COCO instance file: {error}") from error
        self._check_taken()
        files = [self._path(image_id) for image_id in sorted(self._objects)]
        digest = hashlib.sha256(content + files_fingerprint(files).encode()).hexdigest()[:16]
        self.info = DatasetInfo(
            "coco",
            options.split or self._json.stem,
            digest,
            root_name(options.root or self._folder),
            settings=changed_settings(options),
        )

    def ids(self) -> list[str]:
        """Return the ids of images with at least one object, ascending."""
        return [str(image_id) for image_id in sorted(self._objects)]

    def __getitem__(self, sample_id: str) -> Sample:
        """Return one image with its objects; those without area are left out, and listed.

        Raises:
            DatasetError: the image cannot be read, or the size of the image or a mask is not that
                in the JSON.
            NoObjectError: every object of the image is left out.
        """
        listed = self._images[int(sample_id)]
        path = self._path(int(sample_id))
        image = read_image(path, exif=self._options.exif, size_hw=listed.size_hw)
        height, width = image.shape[:2]
        if listed.size_hw not in ((height, width), None):
            wanted = "x".join(map(shown, reversed(listed.size_hw)))
            raise DatasetError(f"{path}: is {width}x{height}, {self._json.name} says {wanted}")
        objects = self._objects[int(sample_id)]
        if len(objects) * height * width > MAX_MASK_BYTES:
            raise DatasetError(
                f"{self._json}: {path.name} is {width}x{height} and has {len(objects)} objects, "
                f"whose masks would need more than {MAX_MASK_BYTES >> 30} GiB"
            )
        instances, left_out = [], []
        for number, row in objects.items():
            where = f"{self._json}: annotation {number} of {path.name}"
            mask = decode_mask(row["segmentation"], (height, width), where)
            if not mask.any():
                left_out.append(f"{where}: the mask has no area")
            elif np.count_nonzero(mask) >= self._options.min_area:
                category = self._category(row)
                group = self._supercategories.get(row.get("category_id", -1), "")
                instances.append(Instance(str(number), mask, category, group))
        if left_out and self._options.strict:
            raise DatasetError(left_out[0])
        if not instances:
            reason = left_out[0] if left_out else f"{path}: no object has --min-area pixels"
            raise NoObjectError(reason)
        return Sample(sample_id, image, instances, left_out=tuple(left_out), file_name=path.name)

    @property
    def categories(self) -> dict[int, str]:
        """Return the name of each category by its id."""
        return dict(self._categories)

    def targets(self, sample_id: str) -> list[Target]:
        """Return the annotations of an image, crowds too, those of no area left out.

        Raises:
            DatasetError: a mask cannot be read, or nothing says how large the image is.
        """
        listed = self._images[int(sample_id)]
        size_hw = listed.size_hw
        if size_hw is None:
            image = read_image(self._path(int(sample_id)), exif=self._options.exif, size_hw=None)
            size_hw = image.shape[0], image.shape[1]
        found = []
        rows = self._objects[int(sample_id)] | self._crowds.get(int(sample_id), {})
        for number, row in rows.items():
            where = f"{self._json}: annotation {number} of {listed.name}"
            mask = decode_mask(row["segmentation"], size_hw, where)
            if mask.any():
                area = row.get("area", np.count_nonzero(mask))
                if not isinstance(area, int | float | np.integer):
                    raise DatasetError(f"{where}: area must be a number, got {shown(area)}")
                is_crowd = bool(row.get("iscrowd", 0))
                category = int(row.get("category_id", -1))
                found.append(
                    Target(
                        str(number),
                        category,
                        float(area),
                        is_crowd,
                        encode_mask(mask),
                        size_hw,
                        self._frequencies.get(category, ""),
                        listed.negatives,
                        listed.not_exhaustive,
                    )
                )
        return found

    def _path(self, image_id: int) -> Path:
        """Return the file of an image: in the folder of images, or in that of its URL.

        LVIS's validation images are in MS-COCO's training and validation folders.
        """
        listed = self._images[image_id]
        path = self._folder / listed.name
        if listed.folder and not path.exists():
            return (self._options.root or self._folder) / listed.folder / listed.name
        return path

    def _category(self, row: Mapping[str, Any]) -> str:
        return self._categories.get(row.get("category_id", -1), "")

    def _read(self, wanted: str) -> bytes:
        try:
            if self._json.exists() and not self._json.is_file():
                raise DatasetError(f"{self._json}: is not a regular file")
            return self._json.read_bytes()
        except OSError as error:
            raise DatasetError(
                f"{self._json}: cannot be read: {error.strerror}; needed: {wanted}"
            ) from error

    def _load(self, table: Any) -> None:  # noqa: ANN401
        """Store the needed parts of the JSON; all are checked here, not when they are used."""
        _check_kind(table)
        self._images: dict[int, _Listed] = {}
        for position, row in enumerate(table["images"], start=1):
            number = _whole_id(row.get("id"), f"image {position}")
            if number in self._images:
                raise ValueError(f"two images have the id {shown(row['id'])}")
            self._images[number] = _listed(row, number)
        self._categories = {row["id"]: str(row["name"]) for row in table.get("categories", [])}
        self._supercategories = {
            row["id"]: str(row["supercategory"])
            for row in table.get("categories", [])
            if row.get("supercategory") is not None
        }
        self._frequencies = _frequencies(table)
        for name in self._options.categories:
            known(name, self._categories.values(), kind="category")
        self.n_crowds = 0
        annotations: dict[int, Mapping[str, Any]] = {}
        for position, row in enumerate(table["annotations"], start=1):
            number = _whole_id(row.get("id"), f"annotation {position}")
            if number in annotations:
                raise ValueError(f"two annotations have the id {shown(row['id'])}")
            annotations[number] = row
        self._objects: dict[int, dict[int, Mapping[str, Any]]] = {}
        self._crowds: dict[int, dict[int, Mapping[str, Any]]] = {}
        for number, row in sorted(annotations.items()):
            self._add(number, row)

    def _add(self, number: int, row: Mapping[str, Any]) -> None:
        """Add an annotation unless it is a crowd or of a category that is not used."""
        image_id = _whole_id(row.get("image_id"), f"annotation {number}: its image")
        if image_id not in self._images:
            raise ValueError(f"annotation {number} is of image {image_id}, which is not listed")
        crowd = row.get("iscrowd", 0)
        if not isinstance(crowd, int) or crowd not in (0, 1):
            raise ValueError(f"annotation {number}: iscrowd must be 0 or 1, got {shown(crowd)}")
        if row.get("segmentation") is None:
            raise ValueError(f"annotation {number} has no segmentation")
        hash(row.get("category_id"))  # a list would fail later, when it is looked up
        if crowd:
            self.n_crowds += 1
            self._crowds.setdefault(image_id, {})[number] = row
        elif not self._options.categories or self._category(row) in self._options.categories:
            self._objects.setdefault(image_id, {})[number] = row

    def _check_taken(self) -> None:
        if not self._objects:
            of = f" of {', '.join(self._options.categories)}" if self._options.categories else ""
            raise DatasetError(f"{self._json}: no image has an object{of}")

    @property
    def notes(self) -> tuple[str, ...]:
        """Return one line about what is left out, if anything is."""
        if not self.n_crowds:
            return ()
        crowds = "1 crowd" if self.n_crowds == 1 else f"{self.n_crowds} crowds"
        return (f"{self._json}: {crowds} (iscrowd 1) left out",)


@dataclass(frozen=True)
class _Listed:
    """An image as the JSON lists it: file name, folder of its URL, and size, None if missing.

    LVIS lists categories too: those that are not in it, and those not annotated exhaustively.
    """

    name: str
    folder: str
    size_hw: tuple[int, int] | None
    negatives: tuple[int, ...] = ()
    not_exhaustive: tuple[int, ...] = ()


def _places(options: DatasetOptions) -> tuple[Path, Path, str]:
    """Return the folder of images, the annotation file, and what is needed, for messages."""
    if options.images is not None or options.annotations is not None:
        wanted = "--images FOLDER and --annotations FILE, of your own data"
        if options.images is None or options.annotations is None or options.root is not None:
            raise DatasetError(f"coco needs {wanted}, both and without --data-root")
        return options.images, options.annotations, wanted
    if options.root is None or not options.split:
        raise DatasetError(
            f"coco needs --data-root and --split: {_WANTED}; or --images and --annotations"
        )
    layout = f"ROOT/{options.split}/ and ROOT/annotations/instances_{options.split}.json"
    wanted = _WANTED if options.split in COCO_SPLITS else f"{layout} with --data-root ROOT"
    file = options.root / "annotations" / f"instances_{options.split}.json"
    return options.root / options.split, file, wanted


def _check_kind(table: Any) -> None:  # noqa: ANN401
    """Raise a ValueError if a JSON file is not an instance file; the message says what it is."""
    if not isinstance(table, dict):
        raise ValueError(f"it is {shown(table)}, not an object with images and annotations")
    for key in ("images", "annotations"):
        if not isinstance(table.get(key), list):
            raise ValueError(f"it has no list '{key}'")
        for position, row in enumerate(table[key], start=1):
            if not isinstance(row, dict):
                raise ValueError(f"row {position} of '{key}' is {shown(row)}, not an object")
    for row in table["annotations"]:
        if "segmentation" in row:
            continue
        for key, kind in _OTHER_KINDS.items():
            if key in row:
                raise ValueError(f"it is a file of {kind}, not of instances")
        raise ValueError(f"annotation {shown(row.get('id'))} has no segmentation")


def _listed(row: Mapping[str, Any], number: int) -> _Listed:
    """Return an image as the JSON lists it; LVIS has a URL instead of a file name."""
    name, folder = row.get("file_name"), ""
    if name is None and isinstance(row.get("coco_url"), str):
        folder, _, name = row["coco_url"].rpartition("/")
        folder = folder.rpartition("/")[2]
    if not isinstance(name, str):
        raise ValueError(f"image {number}: file_name must be text, got {shown(name)}")
    height, width = row.get("height"), row.get("width")
    size_hw = None
    if isinstance(height, int) and isinstance(width, int):
        size_hw = height, width
    elif (height, width) != (None, None):
        size = f"{shown(height)} and {shown(width)}"
        raise ValueError(f"image {number}: height and width must be whole numbers, got {size}")
    of_lvis = (_listed_categories(row, key, number) for key in _OF_LVIS if key in row)
    return _Listed(_inside_root(name), _inside_root(folder), size_hw, *of_lvis)


def _listed_categories(row: Mapping[str, Any], key: str, number: int) -> tuple[int, ...]:
    ids = row.get(key)
    if not isinstance(ids, list):
        raise ValueError(f"image {number}: {key} must be a list of ids, got {shown(ids)}")
    return tuple(_whole_id(each, f"image {number}: {key}") for each in ids)


def _frequencies(table: Mapping[str, Any]) -> dict[int, Literal["r", "c", "f"]]:
    """Return the frequency of each category of LVIS, none of another file.

    Raises:
        ValueError: some images or categories are as LVIS has them and others are not.
    """
    if not any(key in row for row in table["images"] for key in _OF_LVIS):
        return {}
    for row in table["images"]:
        missing = [key for key in _OF_LVIS if key not in row]
        if missing:
            raise ValueError(f"image {shown(row['id'])} has no {missing[0]}, others have: see LVIS")
    for row in table.get("categories", []):
        if row.get("frequency") not in ("r", "c", "f"):
            got = shown(row.get("frequency"))
            raise ValueError(f"category {shown(row['id'])}: frequency must be r, c or f, got {got}")
    return {row["id"]: row["frequency"] for row in table.get("categories", [])}


def _whole_id(value: object, what: str) -> int:
    """Return an id that is a whole number or the text of one.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, str) and value.isascii() and str(value).isdigit():
        number = int(value) if len(value) <= MAX_DIGITS else -1
        if str(number) == value:
            return number
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"{what}: its id must be a whole number, got {shown(value)}")


def build_coco(options: DatasetOptions) -> CocoDataset:
    """Return the data set that the options name."""
    return CocoDataset(options)


def decode_mask(
    segmentation: list[Any] | dict[str, Any], size_hw: tuple[int, int], where: str
) -> Mask:
    """Return the (H, W) bool mask, which may be empty, of polygons or (un)compressed RLE.

    Args:
        segmentation: as in COCO's JSON.
        size_hw: of the image.
        where: name of the annotation in messages.

    Raises:
        DatasetError: it is none of these, or has another size.
    """
    try:
        decoded: Mask = coco.decode(_coded(segmentation, size_hw)).astype(np.bool_)
    except _UNREADABLE as error:
        raise DatasetError(f"{where}: the segmentation cannot be decoded: {error}") from error
    return decoded


def _inside_root(file_name: str) -> str:
    if leaves_root(file_name):
        raise ValueError(f"file name '{file_name}' leaves the data root")
    if "\0" in os.fsdecode(os.fsencode(file_name)):  # raises if no file can have that name
        raise ValueError("a file name has a zero byte")
    return file_name


def _coded(segmentation: list[Any] | dict[str, Any], size_hw: tuple[int, int]) -> Any:  # noqa: ANN401
    """Return checked RLE that pycocotools decodes without reading out of bounds."""
    height, width = size_hw
    if isinstance(segmentation, list):
        _check_polygons(segmentation)
        pieces = [piece for piece in segmentation if len(piece) >= MIN_NUMBERS]
        if not pieces:
            return coco.encode(np.zeros(size_hw, np.uint8, order="F"))
        return coco.merge(coco.frPyObjects(pieces, height, width))
    if not {"size", "counts"} <= set(segmentation):
        raise ValueError("RLE must have a size and counts")
    if list(segmentation["size"]) != [height, width]:
        size = segmentation["size"]
        raise ValueError(f"the mask is {size[1]}x{size[0]}, the image {width}x{height}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        check_runs(counts, size_hw)
        return coco.frPyObjects(segmentation, height, width)
    check_runs(run_lengths(counts.encode()), size_hw)
    return segmentation


def _check_polygons(polygons: Sequence[Sequence[float]]) -> None:
    """Check polygons, as pycocotools would need unbounded time and memory for some.

    A polygon of fewer than three points is allowed and has no area.

    Raises:
        ValueError: one is not a polygon or has coordinates that are too large, all together are too
            long, or they are in fractions of the image.
    """
    length, in_unit_range, are_integers = 0.0, bool(polygons), True
    for polygon in polygons:
        numbers = np.asarray(polygon)
        is_list = numbers.ndim == 1 and numbers.dtype.kind in "if"
        if not is_list or numbers.size % 2:
            raise ValueError("a polygon must be a list of x and y of its points")
        xy = numbers.astype(np.float64).reshape(-1, 2)
        if not (abs(xy) <= MAX_COORDINATE).all():
            raise ValueError(f"x and y of a polygon must be at most {MAX_COORDINATE:.0f} pixels")
        in_unit_range &= bool(((xy >= 0) & (xy <= 1)).all())
        are_integers &= bool((xy == np.round(xy)).all())
        length += (1 + abs(xy - np.roll(xy, 1, axis=0)).max(axis=1)).sum()
    if in_unit_range and not are_integers:
        raise ValueError("its coordinates are fractions of the image, must be pixels")
    if length > MAX_CONTOUR:
        raise ValueError(f"its polygons are {length:.0f} pixels long, more than {MAX_CONTOUR}")
