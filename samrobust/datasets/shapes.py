"""Outlines of things, by family: solid, with holes and with thin parts."""

import math
from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from samrobust.types import Mask

Floats32: TypeAlias = npt.NDArray[np.float32]
Stroke: TypeAlias = tuple[float, float, float, float, float]
Family: TypeAlias = Callable[[np.random.Generator, Floats32, Floats32], Mask]
"""Where a shape is, of x to the right and y down; shapes about fill the unit circle."""


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
    """Return two strokes a limb, bent at the joint; a limb is x, y, angle, bone length, radius."""
    strokes = []
    for x, y, angle, length, radius in limbs:
        for _ in range(2):
            angle += rng.normal(0, 0.3)
            start, x, y = (x, y), x + length * math.sin(angle), y + length * math.cos(angle)
            strokes.append((*start, x, y, radius))
    return strokes


def _strokes(x: Floats32, y: Floats32, strokes: Iterable[Stroke]) -> Mask:
    """Return what lies within the radius of a segment; a stroke is x0, y0, x1, y1, radius."""
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
