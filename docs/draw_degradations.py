"""Draw the degradations and corruptions: `python docs/draw_degradations.py [FOLDER]`.

There is one picture per degradation, and one of all corruptions.

Every picture shows the same object of a drawn scene (data set `scenes`), one panel per setting of
the degradation: the outline of the target, its exact box, and 20 trials, of which the first three
stand out. No external photograph is needed.
"""

import argparse
import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image

from samrobust.datasets.scenes import draw_scene
from samrobust.degradations import CORRUPTIONS, DEGRADATIONS
from samrobust.geometry import mask_to_box
from samrobust.types import Instance, Mask, Prompt, Sample

SCENE, INSTANCE = 21, 1
SEVERITY = 4
TRIALS = 20
COLOURS = ("#d81b60", "#1e88e5", "#00796b")
"""Of the first trials, the same in every panel."""
OTHERS = "#8a8a8a"
MAX_BYTES = 60_000

PANELS: dict[str, list[dict[str, Any]]] = {
    "exact-box": [{}],
    "box-noise": [{"shift": level, "scale": level} for level in (0.2, 0.4, 0.6)],
    "box-shift": [{"amount": amount} for amount in (0.1, 0.3, 0.5)],
    "box-scale": [{"factor": factor} for factor in (0.7, 1.2, 1.5)],
    "human-box": [{"percentile": 50}, {"percentile": 95}, {}],
    "random-points": [{"count": 1}, {"count": 3}, {"count": 3, "background": 2}],
    "centre-point": [{}, {"background": 3}],
    "border-points": [{"count": 1}, {"count": 3}, {"count": 3, "band": 0.15}],
    "part-box": [{"side": side} for side in (0.8, 0.6, 0.4)],
    "part-points": [{"count": 3, "side": side} for side in (0.8, 0.6, 0.4)],
}
"""Parameters of each panel, by the registered name of the degradation."""


def draw_degradation(name: str, sample: Sample, instance: Instance) -> bytes:
    """Return a PNG of at most `MAX_BYTES` that shows one degradation on one object."""
    panels = PANELS[name]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(2.9 * len(panels), 2.5), squeeze=False, layout="constrained"
    )
    for axis, parameters in zip(axes[0], panels, strict=True):
        degradation = DEGRADATIONS.load(name)(**parameters)
        trials = TRIALS if degradation.is_random else 1
        _draw_scene(axis, sample, instance.mask)
        for trial in reversed(range(trials)):  # the first ones are drawn on top
            # One seed per trial: panels of one picture share their noise, as in an evaluation.
            prompt = degradation(instance.mask, np.random.default_rng(trial))
            _draw_prompt(axis, prompt, trial)
        settings = ", ".join(f"{key} = {value}" for key, value in parameters.items())
        axis.set_title(settings or "no parameters", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    plt.close(figure)
    return _small_png(buffer)


def draw_corruptions(sample: Sample) -> bytes:
    """Return a JPEG of an image as it is and under each corruption, at `SEVERITY`."""
    panels = {"as stored": sample.image}
    for name in CORRUPTIONS.names():
        corruption = CORRUPTIONS.load(name)(severity=SEVERITY)
        panels[name] = corruption(sample.image.copy(), np.random.default_rng(0))
    figure, axes = plt.subplots(4, 4, figsize=(8, 6.6), layout="constrained")
    for axis, (name, image) in zip(axes.flat, panels.items(), strict=True):
        axis.imshow(image)
        axis.set_title(name, fontsize=8)
        axis.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpg", dpi=100, pil_kwargs={"quality": 75})
    plt.close(figure)
    return buffer.getvalue()


def _draw_scene(axis: Axes, sample: Sample, mask: Mask) -> None:
    """Draw the scene in pale grey and the target in yellow with a dark outline."""
    grey = sample.image.mean(axis=-1, keepdims=True) // 16 * 16  # few tones: a small file
    target = np.array([255, 214, 102]) * (0.7 + 0.3 * grey / 255)
    axis.imshow(np.where(mask[..., None], target, 0.2 * grey + 0.8 * 255).astype(np.uint8))
    axis.contour(mask, levels=[0.5], colors="#222222", linewidths=0.9)
    _draw_box(axis, mask_to_box(mask), edgecolor="#222222", lw=1.1, ls=(0, (3, 2)), zorder=4)
    axis.set_xlim(-6, mask.shape[1] + 5)
    axis.set_ylim(mask.shape[0] + 5, -6)
    axis.set_xticks([])
    axis.set_yticks([])


def _draw_prompt(axis: Axes, prompt: Prompt, trial: int) -> None:
    stands_out = trial < len(COLOURS)
    colour = COLOURS[trial] if stands_out else OTHERS
    if prompt.box is not None:
        _draw_box(axis, prompt.box, edgecolor=colour, lw=1.8 if stands_out else 0.7, zorder=3)
    for (x, y), label in zip(prompt.points, prompt.labels, strict=True):
        marker = "o" if label else "X"
        size = 6.5 if stands_out else 4
        axis.plot(x, y, marker, color=colour, ms=size, mec="white", mew=0.7, zorder=5)


def _draw_box(axis: Axes, box: npt.ArrayLike, **style: Any) -> None:  # noqa: ANN401
    x0, y0, x1, y1 = np.asarray(box).tolist()
    corner = (x0 - 0.5, y0 - 0.5)
    axis.add_patch(Rectangle(corner, x1 - x0 + 1, y1 - y0 + 1, fill=False, **style))


def _small_png(buffer: io.BytesIO) -> bytes:
    """Return the picture with as many colours as fit into `MAX_BYTES`."""
    picture = Image.open(buffer).convert("RGB")
    for colours in (256, 128, 64, 32):
        small = io.BytesIO()
        reduced = picture.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        reduced.save(small, "PNG", optimize=True)
        if small.tell() <= MAX_BYTES:
            return small.getvalue()
    raise ValueError(f"{small.tell()} bytes with 32 colours, the limit is {MAX_BYTES}")


def main() -> None:
    """Draw all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).parent / "reference" / "img"
    parser.add_argument("folder", nargs="?", type=Path, default=default)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    mpl.use("agg")
    sample = draw_scene(SCENE, width=640, height=480)
    for name in PANELS:
        (folder / f"{name}.png").write_bytes(
            draw_degradation(name, sample, sample.instances[INSTANCE])
        )
    (folder / "corruptions.jpg").write_bytes(draw_corruptions(sample))


if __name__ == "__main__":
    main()
