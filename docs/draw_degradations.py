"""Draw one picture per registered degradation: `python docs/draw_degradations.py [FOLDER]`.

Every picture shows the same object of a drawn scene (data set `scenes`), one panel per setting of
the degradation, and several trials in each panel. No external photograph is needed.
"""

import argparse
import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image

from samrobust.datasets.scenes import draw_scene
from samrobust.degradations import DEGRADATIONS
from samrobust.types import Instance, Mask, Prompt, Sample

SCENE, INSTANCE = 21, 1
TRIALS = 6
COLOURS = ("#d81b60", "#1e88e5", "#ff8f00", "#00897b", "#7b1fa2", "#5d4037")
"""One colour per trial."""
MAX_BYTES = 60_000

PANELS: dict[str, list[dict[str, Any]]] = {
    "exact-box": [{}],
    "box-noise": [{"shift": level, "scale": level} for level in (0.2, 0.4, 0.6)],
    "box-shift": [{"amount": amount} for amount in (0.1, 0.3, 0.5)],
    "box-scale": [{"factor": factor} for factor in (0.7, 1.2, 1.5)],
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
        for trial in range(trials):
            # One seed per trial: panels of one picture share their noise, as in an evaluation.
            prompt = degradation(instance.mask, np.random.default_rng(trial))
            _draw_prompt(axis, prompt, COLOURS[trial])
        settings = ", ".join(f"{key} = {value}" for key, value in parameters.items())
        axis.set_title(settings or "no parameters", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    plt.close(figure)
    return _small_png(buffer)


def _draw_scene(axis: Axes, sample: Sample, mask: Mask) -> None:
    """Draw the scene in pale grey and the target in yellow with a dark outline."""
    grey = sample.image.mean(axis=-1, keepdims=True) // 16 * 16  # few tones: a small file
    target = np.array([255, 214, 102]) * (0.7 + 0.3 * grey / 255)
    axis.imshow(np.where(mask[..., None], target, 0.2 * grey + 0.8 * 255).astype(np.uint8))
    axis.contour(mask, levels=[0.5], colors="#222222", linewidths=0.9)
    axis.set_xlim(-6, mask.shape[1] + 5)
    axis.set_ylim(mask.shape[0] + 5, -6)
    axis.set_xticks([])
    axis.set_yticks([])


def _draw_prompt(axis: Axes, prompt: Prompt, colour: str) -> None:
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box.tolist()
        frame = Rectangle(
            (x0 - 0.5, y0 - 0.5), x1 - x0 + 1, y1 - y0 + 1, fill=False, edgecolor=colour, lw=1.6
        )
        axis.add_patch(frame)
    for (x, y), label in zip(prompt.points, prompt.labels, strict=True):
        marker = "o" if label else "X"
        axis.plot(x, y, marker, color=colour, markersize=6.5, markeredgecolor="white", mew=0.9)


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


if __name__ == "__main__":
    main()
