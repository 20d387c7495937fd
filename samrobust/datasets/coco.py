"""MS-COCO folders (`ROOT/<split>/`, `ROOT/annotations/instances_<split>.json`) and run lengths."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from samrobust.datasets import COCO_SPLITS, changed_settings
from samrobust.datasets.images import files_fingerprint, read_image, root_name
from samrobust.errors import DatasetError, NoObjectError
from samrobust.files import leaves_root, shown
from samrobust.registry import known
from samrobust.types import DatasetInfo, DatasetOptions, Instance, Mask, Sample

_FIRST, _LAST = ord("0"), ord("o")
"""Of the 64 characters that run lengths are written in."""
_MOST_BITS = 35
"""Of a run length: enough for any image; text that goes on and on is cut short here."""


def encode_mask(mask: Mask) -> bytes:
    """Return the run lengths of a (H, W) bool mask, as COCO's `counts`."""
    counts: bytes = coco.encode(np.asfortranarray(mask, np.uint8))["counts"]
    return counts


def decode_run_lengths(counts: bytes, size_hw: tuple[int, int]) -> Mask:
    """Return the (H, W) bool mask of run lengths as `encode_mask` makes them.

    Raises:
        ValueError: they do not add up to the size.
    """
    check_runs(run_lengths(counts), size_hw)
    mask: Mask = coco.decode({"counts": counts, "size": list(size_hw)}).astype(np.bool_)
    return mask


def run_lengths(counts: bytes) -> list[int]:
    """Return the run lengths of COCO's compressed RLE.

    Five bits a character, lowest first, a sixth says that more follow, the last sets the sign; from
    the third run on, differences to the run before the last (pycocotools, `common/maskApi.c`).

    Raises:
        ValueError: a character is none of the 64, or a run is longer than any image.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in counts:
        if not _FIRST <= character <= _LAST or shift > _MOST_BITS:
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
    """Check that pycocotools, which trusts them, writes nothing beyond a mask.

    Raises:
        ValueError: one is no number of pixels, or they do not add up to the size.
    """
    numbers = [run for run in runs if type(run) is int and run >= 0]
    if len(numbers) < len(runs) or sum(numbers) != size_hw[0] * size_hw[1]:
        raise ValueError("the run lengths do not add up to the size of the image")


_WANTED = (
    "ROOT/<split>/*.jpg and ROOT/annotations/instances_<split>.json with --data-root ROOT; "
    "get MS-COCO 2017 at cocodataset.org (Download: val2017 images, train/val annotations)"
)
MAX_CONTOUR = 2**22
"""Length of a mask's polygons in pixels; pycocotools needs some 80 bytes for each."""
MAX_COORDINATE = 1e8
"""Coordinate of a polygon; pycocotools counts in fifths of a pixel, in 32 bits."""
MAX_MASK_BYTES = 2**32
"""Of all objects of an image, a byte a pixel."""

LEAST_NUMBERS = 6
"""Of a polygon: x and y of three points."""
MAX_DIGITS = 18
"""Of an id as text."""
_OTHER_KINDS = {
    "caption": "captions",
    "segments_info": "panoptic segmentations",
    "keypoints": "keypoints without segmentations",
}
"""A key that annotations of other JSON files of MS-COCO have -> what these are."""
_UNREADABLE = (
    AttributeError,
    IndexError,
    KeyError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What JSON of another shape than COCO's makes of looking into it."""


class CocoDataset:
    """Images with the objects that an instance file draws; crowds are left out.

    Sample ids are COCO image ids, in ascending order; instance ids are annotation ids. Images
    without an object are left out.

    Raises:
        DatasetError: the folder or the JSON is missing, or the JSON is not an instance file.
    """

    def __init__(self, options: DatasetOptions) -> None:
        self._options = options
        self._folder, self._json, wanted = _places(options)
        if not self._folder.is_dir():
            raise DatasetError(f"{self._folder}: there is no such folder; wanted are {wanted}")
        content = self._read(wanted)
        try:
            table = json.loads(content.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{self._json}: is not JSON: {error}") from error
        try:
            self._load(table)
        except _UNREADABLE as error:
            raise DatasetError(f"{self._json}: is no COCO instance file: {error}") from error
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
            DatasetError: the image cannot be read, or it or a mask is of another size than the JSON
                says.
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
                f"whose masks need more than {MAX_MASK_BYTES >> 30} GiB"
            )
        instances, left_out = [], []
        for number, row in objects.items():
            where = f"{self._json}: annotation {number} of {path.name}"
            mask = decode_mask(row["segmentation"], (height, width), where)
            if not mask.any():
                left_out.append(f"{where}: the mask has no area")
            elif np.count_nonzero(mask) >= self._options.min_area:
                instances.append(Instance(str(number), mask, self._category(row)))
        if left_out and self._options.strict:
            raise DatasetError(left_out[0])
        if not instances:
            reason = left_out[0] if left_out else f"{path}: no object has --min-area pixels"
            raise NoObjectError(reason)
        return Sample(sample_id, image, instances, left_out=tuple(left_out))

    def _path(self, image_id: int) -> Path:
        """Return the file of an image: in the folder of the split, or where its address says.

        LVIS's validation images are some of MS-COCO's training and validation images.
        """
        listed = self._images[image_id]
        path = self._folder / listed.name
        if listed.folder and self._options.root is not None and not path.exists():
            return self._options.root / listed.folder / listed.name
        return path

    def _category(self, row: Mapping[str, Any]) -> str:
        return self._categories.get(row.get("category_id", -1), "")

    def _read(self, wanted: str) -> bytes:
        try:
            if self._json.exists() and not self._json.is_file():
                raise DatasetError(f"{self._json}: is no regular file")
            return self._json.read_bytes()
        except OSError as error:
            raise DatasetError(
                f"{self._json}: cannot be read: {error.strerror}; wanted are {wanted}"
            ) from error

    def _load(self, table: Any) -> None:  # noqa: ANN401
        """Keep what is needed of the JSON, each part looked at once so that it fails here."""
        _check_kind(table)
        self._images: dict[int, _Listed] = {}
        for place, row in enumerate(table["images"]):
            number = _whole_id(row.get("id"), f"image {place + 1}")
            if number in self._images:
                raise ValueError(f"two images have the id {shown(row['id'])}")
            self._images[number] = _listed(row, number)
        self._categories = {row["id"]: str(row["name"]) for row in table.get("categories", [])}
        for name in self._options.categories:
            known(name, self._categories.values(), kind="category")
        self.n_crowds = 0
        found: dict[int, Mapping[str, Any]] = {}
        for place, row in enumerate(table["annotations"]):
            number = _whole_id(row.get("id"), f"annotation {place + 1}")
            if number in found:
                raise ValueError(f"two annotations have the id {shown(row['id'])}")
            found[number] = row
        self._objects: dict[int, dict[int, Mapping[str, Any]]] = {}
        for number in sorted(found):
            self._add(number, found[number])

    def _add(self, number: int, row: Mapping[str, Any]) -> None:
        """Keep an annotation that is no crowd and of a category that is wanted."""
        image_id = _whole_id(row.get("image_id"), f"annotation {number}: its image")
        if image_id not in self._images:
            raise ValueError(f"annotation {number} is of image {image_id}, which it does not list")
        crowd = row.get("iscrowd", 0)
        if not isinstance(crowd, int) or crowd not in (0, 1):
            raise ValueError(f"annotation {number}: iscrowd must be 0 or 1, got {shown(crowd)}")
        if row.get("segmentation") is None:
            raise ValueError(f"annotation {number} has no segmentation")
        hash(row.get("category_id"))  # it will be looked up: a list would fail in mid-run
        if crowd:
            self.n_crowds += 1
        elif not self._options.categories or self._category(row) in self._options.categories:
            self._objects.setdefault(image_id, {})[number] = row

    def _check_taken(self) -> None:
        if not self._objects:
            of = f" of {', '.join(self._options.categories)}" if self._options.categories else ""
            raise DatasetError(f"{self._json}: no image has an object{of}")

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what is left out, one line each."""
        if not self.n_crowds:
            return ()
        return (f"{self._json}: {self.n_crowds} crowds (iscrowd 1) are left out",)


@dataclass(frozen=True)
class _Listed:
    """An image as the JSON lists it: its file below `folder`, and its size where that is said."""

    name: str
    folder: str
    size_hw: tuple[int, int] | None


def _places(options: DatasetOptions) -> tuple[Path, Path, str]:
    """Return folder of the images, file of the annotations, and what is wanted, for messages."""
    if options.images is not None or options.annotations is not None:
        wanted = "--images FOLDER and --annotations FILE, of your own data"
        if options.images is None or options.annotations is None or options.root is not None:
            raise DatasetError(f"coco needs {wanted}, both and without --data-root")
        return options.images, options.annotations, wanted
    if options.root is None or not options.split:
        raise DatasetError(
            f"coco needs --data-root and --split: {_WANTED}; or --images and --annotations"
        )
    own = f"ROOT/{options.split}/ and ROOT/annotations/instances_{options.split}.json"
    wanted = _WANTED if options.split in COCO_SPLITS else f"{own} with --data-root ROOT"
    file = options.root / "annotations" / f"instances_{options.split}.json"
    return options.root / options.split, file, wanted


def _check_kind(table: Any) -> None:  # noqa: ANN401
    """Raise a ValueError that says what a JSON file is where it is no instance file."""
    if not isinstance(table, dict):
        raise ValueError(f"it holds {shown(table)}, not a table of images and annotations")
    for key in ("images", "annotations"):
        if not isinstance(table.get(key), list):
            raise ValueError(f"it has no list '{key}'")
        for place, row in enumerate(table[key]):
            if not isinstance(row, dict):
                raise ValueError(f"'{key}' {place + 1} is {shown(row)}, not a table")
    for row in table["annotations"]:
        if "segmentation" in row:
            continue
        for key, kind in _OTHER_KINDS.items():
            if key in row:
                raise ValueError(f"it is a file of {kind}; wanted are instances")
        raise ValueError(f"annotation {shown(row.get('id'))} has no segmentation")


def _listed(row: Mapping[str, Any], number: int) -> _Listed:
    """Return what the JSON says of an image; LVIS gives an address in place of a file name."""
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
        wrong = f"{shown(height)} and {shown(width)}"
        raise ValueError(f"image {number}: height and width must be whole numbers, got {wrong}")
    return _Listed(_inside_root(name), _inside_root(folder), size_hw)


def _whole_id(value: object, what: str) -> int:
    """Return an id: a whole number, or one as text.

    Raises:
        ValueError: it is none, or a number that only becomes whole when it is cut off.
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
    """Return the split of a COCO folder that the options name."""
    return CocoDataset(options)


def decode_mask(
    segmentation: list[Any] | dict[str, Any], size_hw: tuple[int, int], where: str
) -> Mask:
    """Return (H, W) bool of polygons, of uncompressed RLE or of compressed RLE; it may be empty.

    Args:
        segmentation: as in COCO's JSON.
        size_hw: of the image.
        where: the beginning of the message when it fails.

    Raises:
        DatasetError: it is none of these, or of another size.
    """
    try:
        decoded: Mask = coco.decode(_coded(segmentation, size_hw)).astype(np.bool_)
    except _UNREADABLE as error:
        raise DatasetError(f"{where}: the segmentation cannot be decoded: {error}") from error
    return decoded


def _inside_root(file_name: str) -> str:
    if leaves_root(file_name):
        raise ValueError(f"file name '{file_name}' leaves the data root")
    if "\0" in os.fsdecode(os.fsencode(file_name)):  # which raises where there is no such name
        raise ValueError("a file name holds a zero byte")
    return file_name


def _coded(segmentation: list[Any] | dict[str, Any], size_hw: tuple[int, int]) -> Any:  # noqa: ANN401
    """Return RLE that pycocotools decodes without reading what is not there."""
    height, width = size_hw
    if isinstance(segmentation, list):
        _check_polygons(segmentation)
        pieces = [piece for piece in segmentation if len(piece) >= LEAST_NUMBERS]
        if not pieces:
            return coco.encode(np.zeros(size_hw, np.uint8, order="F"))
        return coco.merge(coco.frPyObjects(pieces, height, width))
    if not {"size", "counts"} <= set(segmentation):
        raise ValueError("RLE has a size and counts")
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
    """Check what pycocotools, which trusts it, would need in time and memory.

    A piece of fewer than three points is allowed and has no area.

    Raises:
        ValueError: one is no polygon, lies too far away, all are too long, or in fractions of the
            image.
    """
    length, relative, whole = 0.0, bool(polygons), True
    for polygon in polygons:
        numbers = np.asarray(polygon)
        is_list = numbers.ndim == 1 and numbers.dtype.kind in "if"
        if not is_list or numbers.size % 2:
            raise ValueError("a polygon is a list of x and y of its points")
        xy = numbers.astype(np.float64).reshape(-1, 2)
        if not (abs(xy) <= MAX_COORDINATE).all():
            raise ValueError(
                f"a polygon is a list of x and y of at most {MAX_COORDINATE:.0f} pixels"
            )
        relative &= bool(((xy >= 0) & (xy <= 1)).all())
        whole &= bool((xy == np.round(xy)).all())
        length += (1 + abs(xy - np.roll(xy, 1, axis=0)).max(axis=1)).sum()
    if relative and not whole:
        raise ValueError("its coordinates lie between 0 and 1; wanted are pixels")
    if length > MAX_CONTOUR:
        raise ValueError(f"its polygons are {length:.0f} pixels long, more than {MAX_CONTOUR}")
