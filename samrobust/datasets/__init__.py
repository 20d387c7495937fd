"""The registry of data sets: built-ins, those of plug-ins, and groups."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from samrobust.errors import DatasetError
from samrobust.registry import Entry, Registry
from samrobust.types import Dataset, DatasetBuilder, DatasetOptions

COCO_SPLITS = ("train2017", "val2017", "train2014", "val2014")
"""MS-COCO's own splits; other data sets of its format have other names."""
FOUR_HQ, HQSEG_44K = "four-hq", "hqseg-44k"
_HOME = (
    "HQSeg-44K: the three archives of sam-hq-team/sam-hq-training on Hugging Face "
    "(DIS5K, cascade_psp, thin_object_detection), unpacked side by side"
)
_THIN = "thin_object_detection"


@dataclass(frozen=True)
class FolderEntry(Entry):
    """A data set with an image file and a mask file per sample.

    Attributes:
        name: as registered.
        images: folder of the images below the root.
        masks: folder of the masks, which may be that of the images.
        collection: the image collection that it belongs to; training and test split share one. ""
            if the root folder names it.
        group: the group that published tables average it in, "" for none.
        image_suffixes: of image files, lower case.
        mask_suffixes: of mask files, lower case.
        home: where to get the data set.
        published: whether its layout is a published one: its masks may hold areas of grey, which
            are cut at 128 instead of being refused as a label map, and its folders other files.
    """

    name: str = ""
    images: str = ""
    masks: str = ""
    collection: str = ""
    group: str = ""
    image_suffixes: tuple[str, ...] = (".jpg",)
    mask_suffixes: tuple[str, ...] = (".png",)
    home: str = _HOME
    published: bool = False

    def load(self) -> Any:  # noqa: ANN401
        """Import and return the builder."""
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
        published=True,
    )


FOLDERS: Mapping[str, FolderEntry] = {
    row.name: row
    for row in (
        FolderEntry(
            "samrobust.datasets.folder:FolderDataset",
            "your own images/ and masks/, paired by file stem; needs --data-root",
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
            "DIS5K validation, 470 images; needs --data-root",
            "DIS5K/DIS-VD/im",
            "DIS5K/DIS-VD/gt",
            collection="DIS5K",
            group=FOUR_HQ,
        ),
        _folder(
            "coift",
            "COIFT, 280 images; needs --data-root",
            f"{_THIN}/COIFT/images",
            f"{_THIN}/COIFT/masks",
            collection="COIFT",
            group=FOUR_HQ,
        ),
        _folder(
            "hrsod",
            "HRSOD, 287 images; needs --data-root",
            f"{_THIN}/HRSOD/images",
            f"{_THIN}/HRSOD/masks_max255",
            collection="HRSOD",
            group=FOUR_HQ,
        ),
        _folder(
            "thinobject-te",
            "ThinObject-5K test, 500 images; needs --data-root",
            f"{_THIN}/ThinObject5K/images_test",
            f"{_THIN}/ThinObject5K/masks_test",
            collection="ThinObject-5K",
            group=FOUR_HQ,
        ),
        _folder(
            "dis-tr",
            "HQSeg-44K: DIS5K training, 3000 images; needs --data-root",
            "DIS5K/DIS-TR/im",
            "DIS5K/DIS-TR/gt",
            collection="DIS5K",
            group=HQSEG_44K,
        ),
        _folder(
            "thinobject-tr",
            "HQSeg-44K: ThinObject-5K training, 4748 images; needs --data-root",
            f"{_THIN}/ThinObject5K/images_train",
            f"{_THIN}/ThinObject5K/masks_train",
            collection="ThinObject-5K",
            group=HQSEG_44K,
        ),
        _folder(
            "fss",
            "HQSeg-44K: FSS-1000, 10000 images; needs --data-root",
            "cascade_psp/fss_all",
            collection="FSS-1000",
            group=HQSEG_44K,
        ),
        _folder(
            "duts-tr",
            "HQSeg-44K: DUTS-TR, 10553 images; needs --data-root",
            "cascade_psp/DUTS-TR",
            collection="DUTS",
            group=HQSEG_44K,
        ),
        _folder(
            "duts-te",
            "HQSeg-44K: DUTS-TE, 5019 images; needs --data-root",
            "cascade_psp/DUTS-TE",
            collection="DUTS",
            group=HQSEG_44K,
        ),
        _folder(
            "ecssd",
            "HQSeg-44K: ECSSD, 1000 images; needs --data-root",
            "cascade_psp/ecssd",
            collection="ECSSD",
            group=HQSEG_44K,
        ),
        _folder(
            "msra10k",
            "HQSeg-44K: MSRA10K, 10000 images; needs --data-root",
            "cascade_psp/MSRA_10K",
            collection="MSRA10K",
            group=HQSEG_44K,
        ),
    )
}
"""One row per data set, in the layout of HQ-SAM's data preparation (docs/sources/hq-sam.md 1.2)."""

GROUPS: dict[str, tuple[str, ...]] = {
    group: tuple(row.name for row in FOLDERS.values() if row.group == group)
    for group in (FOUR_HQ, HQSEG_44K)
}
"""Groups of data sets that published tables average, unweighted (docs/sources/hq-sam.md 1.2)."""

DATASETS: Registry[DatasetBuilder] = Registry(
    "dataset",
    {
        "scenes": Entry(
            "samrobust.datasets.scenes:build_scenes",
            "generated scenes, without files; --split N or NxWxH (images, width, height)",
            takes=("--split", "--ids"),
        ),
        "coco": Entry(
            "samrobust.datasets.coco:build_coco",
            "MS-COCO or data of its format; needs --data-root and --split, or --images and "
            "--annotations",
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
    """Return a data set; its files are listed but not yet read.

    Args:
        name: as registered; `samrobust ls datasets` lists all names.
        options: how it is read, in place of `root` and `split`, which suffice for most.
        root: folder of its files, None for a data set without files.
        split: its split, such as "val2017"; "" for the default.
        ids: file with the ids of the images to use, one per line; None for all.

    Raises:
        UnknownNameError: no data set has that name.
        DatasetError: the name is that of a group, or the files are missing.
    """
    if name in GROUPS:
        raise DatasetError(f"{name} is a group; open its members: {', '.join(GROUPS[name])}")
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
    """Return the command-line option that sets a field of `DatasetOptions`."""
    return {"root": "--data-root", "categories": "--category"}.get(
        field, f"--{field.replace('_', '-')}"
    )


def set_fields(options: DatasetOptions) -> list[str]:
    """Return the names of the fields that do not have their default value."""
    return [
        field.name for field in fields(options) if getattr(options, field.name) != field.default
    ]


def changed_settings(options: DatasetOptions) -> dict[str, str]:
    """Return the options of reading files that are not the default, for the manifest."""
    paths = ("root", "split", "images", "annotations")
    return {name: str(getattr(options, name)) for name in set_fields(options) if name not in paths}
