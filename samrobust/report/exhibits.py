"""What a page shows of failures: photographs, and objects with some of their trials."""

import io
import math
from dataclasses import dataclass

from PIL import Image as PillowImage

from samrobust.datasets.files import UNDECODABLE
from samrobust.errors import RunError
from samrobust.report.outlines import Row

PHOTOGRAPH_SIDE = 640
"""Longest side of a photograph in the page, in pixels."""
PHOTOGRAPH_QUALITY = 72
LARGEST_PHOTOGRAPHS = 4 * 2**20
"""Bytes of all photographs of a page; what would need more is left out."""


@dataclass(frozen=True)
class Panel:
    """One view of a photograph, in pixels of the original.

    Attributes:
        title: above it.
        view: x, y, width, height of what is shown.
        target: SVG path of the target.
        mask: SVG path of the predicted mask, "" where there is none.
        box: x, y, width, height of the prompt's box, () where it has none.
        points: x, y and label of its points.
        frame: x, y, width, height of what the other panels show, () for none.
    """

    title: str
    view: tuple[float, ...]
    target: str
    mask: str = ""
    box: tuple[float, ...] = ()
    points: tuple[tuple[float, float, int], ...] = ()
    frame: tuple[float, ...] = ()


@dataclass(frozen=True)
class Exhibit:
    """One object with some of its trials.

    Attributes:
        kind: "drop", or "pair" where one segmenter beats another.
        photograph: key of `Gallery.photographs`.
        name: image, object and category.
        segmenters: one, or the better and the worse.
        condition: of the protocol.
        loss: IoU lost, by which exhibits are ordered.
        caption: what is seen, in words.
        panels: the whole photograph, then trials.
    """

    kind: str
    photograph: str
    name: str
    segmenters: tuple[str, ...]
    condition: str
    loss: float
    caption: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Photograph:
    """A photograph as it is shown: JPEG, and the size of the original."""

    jpeg: bytes
    width: int
    height: int


@dataclass(frozen=True)
class Gallery:
    """Exhibits of a section, worst first; `n_left_out` did not fit in."""

    exhibits: tuple[Exhibit, ...]
    n_left_out: int


class Photographs:
    """The photographs of a page, each once, within a bound on their bytes."""

    def __init__(self) -> None:
        self.shown: dict[str, Photograph] = {}
        self._n_bytes = 0

    def show(self, key: str, row: Row) -> bool:
        """Return whether a stored photograph is in the page, or still fits in and now is."""
        if key not in self.shown:
            jpeg = _reduced(row["jpeg"])
            if self._n_bytes + len(jpeg) > LARGEST_PHOTOGRAPHS:
                return False
            self._n_bytes += len(jpeg)
            self.shown[key] = Photograph(jpeg, int(row["width"]), int(row["height"]))
        return True


def _reduced(jpeg: bytes) -> bytes:
    try:
        picture: PillowImage.Image = PillowImage.open(io.BytesIO(jpeg), formats=("JPEG",))
        picture.load()
    except UNDECODABLE as error:
        raise RunError("a kept photograph is no JPEG that can be read") from error
    side = max(picture.size)
    if side > PHOTOGRAPH_SIDE:
        size = tuple(math.ceil(length * PHOTOGRAPH_SIDE / side) for length in picture.size)
        picture = picture.resize((size[0], size[1]), PillowImage.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=PHOTOGRAPH_QUALITY)
    return buffer.getvalue()
