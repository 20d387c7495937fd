"""Data sets: images with masks, by name; the built-ins, the groups, and how others are added."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from samrobust.errors import DatasetError
from samrobust.registry import Entry, Registry
from samrobust.types import Dataset, DatasetBuilder, DatasetOptions

COCO_SPLITS = ("train2017", "val2017", "train2014", "val2014")
"""Of MS-COCO, by which its own files are told from others of its format."""
FOUR_HQ, HQSEG_44K = "four-hq", "hqseg-44k"
_HOME = (
    "HQSeg-44K: the three archives of sam-hq-team/sam-hq-training on Hugging Face "
    "(DIS5K, cascade_psp, thin_object_detection), unpacked side by side"
)
_THIN = "thin_object_detection"


@dataclass(frozen=True)
class FolderEntry(Entry):
    """A data set of an image and a mask file per sample.

    Attributes:
        name: as registered.
        images: folder of the images below the root.
        masks: folder of the masks, may be the same.
        collection: what its images belong to; training and test part have one. "" where its folder
            tells.
        group: the group that published tables average it in, "" for none.
        image_suffixes: of image files, lower case.
        mask_suffixes: of mask files, lower case.
        home: where the data set can be had.
    """

    name: str = ""
    images: str = ""
    masks: str = ""
    collection: str = ""
    group: str = ""
    image_suffixes: tuple[str, ...] = (".jpg",)
    mask_suffixes: tuple[str, ...] = (".png",)
    home: str = _HOME

    def load(self) -> Any:  # noqa: ANN401
        """Import and return the builder of this data set."""
        return partial(super().load(), self)


def _folder(
    name: str, summary: str, images: str, masks: str = "", *, collection: str, group: str
) -> FolderEntry:
    return FolderEntry(
        "samrobust.datasets.folder:FolderDataset",
        summary,
        takes=("--data-root", "--ids", "--exif"),
        name=name,
        images=images,
        masks=masks or images,
        collection=collection,
        group=group,
    )


FOLDERS: Mapping[str, FolderEntry] = {
    row.name: row
    for row in (
        FolderEntry(
            "samrobust.datasets.folder:FolderDataset",
            "your own images/ and masks/, paired by file stem; needs a root",
            takes=("--data-root", "--ids", "--labels", "--void", "--recursive", "--exif"),
            name="folder",
            images="images",
            masks="masks",
            image_suffixes=(".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"),
            mask_suffixes=(".png", ".bmp", ".tif", ".tiff"),
            home="your own files",
        ),
        _folder(
            "dis-vd",
            "DIS5K validation, 470 images; needs a root",
            "DIS5K/DIS-VD/im",
            "DIS5K/DIS-VD/gt",
            collection="DIS5K",
            group=FOUR_HQ,
        ),
        _folder(
            "coift",
            "COIFT, 280 images; needs a root",
            f"{_THIN}/COIFT/images",
            f"{_THIN}/COIFT/masks",
            collection="COIFT",
            group=FOUR_HQ,
        ),
        _folder(
            "hrsod",
            "HRSOD, 287 images; needs a root",
            f"{_THIN}/HRSOD/images",
            f"{_THIN}/HRSOD/masks_max255",
            collection="HRSOD",
            group=FOUR_HQ,
        ),
        _folder(
            "thinobject-te",
            "ThinObject-5K test, 500 images; needs a root",
            f"{_THIN}/ThinObject5K/images_test",
            f"{_THIN}/ThinObject5K/masks_test",
            collection="ThinObject-5K",
            group=FOUR_HQ,
        ),
        _folder(
            "dis-tr",
            "HQSeg-44K: DIS5K training part, 3000 images",
            "DIS5K/DIS-TR/im",
            "DIS5K/DIS-TR/gt",
            collection="DIS5K",
            group=HQSEG_44K,
        ),
        _folder(
            "thinobject-tr",
            "HQSeg-44K: ThinObject-5K training part, 4748 images",
            f"{_THIN}/ThinObject5K/images_train",
            f"{_THIN}/ThinObject5K/masks_train",
            collection="ThinObject-5K",
            group=HQSEG_44K,
        ),
        _folder(
            "fss",
            "HQSeg-44K: FSS-1000, 10000 images",
            "cascade_psp/fss_all",
            collection="FSS-1000",
            group=HQSEG_44K,
        ),
        _folder(
            "duts-tr",
            "HQSeg-44K: DUTS-TR, 10553 images",
            "cascade_psp/DUTS-TR",
            collection="DUTS",
            group=HQSEG_44K,
        ),
        _folder(
            "duts-te",
            "HQSeg-44K: DUTS-TE, 5019 images",
            "cascade_psp/DUTS-TE",
            collection="DUTS",
            group=HQSEG_44K,
        ),
        _folder(
            "ecssd",
            "HQSeg-44K: ECSSD, 1000 images",
            "cascade_psp/ecssd",
            collection="ECSSD",
            group=HQSEG_44K,
        ),
        _folder(
            "msra10k",
            "HQSeg-44K: MSRA10K, 10000 images",
            "cascade_psp/MSRA_10K",
            collection="MSRA10K",
            group=HQSEG_44K,
        ),
    )
}
"""One row per data set, as HQ-SAM's data preparation lays them out (docs/sources/hq-sam.md 1.2)."""

GROUPS: dict[str, tuple[str, ...]] = {
    group: tuple(row.name for row in FOLDERS.values() if row.group == group)
    for group in (FOUR_HQ, HQSEG_44K)
}
"""Data sets that published tables average, unweighted (docs/sources/hq-sam.md 1.2)."""

DATASETS: Registry[DatasetBuilder] = Registry(
    "dataset",
    {
        "scenes": Entry(
            "samrobust.datasets.scenes:build_scenes",
            "scenes drawn in the package, no files; split N or NxWxH (images, width, height)",
            takes=("--split", "--ids"),
        ),
        "coco": Entry(
            "samrobust.datasets.coco:build_coco",
            "MS-COCO folders and instance JSON; needs a root and a split",
            takes=(
                *("--data-root", "--split", "--ids", "--images", "--annotations"),
                *("--category", "--min-area", "--exif", "--strict"),
            ),
        ),
        **FOLDERS,
    },
    group="samrobust.datasets",
)


def open_dataset(
    name: str,
    options: DatasetOptions | None = None,
    *,
    root: str | Path | None = None,
    split: str = "",
    ids: str | Path | None = None,
) -> Dataset:
    """Return a data set, its files listed but not yet read.

    Args:
        name: as registered; `samrobust ls datasets` lists all.
        options: all that can be said of how it is read; `root` and `split` suffice for most.
        root: the folder of its files, None for a data set that needs none.
        split: part of it, as "val2017"; "" for its default.
        ids: a file with the ids of the images to take, one per line; None for all.

    Raises:
        UnknownNameError: no data set has that name.
        DatasetError: it is a group of several, or it is not there.
    """
    if name in GROUPS:
        raise DatasetError(f"{name} is a group; open each of {', '.join(GROUPS[name])}")
    options = options or DatasetOptions(None if root is None else Path(root), split)
    for field in set_fields(options):
        if not DATASETS.takes(name, option_name(field)):
            value = getattr(options, field)
            raise DatasetError(f"{name} takes no {option_name(field)}, got {value}")
    dataset = DATASETS.load(name)(options)
    if ids is None:
        return dataset

    from samrobust.datasets.folder import read_subset

    return read_subset(dataset, Path(ids))


def option_name(field: str) -> str:
    """Return the option of the command line that sets a field of `DatasetOptions`."""
    return {"root": "--data-root", "categories": "--category"}.get(
        field, f"--{field.replace('_', '-')}"
    )


def set_fields(options: DatasetOptions) -> list[str]:
    """Return the names of the fields that are not at their default."""
    return [
        field.name for field in fields(options) if getattr(options, field.name) != field.default
    ]


def changed_settings(options: DatasetOptions) -> dict[str, str]:
    """Return how files are read where that is not the default, for the manifest."""
    places = ("root", "split", "images", "annotations")
    return {name: str(getattr(options, name)) for name in set_fields(options) if name not in places}
