"""The 15 corruptions of ImageNet-C for photographs of any size, in severities 1 to 5.

Source: Hendrycks and Dietterich, ICLR 2019, with the parameters of `imagecorruptions` (Michaelis et
al. 2019), its port to images of any size (docs/sources/robustness.md C.4). Radii are in pixels of
the stored image, so the same severity is milder on a larger photograph. Values are cut, not
rounded, to uint8, as there. Severities of a corruption share their random numbers.

Differs, besides what single classes say: random numbers come from a keyed generator instead of
NumPy's global one, in float32.
"""

import io
import math
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from samrobust.types import Image

Pixels = npt.NDArray[np.float32]
"""(H, W, 3) or (H, W), in [0, 1]."""
Places = npt.NDArray[np.intp]
L = TypeVar("L")

SEVERITIES = range(1, 6)
_NEEDLES = 3  # directions of the needles of drawn frost
_FROST_COLOUR = np.array([0.98, 1.11, 1.18], np.float32)  # mean as of the reference's photographs


@dataclass(frozen=True)
class _Graded(Generic[L]):
    """A corruption in five severities.

    Attributes:
        severity: 1 to 5.
    """

    levels: ClassVar[tuple[object, ...]]
    severity: int

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(f"severity must be 1 to 5, got {self.severity}")

    @property
    def level(self) -> L:
        """Return the parameters of the severity."""
        level: L = self.levels[self.severity - 1]  # type: ignore[assignment]
        return level


class GaussianNoise(_Graded[float]):
    """Normal noise on each value; level: its standard deviation."""

    family: ClassVar[str] = "gaussian-noise"
    levels = (0.08, 0.12, 0.18, 0.26, 0.38)

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """Return the image with noise."""
        noise = rng.standard_normal(image.shape, np.float32)
        return _to_uint8(_to_pixels(image) + self.level * noise)


class ShotNoise(_Graded[float]):
    """Poisson noise on each value; level: photons of a value of 1."""

    family: ClassVar[str] = "shot-noise"
    levels = (60, 25, 12, 5, 3)

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """Return the image with noise."""
        photons = rng.poisson(image / 255 * self.level)
        return _to_uint8((photons / self.level).astype(np.float32))


class ImpulseNoise(_Graded[float]):
    """Single values set to 0 or 1, each with the same probability; level: share of the values."""

    family: ClassVar[str] = "impulse-noise"
    levels = (0.03, 0.06, 0.09, 0.17, 0.27)

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """Return the image with noise; a higher severity sets more values, the others stay set."""
        is_set = rng.random(image.shape) <= self.level
        is_white = rng.random(image.shape) <= 0.5
        return np.where(is_set, np.where(is_white, 255, 0), image).astype(np.uint8)


class DefocusBlur(_Graded[tuple[int, float]]):
    """Convolution with a disc; level: its radius and the sigma of its edge's blur, in pixels."""

    family: ClassVar[str] = "defocus-blur"
    levels = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:  # noqa: ARG002
        """Return the blurred image; `rng` is not used."""
        radius, sigma = self.level
        reach, side = (8, 3) if radius <= 8 else (radius, 5)
        y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        disc = (x**2 + y**2 <= radius**2).astype(np.float32)
        kernel = cv2.GaussianBlur(disc / disc.sum(), (side, side), sigma)
        return _to_uint8(_filtered(_to_pixels(image), kernel, cv2.BORDER_REFLECT_101))


class GlassBlur(_Graded[tuple[float, int, int]]):
    """A blur, pixels replaced by near ones, and the blur again.

    Level: sigma of the blur and reach in pixels, and rounds of replacement. A round goes through
    the pixels from the last to the first and gives each the value of a near one, which may have
    been replaced before; the reference means to swap them, but copies.
    """

    family: ClassVar[str] = "glass-blur"
    levels = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """Return the image as seen through glass; a rim of the reach is only blurred."""
        sigma, reach, rounds = self.level
        seen = _to_uint8(_blurred(_to_pixels(image), sigma))
        for _ in range(rounds):
            source = _carried((image.shape[0], image.shape[1]), reach, rng)
            seen = seen.reshape(-1, 3)[source].reshape(image.shape)
        return _to_uint8(_blurred(_to_pixels(seen), sigma))


class MotionBlur(_Graded[tuple[int, float]]):
    """Blur to the left along a line at U(-45, 45) degrees; level: reach and sigma in pixels.

    Masks stay where they are, but the image moves to the left by about 0.8 sigma in the mean.
    """

    family: ClassVar[str] = "motion-blur"
    levels = ((10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0))

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """Return the blurred image; draws one number, for the angle."""
        reach, sigma = self.level
        return _to_uint8(_moved(_to_pixels(image), reach, sigma, rng.uniform(-45, 45)))


class ZoomBlur(_Graded[tuple[float, float]]):
    """The mean of the image and of zooms into its centre; level: their largest factor and step.

    Differs: severity 1 ends at its factor 1.10; rounding makes the reference's end at 1.11.
    """

    family: ClassVar[str] = "zoom-blur"
    levels = ((1.10, 0.01), (1.15, 0.01), (1.20, 0.02), (1.25, 0.02), (1.30, 0.03))

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:  # noqa: ARG002
        """Return the blurred image; `rng` is not used."""
        largest, step = self.level
        factors = 1 + step * np.arange(round((largest - 1) / step) + 1)
        pixels = _to_pixels(image)
        total = pixels + sum(_zoomed(pixels, factor) for factor in factors)
        return _to_uint8(total / (len(factors) + 1))


class Snow(_Graded[tuple[float, float, float, float, int, float, float]]):
    """Flakes that fall at U(-135, -45) degrees, in a paler image.

    Level: mean and standard deviation of the noise that flakes come from, its zoom, the threshold
    that it must reach, reach and sigma of its motion blur in pixels, and the share of the image
    that is not made paler.
    """

    family: ClassVar[str] = "snow"
    levels = (
        (0.1, 0.3, 3.0, 0.5, 10, 4.0, 0.8),
        (0.2, 0.3, 2.0, 0.5, 12, 4.0, 0.7),
        (0.55, 0.3, 4.0, 0.9, 12, 8.0, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8.0, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12.0, 0.55),
    )

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """Return the image in snow."""
        mean, deviation, zoom, threshold, reach, sigma, share = self.level
        noise = mean + deviation * rng.standard_normal(image.shape[:2], np.float32)
        flakes = _zoomed(noise, zoom)
        flakes = np.where(flakes < threshold, 0, flakes).clip(0, 1).astype(np.float32)
        flakes = _moved(flakes, reach, sigma, rng.uniform(-135, -45))[..., None]
        pixels = _to_pixels(image)
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
        paler = share * pixels + (1 - share) * np.maximum(pixels, grey * 1.5 + 0.5)
        return _to_uint8(paler + flakes + flakes[::-1, ::-1])


class Frost(_Graded[tuple[float, float]]):
    """A layer of frost; level: weights of the image and of the frost.

    Differs: the frost is drawn. The reference adds one of six photographs of frost, whose
    origin and licence are not stated with them; the drawn one has about their mean colour.
    """

    family: ClassVar[str] = "frost"
    levels = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """Return the image below frost."""
        of_image, of_frost = self.level
        frost = _drawn_frost((image.shape[0], image.shape[1]), rng)
        return _to_uint8(of_image * _to_pixels(image) + of_frost * frost)


class Fog(_Graded[tuple[float, float]]):
    """A fractal height map added, and the whole scaled back; level: its weight and decay."""

    family: ClassVar[str] = "fog"
    levels = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """Return the image in fog."""
        weight, decay = self.level
        height, width = image.shape[:2]
        fog = _plasma(max(height, width), decay, rng)[:height, :width, None]
        pixels = _to_pixels(image)
        brightest = float(pixels.max())
        return _to_uint8((pixels + weight * fog) * (brightest / (brightest + weight)))


class Brightness(_Graded[float]):
    """Value of HSV raised, hue and saturation kept; level: by how much."""

    family: ClassVar[str] = "brightness"
    levels = (0.1, 0.2, 0.3, 0.4, 0.5)

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:  # noqa: ARG002
        """Return the brighter image; `rng` is not used."""
        pixels = _to_pixels(image)
        value = pixels.max(axis=2, keepdims=True)
        raised = np.minimum(value + self.level, 1)
        return _to_uint8(np.where(value > 0, pixels * (raised / np.maximum(value, 1e-9)), raised))


class Contrast(_Graded[float]):
    """Values drawn towards the mean of their channel; level: share of the distance that is left."""

    family: ClassVar[str] = "contrast"
    levels = (0.4, 0.3, 0.2, 0.1, 0.05)

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:  # noqa: ARG002
        """Return the flatter image; `rng` is not used."""
        pixels = image / 255
        means = pixels.mean(axis=(0, 1))
        return _to_uint8((pixels - means) * self.level + means)


class ElasticTransform(_Graded[float]):
    """Pixels displaced by smoothed noise.

    Level: the factor of the noise, which is U(-0.5 %, 0.5 %) of the height and smoothed with a
    sigma of 1 % of each side. Masks stay where they are, so that a part of what is lost is
    displacement: on 512 x 512 pixels its root mean square is 1.5 at severity 1 and 3.5 at 5.
    """

    family: ClassVar[str] = "elastic-transform"
    levels = (12.5, 16.25, 21.25, 25.0, 30.0)

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """Return the displaced image."""
        height, width = image.shape[:2]
        noise = rng.uniform(-0.005 * height, 0.005 * height, (2, height, width)).astype(np.float32)
        dx, dy = (
            self.level * _blurred(layer, (0.01 * height, 0.01 * width), truncate=3)
            for layer in noise
        )
        y, x = np.indices((height, width), np.float32)
        moved = cv2.remap(
            _to_pixels(image), x + dx, y + dy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        return _to_uint8(np.asarray(moved, np.float32))


class Pixelate(_Graded[float]):
    """Resized by a box filter and back by nearest neighbour; level: the factor."""

    family: ClassVar[str] = "pixelate"
    levels = (0.6, 0.5, 0.4, 0.3, 0.25)

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:  # noqa: ARG002
        """Return the coarser image; `rng` is not used."""
        height, width = image.shape[:2]
        size = max(1, int(width * self.level)), max(1, int(height * self.level))
        small = PillowImage.fromarray(image).resize(size, PillowImage.Resampling.BOX)
        return np.array(small.resize((width, height), PillowImage.Resampling.NEAREST))


class JpegCompression(_Graded[int]):
    """Stored as JPEG by Pillow; level: the quality."""

    family: ClassVar[str] = "jpeg-compression"
    levels = (25, 18, 15, 10, 7)

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:  # noqa: ARG002
        """Return the image as it is read back; `rng` is not used."""
        buffer = io.BytesIO()
        PillowImage.fromarray(image).save(buffer, "JPEG", quality=self.level)
        return np.array(PillowImage.open(buffer))


def _to_pixels(image: Image) -> Pixels:
    return np.asarray(image / 255, np.float32)


def _to_uint8(pixels: npt.NDArray[np.floating]) -> Image:
    return np.asarray(np.clip(pixels, 0, 1) * 255, np.uint8)


def _filtered(pixels: Pixels, kernel: Pixels, border: int) -> Pixels:
    """Return the correlation with a kernel, the same size."""
    found = cv2.filter2D(pixels, -1, kernel, borderType=border)
    return np.asarray(found, np.float32).reshape(pixels.shape)


def _blurred(pixels: Pixels, sigma: float | tuple[float, float], *, truncate: float = 4) -> Pixels:
    """Return a Gaussian blur, of one sigma or one for y and one for x.

    The edge is repeated; with two sigmas, mirrored, as the reference does in its elastic transform.
    """
    is_pair = isinstance(sigma, tuple)
    sigma_y, sigma_x = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    kernel_x, kernel_y = (
        cv2.getGaussianKernel(2 * int(truncate * each + 0.5) + 1, each, cv2.CV_32F)
        for each in (sigma_x, sigma_y)
    )
    border = cv2.BORDER_REFLECT if is_pair else cv2.BORDER_REPLICATE
    found = cv2.sepFilter2D(pixels, -1, kernel_x, kernel_y, borderType=border)
    return np.asarray(found, np.float32).reshape(pixels.shape)


def _carried(size_hw: tuple[int, int], reach: int, rng: np.random.Generator) -> Places:
    """Return (H * W,) the place that each pixel's value comes from after one round of `GlassBlur`.

    A pixel takes the value of the place drawn for it. If that comes later in the image it has
    already got another one, from the place drawn for it, and so on: such chains are followed.
    """
    height, width = size_hw
    own = np.arange(height * width).reshape(size_hw)
    rows, columns = (np.arange(side - reach, reach, -1) for side in size_hw)
    offset_x, offset_y = np.moveaxis(
        rng.integers(-reach, reach, (len(rows), len(columns), 2)), 2, 0
    )
    drawn = own.copy()
    drawn[rows[:, None], columns] += offset_y * width + offset_x
    source, is_chained = drawn.ravel(), (drawn > own).ravel()
    while is_chained.any():
        start = np.flatnonzero(is_chained)
        via = source[start]
        source[start], is_chained[start] = source[via], is_chained[via]
    return source


def _moved(pixels: Pixels, reach: int, sigma: float, degrees: float) -> Pixels:
    """Return a blur to one side: half of a Gaussian of 2 * reach + 1 taps along a line."""
    taps = np.arange(2 * reach + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    radians = math.radians(degrees)
    dy, dx = (
        np.ceil(taps * of_axis - 0.5).astype(int)
        for of_axis in (math.sin(radians), math.cos(radians))
    )
    kernel = np.zeros((4 * reach + 1, 4 * reach + 1), np.float32)
    np.add.at(kernel, (2 * reach + dy, 2 * reach + dx), weights / weights.sum())
    return _filtered(pixels, kernel, cv2.BORDER_REPLICATE)


def _zoomed(pixels: Pixels, factor: float) -> Pixels:
    """Return a zoom into the centre, bilinear, the same size.

    As in the reference, the first and last pixels of a crop, which is of whole pixels, become those
    of the zoom, which is then cut to the size.
    """
    matrix = np.zeros((2, 3))
    for axis, side in enumerate(pixels.shape[1::-1]):
        crop = math.ceil(side / factor)
        matrix[axis, axis] = (crop - 1) / max(round(crop * factor) - 1, 1)
        matrix[axis, 2] = (side - crop) // 2
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = pixels.shape[1], pixels.shape[0]
    found = cv2.warpAffine(pixels, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(found, np.float32).reshape(pixels.shape)


def _plasma(side: int, decay: float, rng: np.random.Generator) -> Pixels:
    """Return a fractal height map in [0, 1] by the diamond-square algorithm, wrapped around.

    Args:
        side: at least; the next power of two is returned.
        decay: the deviations shrink by its square from each step to the next.
        rng: draws three numbers for each square of each step.
    """
    size = 1 << (side - 1).bit_length()
    heights = np.zeros((size, size), np.float32)
    step, roughness = size, 100.0**2
    while step > 1:
        half = step // 2
        corners = heights[::step, ::step]
        centre_noise, top_noise, left_noise = roughness * rng.uniform(-1, 1, (3, *corners.shape))
        across = corners + np.roll(corners, -1, axis=1)
        down = corners + np.roll(corners, -1, axis=0)
        centres = (across + np.roll(across, -1, axis=0)) / 4 + centre_noise
        heights[half::step, half::step] = centres
        heights[::step, half::step] = (
            centres + np.roll(centres, 1, axis=0) + across
        ) / 4 + top_noise
        heights[half::step, ::step] = (
            centres + np.roll(centres, 1, axis=1) + down
        ) / 4 + left_noise
        step, roughness = half, roughness / decay**2
    heights -= heights.min()
    return heights / max(float(heights.max()), 1e-9)


def _drawn_frost(size_hw: tuple[int, int], rng: np.random.Generator) -> Pixels:
    """Return needles of ice in several directions, denser in patches, (H, W, 3)."""
    height, width = size_hw
    needles = np.zeros(size_hw, np.float32)
    for _ in range(_NEEDLES):
        noise = rng.standard_normal(size_hw, np.float32)
        needles = np.maximum(needles, np.abs(_moved(noise, 12, 8.0, rng.uniform(0, 180))))
    needles /= max(float(np.quantile(needles, 0.98)), 1e-9)
    patches = _plasma(max(size_hw), 2.0, rng)[:height, :width]
    frost = 0.2 + 0.45 * patches + 0.35 * needles
    return np.minimum(frost[..., None] * _FROST_COLOUR, 1)
