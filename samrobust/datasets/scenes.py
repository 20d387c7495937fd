"""Generated scenes with exact masks, like photographs: without files, of any number and size."""

import cmath
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

from samrobust.errors import DatasetError
from samrobust.seeding import keyed_generator
from samrobust.types import DatasetInfo, DatasetOptions, Floats, Image, Instance, Mask, Sample

Floats32: TypeAlias = npt.NDArray[np.float32]
Stroke: TypeAlias = tuple[float, float, float, float, float]
Family: TypeAlias = Callable[[np.random.Generator, Floats32, Floats32], Mask]
"""Function of (rng, x, y) that returns where a shape is; shapes about fill the unit circle."""


def _blob(rng: np.random.Generator, x: Floats32, y: Floats32) -> Mask:
    angle = np.arctan2(y, x)
    outline = np.full(x.shape, 0.75, np.float32)
    for n in range(2, 6):
        outline += rng.normal(0, 0.2) / n * np.cos(n * angle + rng.uniform(0, 6))
    return np.hypot(x, y) < outline


def _block(rng: np.random.Generator, x: Floats32, y: Floats32) -> Mask:
    mask = np.ones(x.shape, np.bool_)
    for quarter in range(4):
        angle = quarter * math.pi / 2 + rng.normal(0, 0.2)
        mask &= x * math.cos(angle) + y * math.sin(angle) < rng.uniform(0.45, 0.8)
    return mask


def _star(rng: np.random.Generator, x: Floats32, y: Floats32) -> Mask:
    rays = np.abs(np.cos(np.arctan2(y, x) * (int(rng.integers(4, 9)) / 2)))
    return np.hypot(x, y) < rng.uniform(0.25, 0.6) + 0.5 * rays ** rng.uniform(0.5, 2)


def _ring(rng: np.random.Generator, x: Floats32, y: Floats32) -> Mask:
    half = rng.uniform(0.1, 0.25)
    return _near(half, np.hypot(x, y * rng.uniform(1, 1.6)), 1 - half)


def _vessel(rng: np.random.Generator, x: Floats32, y: Floats32) -> Mask:
    side = rng.uniform(0.3, 0.6)
    belly = side + rng.normal(0, 0.12) * np.cos(4 * y) + rng.normal(0, 0.15) * y
    handle = _near(rng.uniform(0.06, 0.1), np.hypot(x + 0.2 - side, y), 0.35)
    return _near(belly, x, -0.2) & _near(0.8, y) | handle


def _vehicle(rng: np.random.Generator, x: Floats32, y: Floats32) -> Mask:
    front, back, roof = rng.uniform(-0.7, -0.2), rng.uniform(0.2, 0.8), -rng.uniform(0.45, 0.9)
    cabin = (x > front - 0.5 * y) & (x < back) & (y > roof) & (y < 0)
    wheels = _near(rng.uniform(0.18, 0.28), np.hypot(np.abs(x) - 0.5, y - 0.45))
    return _near(0.9, x) & _near(0.3, y, 0.1) | cabin | wheels


def _lattice(rng: np.random.Generator, x: Floats32, y: Floats32) -> Mask:
    bar = rng.uniform(0.07, 0.14)
    hole = np.ones(x.shape, np.bool_)
    for along in (x, y):
        pitch = 1.4 / int(rng.integers(1, 4))
        hole &= _near(pitch / 2 - bar, (along + 0.7) % pitch, pitch / 2)
    return _near(0.7 + bar, x) & _near(0.7 + bar, y) & ~hole


def _wheel(rng: np.random.Generator, x: Floats32, y: Floats32) -> Mask:
    half, turn, n = rng.uniform(0.05, 0.12), rng.uniform(0, math.pi), int(rng.integers(2, 6))
    angles = [turn + k * math.pi / n for k in range(n)]
    ends = [(0.95 * math.cos(angle), 0.95 * math.sin(angle)) for angle in angles]
    spokes = _strokes(x, y, [(-c, -s, c, s, 0.6 * half) for c, s in ends])
    return _near(half, np.hypot(x, y), 1 - half) | spokes


def _rod(rng: np.random.Generator, x: Floats32, y: Floats32) -> Mask:
    bend = rng.normal(0, 0.4)
    return _strokes(x, y + bend * x * x, [(-0.95, 0.0, 0.95, 0.0, rng.uniform(0.05, 0.14))])


def _plant(rng: np.random.Generator, x: Floats32, y: Floats32) -> Mask:
    stems = [
        (0.0, 0.6, math.pi + rng.normal(0, 0.7), rng.uniform(0.5, 0.8), rng.uniform(0.04, 0.12))
        for _ in range(rng.integers(4, 9))
    ]
    return _strokes(x, y, [(0.0, 0.5, 0.0, 0.8, 0.2), *_limbs(rng, stems)])


def _figure(rng: np.random.Generator, x: Floats32, y: Floats32) -> Mask:
    thick, trunk = rng.uniform(0.07, 0.11), rng.uniform(0.18, 0.28)
    arms = [(side * trunk, -0.45, 0.2 * side, 0.32, thick) for side in (-1, 1)]
    legs = [(side * 0.12, 0.1, 0.1 * side, 0.42, 1.3 * thick) for side in (-1, 1)]
    body = [(0.0, -0.4, 0.0, 0.05, trunk), (0.0, -0.8, 0.0, -0.74, 0.17)]
    return _strokes(x, y, [*body, *_limbs(rng, arms + legs)])


def _beast(rng: np.random.Generator, x: Floats32, y: Floats32) -> Mask:
    thick, trunk = rng.uniform(0.05, 0.1), rng.uniform(0.2, 0.32)
    legs = [(hip, 0.0, 0.0, 0.38, thick) for hip in (-0.55, -0.4, 0.3, 0.45)]
    tail = (-0.65, -0.2, -1.0, 0.2, thick / 2)
    body, neck = (-0.45, -0.1, 0.4, -0.1, trunk), (0.45, -0.2, 0.7, -0.5, 0.6 * trunk)
    head = (0.7, -0.55, 0.9, -0.5, 0.5 * trunk)
    return _strokes(x, y, [body, neck, head, *_limbs(rng, [*legs, tail])])


def _near(reach: float | Floats32, along: Floats32, center: float = 0.0) -> Mask:
    mask: Mask = np.abs(along - center) < reach
    return mask


def _limbs(rng: np.random.Generator, limbs: Iterable[Stroke]) -> list[Stroke]:
    """Return two strokes per limb (x, y, angle, length, radius), with a bend between them."""
    strokes = []
    for x, y, angle, length, radius in limbs:
        for _ in range(2):
            angle += rng.normal(0, 0.3)
            start, x, y = (x, y), x + length * math.sin(angle), y + length * math.cos(angle)
            strokes.append((*start, x, y, radius))
    return strokes


def _strokes(x: Floats32, y: Floats32, strokes: Iterable[Stroke]) -> Mask:
    """Return the pixels within the radius of a segment; strokes are x0, y0, x1, y1, radius."""
    mask = np.zeros(x.shape, np.bool_)
    for x0, y0, x1, y1, radius in strokes:
        dx, dy, px, py = x1 - x0, y1 - y0, x - x0, y - y0
        along = np.clip((px * dx + py * dy) / (dx * dx + dy * dy), 0, 1)
        mask |= (px - along * dx) ** 2 + (py - along * dy) ** 2 < radius**2
    return mask


FAMILIES: dict[str, Family] = {
    "blob": _blob,
    "block": _block,
    "star": _star,
    "ring": _ring,
    "vessel": _vessel,
    "vehicle": _vehicle,
    "lattice": _lattice,
    "wheel": _wheel,
    "rod": _rod,
    "plant": _plant,
    "figure": _figure,
    "beast": _beast,
}


SCENES_VERSION = 1
"""Part of every scene's key: raised whenever a pixel of any scene changes."""
DEFAULT_SIZE = (12, 160, 120)
"""Number of images, width and height in pixels: an evaluation takes seconds on a laptop."""
SIDES = (32, 4096)
"""Minimum and maximum side in pixels: smaller shapes lose details, larger images need gigabytes."""
MAX_SCENES = 1_000_000
"""Per split: all ids are in memory."""
MAX_INSTANCES = 4
MIN_VISIBLE = 64
"""Visible pixels of an instance."""
MIN_VISIBLE_FRACTION = 0.6
"""Of an instance's pixels inside the image, the fraction that is not hidden."""
SHAPES = (4, 9)
"""Minimum and maximum number of shapes; those that are not annotated are clutter."""
RADIUS = (0.09, 0.7)
"""Minimum and maximum radius of a shape in short sides of the image, log-uniform."""
INSET = 0.7
"""Minimum distance of a shape's centre to the image border, in radii: some shapes are cut off."""
MARGIN = 1.3
"""Half side of the window that a shape is drawn in, in radii, with room for its shadow."""
MAX_RAGGED = 0.012
"""Maximum standard deviation of an outline's displacement by a texture, in radii."""
CAMOUFLAGE = (1.2, 1.0)
"""Beta distribution of how much of an object's colour is that of the pixels that it covers."""
SLOPE = 0.3
"""Standard deviation of the change of an object's log brightness over one radius, per axis."""
SWING = 0.09
"""Scale of the Laplace distribution of a texture's contrast; white is 1."""
TEXTURES = 5
"""Noise fields of a scene, which objects, clutter and background share."""
WAVELENGTH = (0.012, 0.25)
"""Of a texture's band in short sides of the image, log-uniform."""
OPPONENT_AXES = np.array([[0.08, 0.01, -0.10], [0.02, -0.03, 0.02]])
"""Typical deviations in RGB: natural colours vary most in brightness, less from yellow to blue, and
least from green to magenta (Ruderman et al. 1998)."""


@dataclass(frozen=True)
class Scenes:
    """A data set of scenes; a scene depends on its size and index, not on the number of scenes."""

    count: int
    width: int
    height: int

    @property
    def info(self) -> DatasetInfo:
        """Return its description."""
        key = f"scenes {SCENES_VERSION} {self.width}x{self.height}"
        return DatasetInfo(
            name="scenes",
            split=f"{self.count}x{self.width}x{self.height}",
            fingerprint=hashlib.sha256(key.encode()).hexdigest()[:16],
        )

    def ids(self) -> Sequence[str]:
        """Return the sample ids, "scene-00000" first."""
        return [_scene_id(index) for index in range(self.count)]

    def __getitem__(self, sample_id: str) -> Sample:
        """Return one scene, generated on every call.

        Raises:
            DatasetError: no scene has that id.
        """
        digits = sample_id.removeprefix("scene-")
        index = int(digits) if digits.isdecimal() else self.count
        if index >= self.count or sample_id != _scene_id(index):
            last = _scene_id(self.count - 1)
            raise DatasetError(f"scenes: unknown id '{sample_id}'. Known: scene-00000 to {last}")
        return draw_scene(index, width=self.width, height=self.height)


def build_scenes(options: DatasetOptions) -> Scenes:
    """Return the scenes of a split: "" (12 of 160x120), "N" or "NxWxH" (images, width, height).

    Raises:
        DatasetError: the split has another form, or its numbers are out of range.
    """
    split, (low, high) = options.split, SIDES
    numbers = [int(part) for part in split.split("x")] if _SPLIT.fullmatch(split) else []
    count, width, height = (*numbers, *DEFAULT_SIZE[len(numbers) :])
    fits = count <= MAX_SCENES and low <= width <= high and low <= height <= high
    if (split and not numbers) or not fits:
        raise DatasetError(
            f"scenes: split '{split}' must be N or NxWxH (images, width, height), "
            f"positive integers with N up to {MAX_SCENES} and W and H {low} to {high}"
        )
    return Scenes(count, width, height)


def draw_scene(index: int, *, width: int, height: int) -> Sample:
    """Return the scene of a size and an index, the same on every call.

    Shapes are painted from back to front; a mask is the visible part of its shape. Colour alone
    does not separate objects: they share colours and textures with the background, may have
    several, take on some of the colour that they cover, and are lit unevenly.
    """
    rng = keyed_generator("scenes", SCENES_VERSION, width, height, index)
    instances: list[Instance] = []
    while not instances:  # draw again if no shape is visible enough
        scene = _Scene(rng, height, width)
        for _ in range(rng.integers(*SHAPES, endpoint=True)):
            scene.add_shape()
        instances = scene.annotate()
    return Sample(_scene_id(index), scene.photograph(), instances)


_SPLIT = re.compile(r"[1-9]\d{0,8}(x[1-9]\d{0,8}){2}|[1-9]\d{0,8}", re.ASCII)


def _scene_id(index: int) -> str:
    return f"scene-{index:05d}"


class _Scene:
    """A scene that is being painted.

    Attributes:
        canvas: (3, H, W) float32 RGB, about in [0, 1].
        owner: (H, W) int, index of the shape visible at each pixel, -1 for the background.
        shapes: family and number of pixels of each shape, from back to front.
    """

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng = rng
        self.short = min(height, width)
        self.palette = _palette(rng)
        self.textures = _textures(rng, height, width)
        angle = rng.uniform(0, 2 * math.pi)
        self.light_yx = math.sin(angle), math.cos(angle)
        self.shapes: list[tuple[str, int]] = []
        self.owner = np.full((height, width), -1)
        y, x = np.indices((height, width), np.float32) / (self.short / 2) - 1
        self.canvas = self._paint(*self._object_frame(x, y), self._colour())

    def add_shape(self) -> None:
        """Paint a shape and its shadow in front of the scene."""
        rng = self.rng
        family = str(rng.choice(list(FAMILIES)))
        radius = self.short * _log_uniform(rng, *RADIUS)
        (rows, y), (columns, x) = (self._span(n, radius) for n in self.owner.shape)
        ragged = rng.uniform(0, MAX_RAGGED) * self.textures[0, rows, columns]
        x, y = self._object_frame(x + ragged, y[:, None] + ragged)
        mask = FAMILIES[family](rng, x, y)
        seen = self.canvas[:, rows, columns]
        under = seen.mean(axis=(1, 2))
        colour = self._colour()
        paint = self._paint(x, y, colour + rng.beta(*CAMOUFLAGE) * (under - colour))
        relief = _soften(mask, _log_uniform(rng, 0.05, 0.3) * radius)
        slope_y, slope_x = np.gradient(rng.uniform(0.1, 0.35) * radius * relief)
        shade = rng.normal(0, SLOPE) * x + rng.normal(0, SLOPE) * y
        shade -= slope_y * self.light_yx[0] + slope_x * self.light_yx[1]
        seen *= self._shadow(relief, radius)
        np.copyto(seen, paint * np.exp(shade), where=mask)
        self.owner[rows, columns][mask] = len(self.shapes)
        self.shapes.append((family, int(mask.sum())))

    def annotate(self) -> list[Instance]:
        """Return some of the shapes that are visible enough, none if no shape is."""
        n_visible = np.bincount(self.owner[self.owner >= 0], minlength=len(self.shapes))
        needed = [max(MIN_VISIBLE, MIN_VISIBLE_FRACTION * n_pixels) for _, n_pixels in self.shapes]
        visible = np.flatnonzero(n_visible >= needed)
        n = min(len(visible), int(self.rng.integers(1, MAX_INSTANCES, endpoint=True)))
        chosen = np.sort(self.rng.choice(visible, n, replace=False)) if n else visible
        return [
            Instance(str(number), self.owner == shape, self.shapes[shape][0])
            for number, shape in enumerate(chosen, start=1)
        ]

    def photograph(self) -> Image:
        """Return (H, W, 3) uint8: the canvas with uneven light, lens blur and sensor noise."""
        rng = self.rng
        y, x = (rng.normal(0, 0.25) * np.linspace(-1, 1, n) for n in self.owner.shape)
        light = np.exp(np.add.outer(y, x), dtype=np.float32)
        sigma = rng.uniform(0.5, 1.0) * max(1.0, self.short / 300)
        image = ndimage.gaussian_filter(self.canvas * light, (0, sigma, sigma), truncate=2.5)
        image += rng.uniform(0.008, 0.035) * rng.standard_normal(image.shape, np.float32)
        levels = (255 * np.clip(image, 0, 1)).astype(np.uint8)
        return np.ascontiguousarray(np.moveaxis(levels, 0, 2))

    def _span(self, n: int, radius: float) -> tuple[slice, Floats32]:
        """Place a shape on an axis of n pixels: return its window and its coordinates in radii."""
        center = self.rng.uniform(INSET * radius, n - INSET * radius)
        start = max(0, math.floor(center - MARGIN * radius))
        stop = min(n, math.ceil(center + MARGIN * radius))
        return slice(start, stop), (np.arange(start, stop, dtype=np.float32) - center) / radius

    def _object_frame(self, x: Floats32, y: Floats32) -> tuple[Floats32, Floats32]:
        """Return x and y rotated, squeezed and bent."""
        rng = self.rng
        turned = (x + 1j * y) * cmath.exp(1j * rng.normal(0, 0.4))
        squeeze = math.exp(rng.normal(0, 0.25))
        u: Floats32 = np.multiply(turned.real, max(1.0, squeeze))
        v: Floats32 = np.multiply(turned.imag, max(1.0, 1 / squeeze))
        u += rng.normal(0, 0.08) * np.sin(3 * v + rng.uniform(0, 6))
        v += rng.normal(0, 0.08) * np.sin(3 * u + rng.uniform(0, 6))
        return u, v

    def _colour(self) -> Floats32:
        colour: Floats32 = self.rng.choice(self.palette)
        return colour

    def _paint(self, x: Floats32, y: Floats32, colour: Floats32) -> Floats32:
        """Return (3, h, w) colours of one to three materials, separated by waves."""
        rng = self.rng
        paint = self._material(x.shape, colour)
        for _ in range(rng.integers(3)):
            wave = np.sin(rng.normal(0, 1.2) * x + rng.normal(0, 2.5) * y + rng.uniform(0, 6))
            other = self._material(x.shape, self._colour())
            np.copyto(paint, other, where=wave > rng.uniform(-0.3, 0.7))
        return paint

    def _material(self, size_hw: tuple[int, ...], colour: Floats32) -> Floats32:
        """Return (3, h, w) colours that vary about one with a shifted and mirrored texture."""
        rng = self.rng
        shift = rng.integers(self.owner.shape)
        texture = np.roll(self.textures[rng.integers(TEXTURES)], shift, (0, 1))
        texture = texture[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
        pattern = np.tanh(_log_uniform(rng, 0.3, 2) * texture[: size_hw[0], : size_hw[1]])
        swing = rng.laplace(0, SWING) * rng.normal(1, 0.15, 3)
        swing += rng.beta(0.5, 2) * (self._colour() - colour)
        paint: Floats32 = np.multiply.outer(swing.astype(np.float32), pattern)
        return paint + colour[:, None, None]

    def _shadow(self, relief: Floats32, radius: float) -> Floats32:
        """Return (h, w) factors of the light in the shadow of a shape."""
        reach = math.ceil(self.rng.uniform(0.05, 0.3) * radius)
        origin = [round(-reach * light) for light in self.light_yx]
        cast: Floats32
        cast = ndimage.uniform_filter(relief, 2 * reach + 1, mode="nearest", origin=origin)
        return 1 - self.rng.uniform(0.1, 0.7) * cast


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _palette(rng: np.random.Generator) -> Floats32:
    """Return (n, 3) float32 RGB colours."""
    n = int(rng.integers(4, 7))
    colours: Floats = rng.uniform(0.12, 0.88, (n, 1)) + rng.laplace(0, 1, (n, 2)) @ OPPONENT_AXES
    return colours.clip(0.02, 0.98).astype(np.float32)


def _textures(rng: np.random.Generator, height: int, width: int) -> Floats32:
    """Return (N, H, W) periodic 1 / f noise of unit variance, some with a band, some oriented.

    All fields are filtered from the same noise; each use shifts them, so this is not visible.
    """
    short = min(height, width)
    ky = short * fft.fftfreq(height).astype(np.float32)[:, None]
    kx = short * fft.rfftfreq(width).astype(np.float32)
    k = np.hypot(ky, kx)  # cycles per short side
    floor = np.maximum(k, 1)
    log_k, cos, sin = np.log(floor), (kx**2 - ky**2) / floor**2, 2 * kx * ky / floor**2
    waves = rng.standard_normal((*k.shape, 2), np.float32).view(np.complex64)[..., 0]
    fields = []
    for _ in range(TEXTURES):
        focus, turn = 4 * rng.random() ** 2, rng.uniform(0, 2 * math.pi)
        log_gain = focus * (math.cos(turn) * cos + math.sin(turn) * sin)
        log_gain -= rng.uniform(0.8, 1.8) * log_k
        if rng.random() < 0.5:
            off = log_k + math.log(_log_uniform(rng, *WAVELENGTH))
            log_gain += 3 * np.exp(-((off / rng.uniform(0.3, 0.6)) ** 2))
        field = fft.irfft2(np.where(k < 2, 0, np.exp(log_gain)) * waves, (height, width))
        fields.append(field / field.std())
    return np.stack(fields)


def _soften(mask: Mask, sigma: float) -> Floats32:
    """Return a mask in [0, 1], blurred by about a Gaussian of `sigma` pixels."""
    soft = mask.astype(np.float32)
    for _ in range(2):  # two boxes of side w have the variance of sigma when w = sqrt(6) sigma
        soft = ndimage.uniform_filter(soft, max(1, round(2.45 * sigma)), mode="nearest")
    return soft
