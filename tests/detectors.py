"""Detections that are made up from the truth: what a detector of COCO's objects might find.

They are drawn, not detected: boxes are the tight ones with noise, some objects are missed, some are
found twice, some boxes are of nothing, and scores follow the IoU of box and tight box.
`python -m tests.detectors ANNOTATIONS RESULTS NOISE` writes them.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

MISSED, TWICE, FALSE_ALARMS = 0.2, 0.15, 0.5
"""Share of the objects that are missed and found twice, and false alarms per object."""
NOISE = 0.08
"""Standard deviation of each side of a box, in sides of the tight one."""


def drawn_detections(annotations: Path, *, seed: int = 0, noise: float = NOISE) -> list[Any]:
    """Return results of COCO's format for the images of an annotation file."""
    table = json.loads(annotations.read_text())
    rng = np.random.default_rng(seed)
    sizes = {image["id"]: (image["width"], image["height"]) for image in table["images"]}
    categories = sorted(row["id"] for row in table["categories"])
    found = []
    for row in table["annotations"]:
        if row.get("iscrowd"):
            continue
        category, box = row["category_id"], np.array(row["bbox"], np.float64)
        for _ in range(int(rng.random() > MISSED) + int(rng.random() < TWICE)):
            corners = np.concatenate([box[:2], box[:2] + box[2:]])
            corners += rng.normal(0, noise, 4) * np.tile(box[2:], 2)
            moved = _inside(corners, sizes[row["image_id"]])
            overlap = float(coco.iou([moved], [box.tolist()], [0])[0, 0])
            score = float(np.clip(overlap + rng.normal(0, 0.15), 0.01, 1))
            found.append(_row(row["image_id"], category, moved, score))
        for _ in range(rng.poisson(FALSE_ALARMS)):
            width, height = sizes[row["image_id"]]
            corners = np.sort(rng.uniform(0, 1, (2, 2)), axis=0) * [width, height]
            other = int(rng.choice(categories))
            score = float(rng.uniform(0.01, 0.6))
            found.append(
                _row(row["image_id"], other, _inside(corners.ravel(), (width, height)), score)
            )
    return found


def _inside(corners: Any, size_wh: tuple[int, int]) -> list[float]:  # noqa: ANN401
    x0, y0, x1, y1 = np.clip(corners, 0, np.tile(size_wh, 2))
    x0, y0 = min(x0, size_wh[0] - 1), min(y0, size_wh[1] - 1)
    return [float(x0), float(y0), float(max(x1 - x0, 1)), float(max(y1 - y0, 1))]


def _row(image_id: int, category_id: int, bbox: list[float], score: float) -> dict[str, Any]:
    numbers = [round(value, 2) for value in bbox]
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": numbers,
        "score": round(score, 4),
    }


if __name__ == "__main__":
    import sys

    source, destination, *noises = sys.argv[1:]
    rows = drawn_detections(Path(source), noise=float(noises[0]) if noises else NOISE)
    Path(destination).write_text(json.dumps(rows))
