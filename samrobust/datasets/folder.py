"""Image and mask pairs in folders: DIS, COIFT, HRSOD, ThinObject, HQSeg-44K and a user's own."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from samrobust.datasets import GROUPS, FolderEntry
from samrobust.datasets.images import files_fingerprint, read_image, read_mask
from samrobust.errors import DatasetError
from samrobust.types import Dataset, DatasetInfo, DatasetOptions, Instance, Sample


class FolderDataset:
    """Pairs of an image and a mask with the same file stem; one instance, "0", an image.

    Args:
        row: what is known of it.
        options: with the root below which the layout stands; there are no splits.

    Raises:
        DatasetError: a folder is missing or empty, an image has no mask or a mask no image, or two
            files of a folder share a stem.
    """

    def __init__(self, row: FolderEntry, options: DatasetOptions) -> None:
        name = row.name
        wanted = f"{row.images}/ and {row.masks}/ below --data-root; get it: {row.home}"
        if options.root is None:
            raise DatasetError(f"{name} needs --data-root: a folder with {wanted}")
        if options.split:
            raise DatasetError(f"{name} has no splits, got --split {options.split}")
        self._images = _by_stem(options.root / row.images, row.image_suffixes, wanted)
        self._masks = _by_stem(options.root / row.masks, row.mask_suffixes, wanted)
        for stem, image in self._images.items():
            if stem not in self._masks:
                raise DatasetError(f"{image}: has no mask in {options.root / row.masks}")
        for stem, mask in self._masks.items():
            if stem not in self._images:
                raise DatasetError(f"{mask}: has no image in {options.root / row.images}")
        files = [file for stem in self._images for file in (self._images[stem], self._masks[stem])]
        self.info = DatasetInfo(
            name,
            split="",
            fingerprint=files_fingerprint(files),
            folder=options.root.resolve().name,
            group=row.group,
            group_members=GROUPS.get(row.group, ()),
        )

    def ids(self) -> list[str]:
        """Return the file stems, sorted."""
        return list(self._images)

    def __getitem__(self, sample_id: str) -> Sample:
        """Return one image with its mask.

        Raises:
            DatasetError: one of the files cannot be read, or their sizes differ.
        """
        image = read_image(self._images[sample_id])
        mask = read_mask(self._masks[sample_id])
        if mask.shape != image.shape[:2]:
            sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (mask, image)]
            raise DatasetError(
                f"{self._masks[sample_id]}: the mask is {sizes[0]}, its image {sizes[1]}"
            )
        return Sample(sample_id, image, [Instance("0", mask)])


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
        lines = path.read_text(encoding="utf-8").splitlines()
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


def _by_stem(folder: Path, suffixes: tuple[str, ...], wanted: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise DatasetError(f"{folder}: there is no such folder; wanted are {wanted}")
    try:
        listed = sorted(folder.iterdir(), key=lambda file: (file.stem, file.name))
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be listed: {error.strerror}") from error
    files = [file for file in listed if file.suffix.lower() in suffixes and file.stem[0] != "."]
    if not files:
        raise DatasetError(f"{folder}: holds no {', '.join(suffixes)} files; wanted are {wanted}")
    found: dict[str, Path] = {}
    for file in files:
        if file.stem in found:
            raise DatasetError(f"{file}: shares its stem with {found[file.stem].name}")
        found[file.stem] = file
    return found
