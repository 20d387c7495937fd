"""Read photographs and masks from files, with one clear line for whatever is wrong with them."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from samrobust.errors import DatasetError
from samrobust.types import Image, Mask

SOFT_THRESHOLD = 128
"""Above it a mask pixel is foreground, as in HQ-SAM's evaluation (facts/hq-sam.md 1.3)."""


def read_image(path: Path) -> Image:
    """Return a photograph as (H, W, 3) uint8 RGB, in the pixels of the file.

    An orientation noted beside the pixels (EXIF) is not applied: masks are drawn on the pixels.

    Raises:
        DatasetError: the file is missing, cut off or no image.
    """
    return np.asarray(_decode(path).convert("RGB"))


def read_mask(path: Path) -> Mask:
    """Return a mask file as (H, W) bool.

    Values 0 and 1 alone are read as they are; files with brighter pixels are foreground above 128.
    Source: HQ-SAM's threshold (facts/hq-sam.md 1.3). Differs: there a 0/1 file is all background.

    Raises:
        DatasetError: the file is missing, cut off or no image, empty, coloured, or holds values
            that are neither.
    """
    values = np.asarray(_decode(path))
    if values.ndim == 3:
        colours = values[..., :3] if values.shape[2] >= 3 else values[..., :1]
        if (colours != colours[..., :1]).any():
            raise DatasetError(f"{path}: a mask must be grey, its colour channels differ")
        values = colours[..., 0]
    if values.dtype == np.bool_:
        mask: Mask = values
    elif values.max() <= 1:
        mask = values == 1
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
    """Return a hash of the names and sizes of files, in the order given."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\x1f{file.stat().st_size}\x1e".encode())
    return digest.hexdigest()[:16]


def _decode(path: Path) -> PillowImage.Image:
    try:
        with PillowImage.open(path) as picture:
            picture.load()
            return picture
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: there is no such file") from error
    except UnidentifiedImageError as error:
        raise DatasetError(f"{path}: is no image that can be read") from error
    except (OSError, SyntaxError, ValueError, PillowImage.DecompressionBombError) as error:
        raise DatasetError(f"{path}: cannot be decoded: {error}") from error


def _some(values: npt.NDArray[np.generic]) -> str:
    found = np.unique(values)
    shown = [str(value) for value in found[:6]]
    return ", ".join(shown if len(found) <= 6 else [*shown, "…", str(found[-1])])
