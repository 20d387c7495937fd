"""Image and mask pairs in folders: DIS, COIFT, HRSOD, ThinObject, HQSeg-44K and a user's own."""

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
from samrobust.types import Dataset, DatasetInfo, DatasetOptions, Instance, Mask, Sample

OWN = "folder"
"""The layout of a user's own files."""
MAX_OBJECTS = 10_000
"""Of a label map."""
MAX_NAMES = 10
"""That a message lists."""


class FolderDataset:
    """Images and masks with the same file stem.

    A mask is a file, one object "0"; or a label map, an object for each value, where `labels` says
    so; or a folder `masks/<stem>/`, an object for each file in it, named by its stem.

    Args:
        row: what is known of it.
        options: with the root below which the layout stands; there are no splits.

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
        self._published = name != OWN
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
        """Return the file stems, sorted; below the folder of images where sub-folders are read."""
        return list(self._images)

    def __getitem__(self, sample_id: str) -> Sample:
        """Return one image with its masks.

        Raises:
            DatasetError: one of the files cannot be read, or their sizes differ.
            NoObjectError: it is a label map without an object.
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
                shown = [f"{each[1]}x{each[0]}" for each in (size_hw, image.shape[:2])]
                raise DatasetError(f"{path}: the mask is {shown[0]}, its image {shown[1]}")
        named = self._options.labels and not path.is_dir()
        instances = [Instance(key, mask, key if named else "") for key, mask in masks.items()]
        return Sample(sample_id, image, instances, void)

    def _labelled(self, path: Path) -> tuple[dict[str, Mask], Mask | None]:
        """Return the mask of each value of a label map, and its void."""
        labels = read_labels(path)
        void = np.isin(labels, self._options.void)
        values = np.unique(labels[(labels != 0) & ~void])
        if len(values) == 0:
            raise NoObjectError(f"{path}: holds no label but background and void")
        if len(values) > MAX_OBJECTS:
            raise DatasetError(f"{path}: holds {len(values)} labels, more than {MAX_OBJECTS}")
        return {str(value): labels == value for value in values}, void if void.any() else None


@dataclass(frozen=True)
class Subset:
    """A data set of some images of another.

    Attributes:
        whole: the other.
        sample_ids: of `whole`, in its order.
        name: of what chose them.
    """

    whole: Dataset
    sample_ids: tuple[str, ...]
    name: str

    @property
    def info(self) -> DatasetInfo:
        """Return what it is: another fingerprint, but the key, and so every prompt, of `whole`."""
        info = self.whole.info
        text = "\n".join([info.fingerprint, *self.sample_ids])
        fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
        return replace(info, fingerprint=fingerprint, part=self.name)

    @property
    def notes(self) -> Sequence[str]:
        """Return what is said of `whole`."""
        return tuple(getattr(self.whole, "notes", ()))

    def ids(self) -> Sequence[str]:
        """Return the chosen ids."""
        return self.sample_ids

    def __getitem__(self, sample_id: str) -> Sample:
        """Return one image with its objects."""
        return self.whole[sample_id]


def read_subset(whole: Dataset, path: Path) -> Subset:
    """Return the images of a data set whose ids stand in a file, one a line.

    Raises:
        DatasetError: the file cannot be read, names no image, or one that is not there.
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
        raise DatasetError(f"{path}: '{missing[0]}' is no image of {whole.info.label}")
    if not known:
        raise DatasetError(f"{path}: names no image")
    return Subset(whole, tuple(known), path.stem)


def _by_stem(
    folder: Path, suffixes: tuple[str, ...], wanted: str, recursive: bool
) -> dict[str, Path]:
    """Return files by their path below a folder, without suffix, sorted."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: there is no such folder; wanted are {wanted}")
    files = [file for file in _listed(folder, recursive) if file.suffix.lower() in suffixes]
    found: dict[str, Path] = {}
    for file in files:
        stem = file.relative_to(folder).with_suffix("").as_posix()
        try:
            stem.encode()
        except UnicodeEncodeError as error:
            raise DatasetError(f"{file}: its name is not UTF-8; rename it") from error
        if stem in found:
            raise DatasetError(f"{file}: shares its stem with {found[stem].name}")
        found[stem] = file
    if not found and not any(path.is_dir() for path in folder.iterdir()):
        raise DatasetError(f"{folder}: holds no {', '.join(suffixes)} files; wanted are {wanted}")
    return found


def _mask_folders(
    folder: Path, images: Mapping[str, Path], suffixes: tuple[str, ...]
) -> dict[str, Path]:
    """Return the folders of masks that are named like an image."""
    return {
        stem: folder / stem
        for stem in images
        if (folder / stem).is_dir() and _files(folder / stem, suffixes)
    }


def _files(mask: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files of a mask: itself, or those in it."""
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
    """Raise where images have no mask or masks no image, naming all of them."""
    lonely = [path for stem, path in images.items() if stem not in masks]
    if lonely:
        raise DatasetError(_lonely(lonely, f"no mask in {mask_folder}"))
    if not images:
        raise DatasetError(f"{image_folder}: holds no images; --recursive reads sub-folders")
    inside = {path for path in masks.values() if path.is_dir()}
    extra = [
        path for stem, path in masks.items() if stem not in images and not inside & {*path.parents}
    ]
    if extra:
        raise DatasetError(_lonely(extra, f"no image in {image_folder}"))


def _lonely(paths: Sequence[Path], what: str) -> str:
    first, others = paths[0], [path.name for path in paths[1:]]
    more = f"; nor have {len(others)} others: {_some_names(others)}" if others else ""
    return f"{first}: has {what}{more}"


def _not_read(folder: Path, read: Mapping[str, Path], suffixes: tuple[str, ...]) -> Iterator[str]:
    """Yield a line about the files of a folder that are passed over."""
    known = {*read.values()}
    passed = [
        path.relative_to(folder).as_posix()
        for path in _listed(folder, recursive=True)
        if path not in known and not known & {*path.parents}
    ]
    if passed:
        yield (
            f"{folder}: {len(passed)} file{'s are' if len(passed) > 1 else ' is'} not read: "
            f"{_some_names(passed)}; read are {', '.join(suffixes)}, and sub-folders with "
            "--recursive"
        )


def _some_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
