"""Images with masks, by name; the built-ins, the groups, and how others are added."""

from collections.abc import Collection
from dataclasses import fields
from pathlib import Path

from samrobust.errors import DatasetError
from samrobust.registry import Entry, Registry
from samrobust.types import Dataset, DatasetBuilder, DatasetOptions

GROUPS: dict[str, tuple[str, ...]] = {
    "four-hq": ("dis-vd", "coift", "hrsod", "thinobject-te"),
    "hqseg-44k": (
        "dis-tr",
        "thinobject-tr",
        "fss",
        "duts-tr",
        "duts-te",
        "ecssd",
        "msra10k",
    ),
}
"""Data sets that published tables average, unweighted (facts/hq-sam.md 1.2)."""


def _folder(builder: str, summary: str) -> Entry:
    return Entry(f"samrobust.datasets.folder:{builder}", summary, takes=("--data-root", "--ids"))


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
        ),
        "folder": _folder(
            "build_folder", "your own images/ and masks/, paired by file stem; needs a root"
        ),
        "dis-vd": _folder("build_dis_vd", "DIS5K validation, 470 images; needs a root"),
        "coift": _folder("build_coift", "COIFT, 280 images; needs a root"),
        "hrsod": _folder("build_hrsod", "HRSOD, 287 images; needs a root"),
        "thinobject-te": _folder(
            "build_thinobject_te", "ThinObject-5K test, 500 images; needs a root"
        ),
        "dis-tr": _folder("build_dis_tr", "HQSeg-44K: DIS5K training part, 3000 images"),
        "thinobject-tr": _folder(
            "build_thinobject_tr", "HQSeg-44K: ThinObject-5K training part, 4748 images"
        ),
        "fss": _folder("build_fss", "HQSeg-44K: FSS-1000, 10000 images"),
        "duts-tr": _folder("build_duts_tr", "HQSeg-44K: DUTS-TR, 10553 images"),
        "duts-te": _folder("build_duts_te", "HQSeg-44K: DUTS-TE, 5019 images"),
        "ecssd": _folder("build_ecssd", "HQSeg-44K: ECSSD, 1000 images"),
        "msra10k": _folder("build_msra10k", "HQSeg-44K: MSRA10K, 10000 images"),
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
    dataset = DATASETS.load(name)(options)
    if ids is None:
        return dataset

    from samrobust.datasets.folder import read_subset

    return read_subset(dataset, Path(ids))


def check_options(name: str, options: DatasetOptions, *, takes: Collection[str]) -> None:
    """Raise a DatasetError where an option is set that a data set does not take."""
    for field in fields(options):
        if field.name not in takes and getattr(options, field.name) != field.default:
            option = f"--{field.name.replace('_', '-')}"
            raise DatasetError(f"{name} takes no {option}, got {getattr(options, field.name)}")


def changed_settings(options: DatasetOptions) -> dict[str, str]:
    """Return how files are read where that is not the default, for the manifest."""
    names = ("categories", "min_area", "labels", "void", "recursive", "exif", "strict")
    of_labels = () if options.labels else ("void",)
    return {
        field.name: str(getattr(options, field.name))
        for field in fields(options)
        if field.name in names
        and field.name not in of_labels
        and getattr(options, field.name) != field.default
    }
