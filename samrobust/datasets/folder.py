"""Data sets of image and mask files: DIS, COIFT, HRSOD, ThinObject, HQSeg-44K and a user's own."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from samrobust.datasets import GROUPS, FolderEntry, changed_settings
from samrobust.datasets.images import (
    files_fingerprint,
    read_image,
    read_labels,
    read_mask,
    root_name,
)
from samrobust.errors import DatasetError, NoObjectError
from samrobust.types import (
    Dataset,
    DatasetInfo,
    DatasetOptions,
    GivesTargets,
    Instance,
    Mask,
    Sample,
)

MAX_OBJECTS = 10_000
"""Per label map."""
MAX_NAMES = 10
"""File names that a message lists."""


class FolderDataset:
    """Images and masks with the same file stem.

    A mask is a file with one object, "0"; a label map with one object per value, if `labels` is
    set; or a folder `masks/<stem>/` with one file per object, whose stem is the instance id.

    Args:
        row: name and layout of the data set.
        options: the root and how files are read; there are no splits.

    Raises:
        DatasetError: a folder is missing or empty, images have no mask or masks no image, or two
            files of a folder share a stem.
    """

    def __init__(self, row: FolderEntry, options: DatasetOptions) -> None:
        name = row.name
        wanted = f"{row.images}/ and {row.masks}/ below --data-root; get it: {row.home}"
        if options.root is None:
            raise DatasetError(f"{name} needs --data-root: a folder with {wanted}")
        self._options = options
        self._published = row.published
        images, masks = options.root / row.images, options.root / row.masks
        self._images = _by_stem(images, row.image_suffixes, wanted, options.recursive)
        self._masks = _by_stem(masks, row.mask_suffixes, wanted, options.recursive)
        if not self._published:
            self._masks |= _mask_folders(masks, self._images, row.mask_suffixes)
        _check_pairs(self._images, self._masks, images, masks)
        self.notes = (
            ()
            if self._published
            else (
                *_not_read(images, self._images, row.image_suffixes),
                *_not_read(masks, self._masks, row.mask_suffixes),
            )
        )
        files = [
            file
            for stem in self._images
            for file in (self._images[stem], *_files(self._masks[stem], row.mask_suffixes))
        ]
        self._mask_suffixes = row.mask_suffixes
        self.info = DatasetInfo(
            name,
            split="",
            fingerprint=files_fingerprint(files),
            folder=root_name(options.root),
            group=row.group,
            group_members=GROUPS.get(row.group, ()),
            settings=changed_settings(options),
        )

    def ids(self) -> list[str]:
        """Return the file stems, sorted; with sub-folders, their paths below the image folder."""
        return list(self._images)

    def __getitem__(self, sample_id: str) -> Sample:
        """Return one image with its masks.

        Raises:
            DatasetError: a file cannot be read, or the sizes of image and mask differ.
            NoObjectError: its label map has no object.
        """
        path = self._masks[sample_id]
        void: Mask | None = None
        if path.is_dir():
            files = _files(path, self._mask_suffixes)
            masks = {file.stem: read_mask(file) for file in files}
        elif self._options.labels:
            masks, void = self._labelled(path)
        else:
            masks = {"0": read_mask(path, published=self._published)}
        sizes = {mask.shape[:2] for mask in masks.values()}
        size_hw = next(iter(sizes))
        image = read_image(
            self._images[sample_id], exif=self._options.exif, size_hw=(size_hw[0], size_hw[1])
        )
        for size in (*sizes, image.shape[:2]):
            if size != size_hw or size != image.shape[:2]:
                mask_wh, image_wh = (
                    f"{size_hw[1]}x{size_hw[0]}",
                    f"{image.shape[1]}x{image.shape[0]}",
                )
                raise DatasetError(f"{path}: the mask is {mask_wh}, its image {image_wh}")
        named = self._options.labels and not path.is_dir()
        instances = [Instance(key, mask, key if named else "") for key, mask in masks.items()]
        file_name = self._images[sample_id].name
        return Sample(sample_id, image, instances, void, file_name=file_name)

    def _labelled(self, path: Path) -> tuple[dict[str, Mask], Mask | None]:
        """Return the mask of each value of a label map, and its void pixels, None for none."""
        labels = read_labels(path)
        void = np.isin(labels, self._options.void)
        values = np.unique(labels[(labels != 0) & ~void])
        if len(values) == 0:
            raise NoObjectError(f"{path}: has no labels except background and void")
        if len(values) > MAX_OBJECTS:
            raise DatasetError(f"{path}: has {len(values)} labels, more than {MAX_OBJECTS}")
        return {str(value): labels == value for value in values}, void if void.any() else None


@dataclass(frozen=True)
class Subset:
    """Some images of a data set.

    Attributes:
        whole: the data set.
        sample_ids: ids of the images, in the order of `whole`.
        name: name of the file that lists them.
    """

    whole: Dataset
    sample_ids: tuple[str, ...]
    name: str

    @property
    def info(self) -> DatasetInfo:
        """Return the description of `whole` with another fingerprint; prompts stay the same."""
        info = self.whole.info
        text = "\n".join([info.fingerprint, *self.sample_ids])
        fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
        return replace(info, fingerprint=fingerprint, part=self.name)

    @property
    def notes(self) -> Sequence[str]:
        """Return the notes of `whole`."""
        return tuple(getattr(self.whole, "notes", ()))

    def ids(self) -> Sequence[str]:
        """Return the ids of the images."""
        return self.sample_ids

    def __getitem__(self, sample_id: str) -> Sample:
        """Return one image with its objects."""
        return self.whole[sample_id]


def targets_of(dataset: Dataset) -> GivesTargets | None:
    """Return a data set that gives annotations for average precision, None for any other."""
    whole = dataset.whole if isinstance(dataset, Subset) else dataset
    return whole if isinstance(whole, GivesTargets) else None


def read_subset(whole: Dataset, path: Path) -> Subset:
    """Return the images of a data set whose ids a file lists, one per line.

    Raises:
        DatasetError: the file cannot be read, is empty, or lists an id that does not exist.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DatasetError(f"{path}: cannot be read: {reason}") from error
    wanted = {line.strip() for line in lines if line.strip()}
    known = [sample_id for sample_id in whole.ids() if sample_id in wanted]
    missing = sorted(wanted - set(known))
    if missing:
        raise DatasetError(f"{path}: '{missing[0]}' is not an image of {whole.info.label}")
    if not known:
        raise DatasetError(f"{path}: lists no image")
    return Subset(whole, tuple(known), path.stem)


def _by_stem(
    folder: Path, suffixes: tuple[str, ...], wanted: str, recursive: bool
) -> dict[str, Path]:
    """Return files by their path below a folder, without suffix, sorted."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: there is no such folder; needed: {wanted}")
    files = [file for file in _listed(folder, recursive) if file.suffix.lower() in suffixes]
    by_stem: dict[str, Path] = {}
    for file in files:
        stem = file.relative_to(folder).with_suffix("").as_posix()
        try:
            stem.encode()
        except UnicodeEncodeError as error:
            raise DatasetError(f"{file}: its name is not UTF-8; rename it") from error
        if stem in by_stem:
            raise DatasetError(f"{file}: has the same stem as {by_stem[stem].name}")
        by_stem[stem] = file
    if not by_stem and not any(path.is_dir() for path in folder.iterdir()):
        raise DatasetError(f"{folder}: has no {', '.join(suffixes)} files; needed: {wanted}")
    return by_stem


def _mask_folders(
    folder: Path, images: Mapping[str, Path], suffixes: tuple[str, ...]
) -> dict[str, Path]:
    """Return the mask folders whose name is the stem of an image."""
    return {
        stem: folder / stem
        for stem in images
        if (folder / stem).is_dir() and _files(folder / stem, suffixes)
    }


def _files(mask: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the mask itself if it is a file, else the files in it."""
    if not mask.is_dir():
        return [mask]
    return [file for file in _listed(mask, recursive=False) if file.suffix.lower() in suffixes]


def _listed(folder: Path, recursive: bool) -> list[Path]:
    """Return the files in a folder that are not hidden, sorted by stem."""
    try:
        paths = folder.rglob("*") if recursive else folder.iterdir()
        files = [path for path in paths if not path.is_dir() and path.name[0] != "."]
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be listed: {error.strerror}") from error
    return sorted(files, key=lambda file: (file.parent, file.stem, file.name))


def _check_pairs(
    images: Mapping[str, Path], masks: Mapping[str, Path], image_folder: Path, mask_folder: Path
) -> None:
    """Raise a DatasetError if images have no mask or masks no image; the message lists them."""
    unpaired = [path for stem, path in images.items() if stem not in masks]
    if unpaired:
        raise DatasetError(_unpaired(unpaired, f"no mask in {mask_folder}"))
    if not images:
        raise DatasetError(f"{image_folder}: has no images; --recursive reads sub-folders")
    folders = {path for path in masks.values() if path.is_dir()}
    unpaired = [
        path for stem, path in masks.items() if stem not in images and not folders & {*path.parents}
    ]
    if unpaired:
        raise DatasetError(_unpaired(unpaired, f"no image in {image_folder}"))


def _unpaired(paths: Sequence[Path], what: str) -> str:
    first, others = paths[0], [path.name for path in paths[1:]]
    more = f"; the same is true of {_some_names(others)}" if others else ""
    return f"{first}: has {what}{more}"


def _not_read(folder: Path, read: Mapping[str, Path], suffixes: tuple[str, ...]) -> Iterator[str]:
    """Yield a line about the files of a folder that are not read, if there are any."""
    known = {*read.values()}
    ignored = [
        path.relative_to(folder).as_posix()
        for path in _listed(folder, recursive=True)
        if path not in known and not known & {*path.parents}
    ]
    if ignored:
        yield (
            f"{folder}: {len(ignored)} file{'s are' if len(ignored) > 1 else ' is'} not read: "
            f"{_some_names(ignored)}; only {', '.join(suffixes)} files are read, and sub-folders "
            "with --recursive"
        )


def _some_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
