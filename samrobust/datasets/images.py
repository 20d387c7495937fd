"""Read photographs and masks from files, with one clear line for whatever is wrong with them."""

import hashlib
import os
import struct
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from samrobust.errors import DatasetError
from samrobust.types import Image, Mask

SOFT_THRESHOLD = 128
"""Above it a mask pixel is foreground, as in HQ-SAM's evaluation (facts/hq-sam.md 1.3)."""
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Of pictures, as Pillow names them; others would be cut off at 255."""


FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Of picture files, as Pillow names them. Of its others some start programs, as Ghostscript."""
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
"""What Pillow raises on damaged pictures and on those of more than 178,956,970 pixels."""


def read_image(path: Path) -> Image:
    """Return a photograph as (H, W, 3) uint8 RGB, in the pixels of the file.

    An orientation noted beside the pixels (EXIF) is not applied: masks are drawn on the pixels.

    Raises:
        DatasetError: the file is missing, cut off or no image.
    """
    picture = _decode(path)
    if picture.mode not in EIGHT_BIT_MODES:
        raise DatasetError(f"{path}: is a picture of mode {picture.mode}, not 8 bits a channel")
    return np.array(picture.convert("RGB"))


def read_mask(path: Path) -> Mask:
    """Return a mask file as (H, W) bool.

    Values 0 and 1 alone are read as they are; files with brighter pixels are foreground above 128.
    Source: HQ-SAM's threshold (facts/hq-sam.md 1.3). Differs: there a 0/1 file is all background.

    Raises:
        DatasetError: the file is missing, cut off or no image, empty, coloured, or holds values
            that are neither.
    """
    values = _grey_values(path)
    if np.isin(values, (0, 1)).all():
        mask: Mask = values == 1
    elif values.dtype == np.uint8 and values.max() > SOFT_THRESHOLD:
        mask = values > SOFT_THRESHOLD
    else:
        raise DatasetError(
            f"{path}: holds the values {_some(values)}; a mask holds 0 and 1, "
            f"or 0 to 255 with foreground above {SOFT_THRESHOLD}"
        )
    if not mask.any():
        raise DatasetError(f"{path}: the mask is empty")
    return mask


def files_fingerprint(files: Iterable[Path]) -> str:
    """Return a hash of the names and sizes of files, in the order given; some may be missing."""
    digest = hashlib.sha256()
    for file in files:
        try:
            size = file.stat().st_size
        except OSError:  # reading it says what is wrong
            size = -1
        digest.update(os.fsencode(file.name) + f"\x1f{size}\x1e".encode())
    return digest.hexdigest()[:16]


def leaves_root(name: str) -> bool:
    """Return whether a path, as a file names it, can lead out of the folder that it starts in."""
    paths = PurePosixPath(name), PureWindowsPath(name)
    return any(path.is_absolute() or path.drive or ".." in path.parts for path in paths)


def _grey_values(path: Path) -> npt.NDArray[Any]:
    """Return the (H, W) values of a mask file, a palette and equal colour channels resolved."""
    picture = _decode(path)
    if picture.mode == "P" and not _is_label_palette(picture):
        picture = picture.convert("RGB")
    values = np.asarray(picture)
    if values.ndim == 3:
        colours = values[..., :3] if values.shape[2] >= 3 else values[..., :1]
        if (colours != colours[..., :1]).any():
            raise DatasetError(f"{path}: a mask must be grey, its colour channels differ")
        if values.shape[2] in (2, 4) and (colours == colours[0, 0, 0]).all():
            raise DatasetError(f"{path}: a mask must be grey, this one is in the transparency")
        values = colours[..., 0]
    return values


def _is_label_palette(picture: PillowImage.Image) -> bool:
    """Return whether index 0 is black and a used one is coloured: then indices are labels."""
    colours = picture.convert("RGB").getcolors(256) or []
    grey = all(len(set(colour)) == 1 for _, colour in colours if isinstance(colour, tuple))
    return not grey and (picture.getpalette() or [0])[:3] == [0, 0, 0]


def _decode(path: Path) -> PillowImage.Image:
    try:
        if path.exists() and not path.is_file():
            raise DatasetError(f"{path}: is no regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong is raised
            with PillowImage.open(path, formats=FORMATS) as picture:
                picture.load()
                return picture
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: there is no such file") from error
    except UnidentifiedImageError as error:
        raise DatasetError(f"{path}: is no image that can be read") from error
    except UNDECODABLE as error:
        reason = getattr(error, "strerror", None) or error
        raise DatasetError(f"{path}: cannot be decoded: {reason}") from error


def _some(values: npt.NDArray[np.generic]) -> str:
    found = np.unique(values)
    shown = [str(value) for value in found[:6]]
    return ", ".join(shown if len(found) <= 6 else [*shown, "…", str(found[-1])])
