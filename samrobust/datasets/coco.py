"""MS-COCO folders: `ROOT/<split>/` images and `ROOT/annotations/instances_<split>.json`."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from pycocotools import mask as rle

from samrobust.datasets.files import read_image
from samrobust.errors import DatasetError
from samrobust.interfaces import DatasetOptions
from samrobust.types import DatasetInfo, Instance, Mask, Sample

_WANTED = (
    "ROOT/<split>/*.jpg and ROOT/annotations/instances_<split>.json with --data-root ROOT; "
    "get MS-COCO 2017 at cocodataset.org (Download: val2017 images, train/val annotations)"
)


class CocoDataset:
    """Images with the objects that an instance file draws; crowds are left out.

    Sample ids are COCO image ids, in ascending order; instance ids are annotation ids. Images
    without an object are left out.

    Raises:
        DatasetError: files are missing, or the JSON names an image that is not there.
    """

    def __init__(self, options: DatasetOptions) -> None:
        if options.root is None or not options.split:
            raise DatasetError(f"coco needs --data-root and --split: {_WANTED}")
        self._folder = options.root / options.split
        self._json = options.root / "annotations" / f"instances_{options.split}.json"
        if not self._folder.is_dir():
            raise DatasetError(f"{self._folder}: there is no such folder; wanted are {_WANTED}")
        content = self._read()
        self._load(content)
        digest = hashlib.sha256(content).hexdigest()[:16]
        self.info = DatasetInfo("coco", options.split, digest, options.root.resolve().name)

    def ids(self) -> list[str]:
        """Return the ids of images with at least one object, ascending."""
        return [str(image_id) for image_id in sorted(self._objects)]

    def __getitem__(self, sample_id: str) -> Sample:
        """Return one image with its objects.

        Raises:
            DatasetError: the image cannot be read, or a mask is empty or of another size.
        """
        image_id = int(sample_id)
        path = self._paths[image_id]
        image = read_image(path)
        instances = []
        for annotation in self._objects[image_id]:
            where = f"{self._json}: annotation {annotation['id']} of {path.name}"
            mask = _decode(annotation["segmentation"], image.shape[:2], where)
            if mask.shape != image.shape[:2]:
                sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (mask, image)]
                raise DatasetError(f"{where}: the mask is {sizes[0]}, the image {sizes[1]}")
            if not mask.any():
                raise DatasetError(f"{where}: the mask is empty")
            category = self._categories.get(annotation.get("category_id", -1), "")
            instances.append(Instance(str(annotation["id"]), mask, category))
        return Sample(sample_id, image, instances)

    def _read(self) -> bytes:
        try:
            return self._json.read_bytes()
        except OSError as error:
            raise DatasetError(
                f"{self._json}: cannot be read: {error.strerror}; wanted are {_WANTED}"
            ) from error

    def _load(self, content: bytes) -> None:
        try:
            table = json.loads(content)
            images = {image["id"]: image["file_name"] for image in table["images"]}
            annotations = table["annotations"]
            categories = {row["id"]: row["name"] for row in table.get("categories", [])}
            drawn = [row for row in annotations if not row.get("iscrowd", 0)]
            self._objects: dict[int, list[Mapping[str, Any]]] = {}
            for row in sorted(drawn, key=lambda row: int(row["id"])):
                self._objects.setdefault(int(row["image_id"]), []).append(row)
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{self._json}: is no COCO instance file: {error!r}") from error
        self._categories: dict[int, str] = categories
        self._paths = {image_id: self._path(images, image_id) for image_id in sorted(self._objects)}

    def _path(self, images: Mapping[int, str], image_id: int) -> Path:
        if image_id not in images:
            raise DatasetError(f"{self._json}: annotates image {image_id}, which it does not list")
        name = PurePosixPath(images[image_id])
        if name.is_absolute() or ".." in name.parts:
            raise DatasetError(f"{self._json}: file name '{name}' leaves the data root")
        return self._folder / name


def build_coco(options: DatasetOptions) -> CocoDataset:
    """Return the split of a COCO folder that the options name."""
    return CocoDataset(options)


def _decode(segmentation: list[Any] | dict[str, Any], size_hw: tuple[int, int], where: str) -> Mask:
    """Return (H, W) bool of polygons, of uncompressed RLE or of compressed RLE."""
    height, width = size_hw
    try:
        if isinstance(segmentation, list):
            if not all(len(polygon) >= 6 for polygon in segmentation):
                raise ValueError("a polygon needs at least three points")
            coded = rle.merge(rle.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):
            coded = rle.frPyObjects(segmentation, *segmentation["size"])
        else:
            coded = segmentation
        decoded: Mask = rle.decode(coded).astype(np.bool_)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise DatasetError(f"{where}: the segmentation cannot be decoded: {error!r}") from error
    return decoded
