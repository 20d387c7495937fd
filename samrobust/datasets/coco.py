"""MS-COCO folders (`ROOT/<split>/`, `ROOT/annotations/instances_<split>.json`) and run lengths."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco

from samrobust.datasets.images import files_fingerprint, leaves_root, read_image
from samrobust.errors import DatasetError
from samrobust.files import shown
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
MOST_CONTOUR = 2**22
"""Length of a mask's polygons in pixels; pycocotools needs some 80 bytes for each."""
FARTHEST = 1e8
"""Coordinate of a polygon; pycocotools counts in fifths of a pixel, in 32 bits."""
MOST_MASK_BYTES = 2**32
"""Of all objects of an image, a byte a pixel."""

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
        if options.root is None or not options.split:
            raise DatasetError(f"coco needs --data-root and --split: {_WANTED}")
        self._folder = options.root / options.split
        self._json = options.root / "annotations" / f"instances_{options.split}.json"
        if not self._folder.is_dir():
            raise DatasetError(f"{self._folder}: there is no such folder; wanted are {_WANTED}")
        content = self._read()
        try:
            self._load(json.loads(content))
        except _UNREADABLE as error:
            raise DatasetError(f"{self._json}: is no COCO instance file: {error!r}") from error
        if not self._objects:
            raise DatasetError(f"{self._json}: no image has an object")
        files = [self._folder / self._images[image_id].name for image_id in sorted(self._objects)]
        digest = hashlib.sha256(content + files_fingerprint(files).encode()).hexdigest()[:16]
        self.info = DatasetInfo("coco", options.split, digest, options.root.resolve().name)

    def ids(self) -> list[str]:
        """Return the ids of images with at least one object, ascending."""
        return [str(image_id) for image_id in sorted(self._objects)]

    def __getitem__(self, sample_id: str) -> Sample:
        """Return one image with its objects.

        Raises:
            DatasetError: the image cannot be read, or it or a mask is empty or of another size
                than the JSON says.
        """
        listed = self._images[int(sample_id)]
        path = self._folder / listed.name
        image = read_image(path)
        height, width = image.shape[:2]
        if listed.size_wh not in ((width, height), (None, None)):
            wanted = "x".join(map(shown, listed.size_wh))
            raise DatasetError(f"{path}: is {width}x{height}, {self._json.name} says {wanted}")
        rows = self._objects[int(sample_id)]
        if len(rows) * height * width > MOST_MASK_BYTES:
            raise DatasetError(
                f"{self._json}: {path.name} is {width}x{height} and has {len(rows)} objects, "
                f"whose masks need more than {MOST_MASK_BYTES >> 30} GiB"
            )
        instances = []
        for row in rows:
            where = f"{self._json}: annotation {row['id']} of {path.name}"
            mask = decode_mask(row["segmentation"], (height, width), where)
            category = self._categories.get(row.get("category_id", -1), "")
            instances.append(Instance(str(row["id"]), mask, category))
        return Sample(sample_id, image, instances)

    def _read(self) -> bytes:
        try:
            if self._json.exists() and not self._json.is_file():
                raise DatasetError(f"{self._json}: is no regular file")
            return self._json.read_bytes()
        except OSError as error:
            raise DatasetError(
                f"{self._json}: cannot be read: {error.strerror}; wanted are {_WANTED}"
            ) from error

    def _load(self, table: dict[str, Any]) -> None:
        """Keep what is needed of the JSON, each part looked at once so that it fails here."""
        self._images: dict[int, _Listed] = {}
        for row in table["images"]:
            size_wh = row.get("width"), row.get("height")
            self._images[int(row["id"])] = _Listed(_inside_root(row["file_name"]), size_wh)
        self._categories = {row["id"]: str(row["name"]) for row in table.get("categories", [])}
        self._objects: dict[int, list[dict[str, Any]]] = {}
        drawn = [row for row in table["annotations"] if not row.get("iscrowd", 0)]
        if len({int(row["id"]) for row in drawn}) < len(drawn):
            raise ValueError("an annotation id stands there twice")
        for row in sorted(drawn, key=lambda row: int(row["id"])):
            image_id = int(row["image_id"])
            if image_id not in self._images:
                raise ValueError(f"it annotates image {image_id}, which it does not list")
            if "segmentation" not in row:
                raise KeyError("segmentation")
            hash(row.get("category_id"))  # it will be looked up: a list would fail in mid-run
            self._objects.setdefault(image_id, []).append(row)


@dataclass(frozen=True)
class _Listed:
    name: str
    size_wh: tuple[int | None, int | None]


def build_coco(options: DatasetOptions) -> CocoDataset:
    """Return the split of a COCO folder that the options name."""
    return CocoDataset(options)


def decode_mask(
    segmentation: list[Any] | dict[str, Any], size_hw: tuple[int, int], where: str
) -> Mask:
    """Return (H, W) bool of polygons, of uncompressed RLE or of compressed RLE.

    Args:
        segmentation: as in COCO's JSON.
        size_hw: of the image.
        where: the beginning of the message when it fails.

    Raises:
        DatasetError: it is none of these, of another size, or empty.
    """
    try:
        decoded: Mask = coco.decode(_coded(segmentation, size_hw)).astype(np.bool_)
    except _UNREADABLE as error:
        raise DatasetError(f"{where}: the segmentation cannot be decoded: {error}") from error
    if not decoded.any():
        raise DatasetError(f"{where}: the mask is empty")
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
        return coco.merge(coco.frPyObjects(segmentation, height, width))
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

    Raises:
        ValueError: one is no polygon, lies too far away, or all are too long.
    """
    length = 0.0
    for polygon in polygons:
        numbers = np.asarray(polygon)
        is_list = numbers.ndim == 1 and numbers.dtype.kind in "if"
        if not is_list or numbers.size < 6 or numbers.size % 2:
            raise ValueError("a polygon is a list of x and y of at least three points")
        xy = numbers.astype(np.float64).reshape(-1, 2)
        if not (abs(xy) <= FARTHEST).all():
            raise ValueError(f"a polygon is a list of x and y of at most {FARTHEST:.0f} pixels")
        length += (1 + abs(xy - np.roll(xy, 1, axis=0)).max(axis=1)).sum()
    if length > MOST_CONTOUR:
        raise ValueError(f"its polygons are {length:.0f} pixels long, more than {MOST_CONTOUR}")
