"""Prompts per second of samrobust and of a careful researcher's loop, side by side in one run.

The careful loop sets the image once with segment-anything's own predictor, predicts prompt by
prompt and scores each mask with NumPy (IoU) and OpenCV (Boundary IoU). Weights are random. The
encoding of the image, which both do once, is also given alone: where the machine's matrix products
bound it, it bounds the ratio.

    python -m benchmarks.end_to_end --objects 1 --objects 7
"""

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer
from segment_anything.build_sam import sam_model_registry
from segment_anything.predictor import SamPredictor

from benchmarks.photograph import OnePhotograph, save_random_sam
from samrobust.evaluation import LoopOptions, draw_sample, evaluate
from samrobust.interfaces import EvalProtocol, Segmenter, SegmenterOptions
from samrobust.metrics.overlap import boundary_width
from samrobust.protocol import load_protocol
from samrobust.segmenters.allocator import keep_large_blocks
from samrobust.segmenters.sam import build_sam
from samrobust.types import Mask

WIDTH, HEIGHT = 1024, 768
PROMPTS_AN_OBJECT = 121
"""Of the noisy-box protocol."""


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
            rows.append(_row(n_objects, careful, ours))
            print(json.dumps(rows[-1]))
    if out is not None:
        out.write_text(
            json.dumps({"torch": torch.__version__, "variant": variant, "rows": rows}, indent=2)
            + "\n"
        )


@dataclass(frozen=True)
class Timing:
    """Seconds of one way: the encoding of the image alone, and everything."""

    encode: float
    total: float


def careful_loop(
    predictor: SamPredictor, photograph: OnePhotograph, protocol: EvalProtocol
) -> Timing:
    """Return the seconds of the careful loop; drawing the prompts is not counted."""
    (sample_id,) = photograph.ids()
    drawn = draw_sample(photograph[sample_id], photograph.info.key, protocol)
    started = time.perf_counter()
    predictor.set_image(drawn.sample.image)
    encoded = time.perf_counter()
    for draws in drawn.draws:
        target = draws.instance.mask
        for box in draws.prompts.boxes if draws.prompts.boxes is not None else []:
            masks, _, _ = predictor.predict(box=box, multimask_output=False)
            _scores_by_opencv(np.asarray(masks[0]), target)
    return Timing(encoded - started, time.perf_counter() - started)


def our_loop(
    segmenter: Segmenter[Any], photograph: OnePhotograph, protocol: EvalProtocol
) -> Timing:
    """Return the seconds of `evaluate`, drawing of prompts and stability included.

    The encoding is timed apart, before it, and done again within it.
    """
    ids = photograph.ids()
    started = time.perf_counter()
    with torch.inference_mode():
        segmenter.encode([photograph[ids[0]].image])
    encoded = time.perf_counter()
    list(evaluate(segmenter, photograph, protocol, sample_ids=ids, options=LoopOptions()))
    return Timing(encoded - started, time.perf_counter() - encoded)


def matrix_peak() -> float:
    """Return the fastest of ten float32 matrix products of ViT-B's shapes, in GFLOP/s."""
    rows, inner, columns = 4096, 768, 3072
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    best = 0.0
    for _ in range(10):
        started = time.perf_counter()
        torch.mm(left, right)
        best = max(best, 2 * rows * inner * columns / (time.perf_counter() - started) / 1e9)
    return best


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


def _row(n_objects: int, careful: Sequence[Timing], ours: Sequence[Timing]) -> dict[str, float]:
    encode = [statistics.median(timing.encode for timing in way) for way in (careful, ours)]
    total = [statistics.median(timing.total for timing in way) for way in (careful, ours)]
    return {
        "objects": n_objects,
        "prompts": n_objects * PROMPTS_AN_OBJECT,
        "careful_s": round(total[0], 2),
        "samrobust_s": round(total[1], 2),
        "ratio": round(total[0] / total[1], 2),
        "careful_encode_s": round(encode[0], 2),
        "samrobust_encode_s": round(encode[1], 2),
        "ratio_after_encoding": round((total[0] - encode[0]) / (total[1] - encode[1]), 2),
        "matrix_peak_gflop_per_s": round(matrix_peak()),
    }


if __name__ == "__main__":
    keep_large_blocks()
    typer.run(main)
