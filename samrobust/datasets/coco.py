"""MS-COCO folders: `ROOT/<split>/` images and `ROOT/annotations/instances_<split>.json`."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from pycocotools import mask as rle

from samrobust.datasets.files import files_fingerprint, read_image
from samrobust.errors import DatasetError
from samrobust.interfaces import DatasetOptions
from samrobust.types import DatasetInfo, Instance, Mask, Sample

_WANTED = (
    "ROOT/<split>/*.jpg and ROOT/annotations/instances_<split>.json with --data-root ROOT; "
    "get MS-COCO 2017 at cocodataset.org (Download: val2017 images, train/val annotations)"
)


USUAL_WH = (640, 480)
"""Width and height of most of COCO's images, in pixels."""
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
            wanted = "x".join(map(str, listed.size_wh))
            raise DatasetError(f"{path}: is {width}x{height}, {self._json.name} says {wanted}")
        instances = []
        for row in self._objects[int(sample_id)]:
            where = f"{self._json}: annotation {row['id']} of {path.name}"
            mask = decode_mask(row["segmentation"], (height, width), where)
            category = self._categories.get(row.get("category_id", -1), "")
            instances.append(Instance(str(row["id"]), mask, category))
        return Sample(sample_id, image, instances)

    def cost(self, sample_id: str) -> float:
        """Return pixels times objects, with the encoding as one object more.

        An image whose size the JSON does not say is as large as most of COCO's.
        """
        width, height = self._images[int(sample_id)].size_wh
        if not (isinstance(width, int) and isinstance(height, int)):
            width, height = USUAL_WH
        return float(width * height * (1 + len(self._objects[int(sample_id)])))

    def _read(self) -> bytes:
        try:
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
        decoded: Mask = rle.decode(_coded(segmentation, size_hw)).astype(np.bool_)
    except _UNREADABLE as error:
        raise DatasetError(f"{where}: the segmentation cannot be decoded: {error}") from error
    if not decoded.any():
        raise DatasetError(f"{where}: the mask is empty")
    return decoded


def _inside_root(file_name: str) -> str:
    name = PurePosixPath(file_name)
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(f"file name '{name}' leaves the data root")
    return file_name


def _coded(segmentation: list[Any] | dict[str, Any], size_hw: tuple[int, int]) -> Any:  # noqa: ANN401
    """Return RLE that pycocotools decodes without reading what is not there."""
    height, width = size_hw
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if len(polygon) < 6 or len(polygon) % 2 or not np.isfinite(polygon).all():
                raise ValueError("a polygon is a list of x and y of at least three points")
        return rle.merge(rle.frPyObjects(segmentation, height, width))
    if not {"size", "counts"} <= set(segmentation):
        raise ValueError("RLE has a size and counts")
    if list(segmentation["size"]) != [height, width]:
        size = segmentation["size"]
        raise ValueError(f"the mask is {size[1]}x{size[0]}, the image {width}x{height}")
    counts = segmentation["counts"]
    runs = counts if isinstance(counts, list) else _run_lengths(counts)
    if not all(type(run) is int and run >= 0 for run in runs) or sum(runs) != height * width:
        raise ValueError("the run lengths do not add up to the size of the image")
    if isinstance(counts, list):
        return rle.frPyObjects(segmentation, height, width)
    return segmentation


def _run_lengths(text: str) -> list[int]:
    """Return the run lengths of COCO's compressed RLE.

    Five bits a character, lowest first, a sixth says that more follow, the last sets the sign; from
    the third run on, differences to the run before the last (pycocotools, `common/maskApi.c`).
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    return runs
