"""Read images, masks and label maps from files; an error is one line that says what is wrong."""

import hashlib
import json
import os
import struct
import warnings
import zlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import ImageOps, UnidentifiedImageError

from samrobust.errors import DatasetError
from samrobust.files import cache_folder, write_atomic
from samrobust.types import Exif, Image, Mask

SOFT_THRESHOLD = 128
"""Larger mask values are foreground, as in HQ-SAM's evaluation (docs/sources/hq-sam.md 1.3)."""
BLACK, WHITE = 10, 245
"""Grey values <= BLACK and >= WHITE count as black and white, as JPEG blurs masks."""
MAX_PLATEAU = 0.002
"""Fraction of pixels that may be grey and equal to all eight neighbours: soft edges have few, label
maps have areas of them."""
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Pillow's modes that become RGB without loss; others would be cut off at 255."""
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's formats that are read; some of its others start programs such as Ghostscript."""
UNDECODABLE = (
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    PillowImage.DecompressionBombError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""Errors of Pillow for damaged images and for those of more than 178,956,970 pixels."""
_ORIENTATION = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)
_LABELS_HINT = (
    "if it is a label map, add --labels to make each value an object, and --void for values that "
    "are not objects"
)


def read_image(
    path: Path, *, exif: Exif = "apply", size_hw: tuple[int, int] | None = None
) -> Image:
    """Return an image file as (H, W, 3) uint8 RGB.

    Args:
        path: of the file.
        exif: whether an EXIF orientation is applied; "auto" decides by the size, and raises if both
            sizes fit (half turns, mirror images, squares).
        size_hw: of its masks, for "auto"; None if unknown.

    Raises:
        DatasetError: the file is missing, cut off, not an image or has more than 8 bits per
            channel, or its orientation cannot be decided.
    """
    picture = _decode(path)
    if picture.mode not in EIGHT_BIT_MODES:
        raise DatasetError(
            f"{path}: is an image of mode {picture.mode}, not of 8 bits per channel; convert it, "
            "for example with PIL's Image.point or ImageMagick's 'convert -depth 8'"
        )
    if exif != "ignore" and picture.getexif().get(_ORIENTATION, 1) not in (0, 1):
        picture = _oriented(picture, path, exif, size_hw)
    return np.array(picture.convert("RGB"))


def read_mask(path: Path, *, published: bool = False) -> Mask:
    """Return a mask file as (H, W) bool.

    A file of only 0 and 1 has foreground 1; else black is background and white is foreground, and
    the soft edge between is thresholded at 128. A transparency that varies is the mask.
    Source: HQ-SAM's threshold (docs/sources/hq-sam.md 1.3). Differs: there a 0/1 file is all
    background.

    Args:
        path: of the file.
        published: whether the data set's masks are known to be soft, so that grey areas of any size
            are thresholded.

    Raises:
        DatasetError: the file is missing, cut off, not an image, empty or coloured, or has values
            other than those of one mask, which the message lists.
    """
    picture = _decode(path)
    if picture.mode == "P":
        mask = _palette_mask(picture, path)
    else:
        values = np.asarray(picture)
        if values.ndim == 3 and values.shape[2] in (2, 4) and np.ptp(values[..., -1]):
            mask = _cutout_mask(values, path)
        else:
            mask = _grey_mask(_grey(values, path), path, published=published)
    if not mask.any():
        raise DatasetError(f"{path}: the mask is empty")
    return mask


def read_labels(path: Path) -> npt.NDArray[np.int64]:
    """Return the (H, W) values of a label map: palette indices or grey values.

    Raises:
        DatasetError: the file is missing, cut off, not an image or coloured, or its values are not
            whole numbers.
    """
    picture = _decode(path)
    values = np.asarray(picture) if picture.mode == "P" else _grey(np.asarray(picture), path)
    if values.dtype.kind not in "biu":
        raise DatasetError(f"{path}: has the values {_some(values)}; labels are whole numbers")
    return values.astype(np.int64)


def files_fingerprint(files: Collection[Path]) -> str:
    """Return a hash of the names and contents of files, in this order; some may be missing.

    The hash of a file's content is cached until its size or time of change differ.
    """
    hashes = _HashCache(files)
    digest = hashlib.sha256()
    for file in files:
        digest.update(os.fsencode(file.name) + f"\x1f{hashes.of(file)}\x1e".encode())
    hashes.store()
    return digest.hexdigest()[:16]


def root_name(folder: Path) -> str:
    """Return the name of a folder as valid Unicode text."""
    return os.fsencode(folder.resolve().name).decode(errors="replace")


class _HashCache:
    """SHA-256 of files, cached by size and time of change."""

    def __init__(self, files: Iterable[Path]) -> None:
        folders = sorted({str(file.parent.absolute()) for file in files})
        name = hashlib.sha256("\n".join(folders).encode(errors="surrogatepass")).hexdigest()[:16]
        self._path = cache_folder() / "fingerprints" / f"{name}.json"
        self._known: dict[str, list[Any]] = {}
        self._is_new = False
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return  # start with an empty cache
        if isinstance(stored, dict):
            self._known = stored

    def of(self, file: Path) -> str:
        """Return the hash of a file's content, "" if it is missing, which is an error later."""
        try:
            stat = file.stat()
            state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
            key = os.fsencode(file.absolute()).hex()
            known = self._known.get(key)
            if isinstance(known, list) and known[:-1] == state and isinstance(known[-1], str):
                return known[-1]
            if not file.is_file():  # a pipe would never end
                return ""
            with file.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
        except OSError:
            return ""
        self._known[key] = [*state, digest]
        self._is_new = True
        return digest

    def store(self) -> None:
        """Write the cache; if that fails, files are read again next time."""
        if self._is_new:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(self._path, json.dumps(self._known).encode())
            except OSError:
                return


def _oriented(
    picture: PillowImage.Image, path: Path, exif: Exif, size_hw: tuple[int, int] | None
) -> PillowImage.Image:
    """Return an image with its EXIF orientation applied, or as stored if only that fits masks."""
    turned = ImageOps.exif_transpose(picture)
    if exif == "apply":
        return turned
    orientation = picture.getexif()[_ORIENTATION]
    if orientation in _QUARTER_TURNS and size_hw is not None and turned.size != picture.size:
        return turned if turned.size == size_hw[::-1] else picture
    raise DatasetError(
        f"{path}: has the EXIF orientation {orientation}, and its size does not tell whether the "
        "masks belong to the upright image (--exif apply) or to the pixels as stored "
        "(--exif ignore)"
    )


def _palette_mask(picture: PillowImage.Image, path: Path) -> Mask:
    """Return the mask of a palette image with only the indices 0 and 1, or only greys."""
    indices = np.asarray(picture)
    colours = picture.convert("RGB")
    grey = np.asarray(colours)
    is_grey = (grey == grey[..., :1]).all()
    starts_black = (picture.getpalette() or [0])[:3] == [0, 0, 0]
    if np.isin(indices, (0, 1)).all() and (starts_black or not is_grey):
        mask: Mask = indices == 1
        return mask
    if not is_grey:
        raise DatasetError(
            f"{path}: is a palette image with the values {_some(indices)}; a mask has 0 and 1, or "
            f"black and white; {_LABELS_HINT}"
        )
    return _grey_mask(grey[..., 0], path, published=False)


def _cutout_mask(values: npt.NDArray[Any], path: Path) -> Mask:
    """Return the transparency of a cut-out as a mask; raise if its colours are another mask."""
    mask = _grey_mask(values[..., -1], path, published=False)
    colours = values[..., :-1]
    looks_like_mask = np.isin(colours, (0, 255)).all() and np.ptp(colours) > 0
    if looks_like_mask and ((colours[..., 0] > SOFT_THRESHOLD) != mask).any():
        raise DatasetError(
            f"{path}: has one mask in its colours and another in its transparency; store only one"
        )
    return mask


def _grey(values: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    """Return the (H, W) values of an image whose colour channels are equal."""
    if values.ndim == 2:
        return values
    colours = values[..., :3] if values.shape[2] >= 3 else values[..., :1]
    if (colours != colours[..., :1]).any():
        raise DatasetError(f"{path}: a mask must be grey, but its colour channels differ")
    grey: npt.NDArray[Any] = colours[..., 0]
    return grey


def _grey_mask(values: npt.NDArray[Any], path: Path, *, published: bool) -> Mask:
    """Return grey values as a mask: 0 and 1, or black and white with a soft edge between."""
    if np.isin(values, (0, 1)).all():
        mask: Mask = values == 1
        return mask
    is_soft = values.dtype == np.uint8 and (
        (published and values.max() > SOFT_THRESHOLD)
        or (values.max() >= WHITE and _plateau(values) <= MAX_PLATEAU)
    )
    if not is_soft:
        raise DatasetError(
            f"{path}: has the values {_some(values)}; a mask has 0 and 1, or black (0) and white "
            f"(255) with a soft edge between; {_LABELS_HINT}"
        )
    soft: Mask = values > SOFT_THRESHOLD
    return soft


def _plateau(values: npt.NDArray[np.uint8]) -> float:
    """Return the share of pixels that are grey and equal to all of their eight neighbours."""
    window = np.ones((3, 3), np.uint8)
    low, high = cv2.erode(values, window), cv2.dilate(values, window)
    flat = (low == high) & (values > BLACK) & (values < WHITE)
    return float(flat.mean())


def _decode(path: Path) -> PillowImage.Image:
    try:
        if path.exists() and not path.is_file():
            raise DatasetError(f"{path}: is not a regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damage that matters is raised
            with PillowImage.open(path, formats=FORMATS) as picture:
                picture.load()
                return picture
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: there is no such file") from error
    except UnidentifiedImageError as error:
        raise DatasetError(f"{path}: is not an image of a known format") from error
    except UNDECODABLE as error:
        reason = getattr(error, "strerror", None) or error
        raise DatasetError(f"{path}: cannot be decoded: {reason}") from error


def _some(values: npt.NDArray[np.generic]) -> str:
    distinct = np.unique(values)
    shown = [str(value) for value in distinct[:6]]
    return ", ".join(shown if len(distinct) <= 6 else [*shown, "…", str(distinct[-1])])
