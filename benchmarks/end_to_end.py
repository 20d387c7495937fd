"""Prompts per second of samrobust and of a careful researcher's loop, side by side in one run.

The careful loop sets the image once with segment-anything's own predictor, predicts prompt by
prompt and scores each mask with NumPy (IoU) and OpenCV (Boundary IoU). Weights are random.

    python -m benchmarks.end_to_end --objects 1 --objects 7
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer
from segment_anything.build_sam import sam_model_registry
from segment_anything.predictor import SamPredictor

from benchmarks.photograph import OnePhotograph, save_random_sam
from samrobust.evaluation import Evaluated, LoopOptions, draw_sample, evaluate
from samrobust.interfaces import EvalProtocol, Segmenter, SegmenterOptions
from samrobust.metrics.overlap import boundary_width
from samrobust.protocol import load_protocol
from samrobust.segmenters.allocator import keep_large_blocks
from samrobust.segmenters.sam import build_sam
from samrobust.types import Mask

WIDTH, HEIGHT = 1024, 768


def main(
    *,
    objects: Annotated[list[int] | None, typer.Option(help="Objects; default 1 and 7.")] = None,
    variant: Annotated[str, typer.Option(help="Of SAM.")] = "vit_b",
    repeats: Annotated[int, typer.Option(help="Runs of each way; medians are compared.")] = 3,
    out: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
) -> None:
    """Measure both ways, in turn, on a drawn photograph under the noisy-box protocol."""
    protocol = load_protocol("noisy-box")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / f"{variant}.pth"
        save_random_sam(variant, weights)
        model = sam_model_registry[variant](checkpoint=str(weights))  # type: ignore[no-untyped-call]
        predictor = SamPredictor(model.eval())
        segmenter = build_sam(SegmenterOptions(variant=variant, checkpoint=weights))
        for n_objects in objects or [1, 7]:
            photograph = OnePhotograph(WIDTH, HEIGHT, n_objects)
            careful, ours = [], []
            for _ in range(repeats):
                careful.append(careful_loop(predictor, photograph, protocol))
                ours.append(our_loop(segmenter, photograph, protocol))
            rows.append(_row(variant, n_objects, careful, ours))
            print(json.dumps(rows[-1]))
    if out is not None:
        out.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=2) + "\n")


def careful_loop(
    predictor: SamPredictor, photograph: OnePhotograph, protocol: EvalProtocol
) -> float:
    """Return prompts a second of the careful loop; drawing the prompts is not counted."""
    (sample_id,) = photograph.ids()
    drawn = draw_sample(photograph[sample_id], photograph.info.key, protocol)
    started, n_prompts = time.perf_counter(), 0
    predictor.set_image(drawn.sample.image)
    for draws in drawn.draws:
        target = draws.instance.mask
        for box in draws.prompts.boxes if draws.prompts.boxes is not None else []:
            masks, _, _ = predictor.predict(box=box, multimask_output=False)
            _scores_by_opencv(np.asarray(masks[0]), target)
            n_prompts += 1
    return n_prompts / (time.perf_counter() - started)


def our_loop(segmenter: Segmenter[Any], photograph: OnePhotograph, protocol: EvalProtocol) -> float:
    """Return prompts a second of `evaluate`, drawing of prompts and stability included."""
    started = time.perf_counter()
    (result,) = evaluate(
        segmenter, photograph, protocol, sample_ids=photograph.ids(), options=LoopOptions()
    )
    seconds = time.perf_counter() - started
    return result.n_prompts / seconds if isinstance(result, Evaluated) else 0.0


def _scores_by_opencv(mask: Mask, target: Mask) -> tuple[float, float]:
    width = boundary_width(*target.shape)
    bands = [_band(values.astype(np.uint8), width) for values in (mask, target)]
    return _iou(mask, target), _iou(bands[0] > 0, bands[1] > 0)


def _band(mask: Any, width: int) -> Any:  # noqa: ANN401
    framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=width)
    return mask - eroded[1:-1, 1:-1]


def _iou(one: Mask, other: Mask) -> float:
    return float((one & other).sum() / max((one | other).sum(), 1))


def _row(
    variant: str, n_objects: int, careful: list[float], ours: list[float]
) -> dict[str, str | float]:
    per_second = statistics.median(careful), statistics.median(ours)
    return {
        "variant": variant,
        "objects": n_objects,
        "prompts_an_object": 121,
        "careful_prompts_per_s": round(per_second[0], 2),
        "samrobust_prompts_per_s": round(per_second[1], 2),
        "ratio": round(per_second[1] / per_second[0], 2),
    }


if __name__ == "__main__":
    keep_large_blocks()
    typer.run(main)
