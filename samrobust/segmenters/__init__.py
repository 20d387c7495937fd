"""Promptable segmenters behind one face; the built-ins and how others are added."""

from pathlib import Path
from typing import Any

from samrobust.registry import Entry, Registry
from samrobust.types import EncoderDtype, Frame, Segmenter, SegmenterBuilder, SegmenterOptions

SEGMENTERS: Registry[SegmenterBuilder] = Registry(
    "segmenter",
    {
        "box-fill": Entry(
            "samrobust.segmenters.baselines:build_box_fill",
            "control: the box itself, filled",
            takes=(),
        ),
        "ellipse": Entry(
            "samrobust.segmenters.baselines:build_ellipse",
            "control: the ellipse inscribed in the box",
            takes=(),
        ),
        "grabcut": Entry(
            "samrobust.segmenters.baselines:build_grabcut",
            "control: OpenCV's GrabCut, 3 iterations",
            takes=(),
        ),
        "sam-nano": Entry(
            "samrobust.segmenters.nano:build_sam_nano",
            "a small SAM that comes with the package",
            takes=(),
        ),
        "sam": Entry(
            "samrobust.segmenters.sam:build_sam",
            "Segment Anything",
            takes=("--variant", "--checkpoint"),
        ),
        "mobile-sam": Entry(
            "samrobust.segmenters.mobile_sam:build_mobile_sam",
            "MobileSAM, from a file of yours",
            takes=("--checkpoint",),
        ),
        "hq-sam": Entry(
            "samrobust.segmenters.hq_sam:build_hq_sam",
            "HQ-SAM, the official models or parts that samrobust train wrote",
            takes=("--variant", "--checkpoint", "--base-checkpoint", "--output"),
        ),
        "stable-sam": Entry(
            "samrobust.segmenters.stable_sam:build_stable_sam",
            "Stable-SAM; comes with plugins for sam-nano",
            takes=("--checkpoint", "--base-checkpoint"),
        ),
        "transformers": Entry(
            "samrobust.segmenters.transformers:build_transformers",
            "SAM, SAM-HQ, SAM 2, EdgeTAM, SAM 3 by model id or folder",
            takes=("--variant", "--checkpoint", "--output"),
        ),
        "decoder-tuned": Entry(
            "samrobust.segmenters.adapters:build_decoder_tuned",
            "a SAM with a tuned mask decoder",
            takes=("--checkpoint", "--base-checkpoint"),
        ),
        "lora-tuned": Entry(
            "samrobust.segmenters.adapters:build_lora_tuned",
            "a SAM with low-rank updates in its mask decoder",
            takes=("--checkpoint", "--base-checkpoint"),
        ),
        "token-tuned": Entry(
            "samrobust.segmenters.adapters:build_token_tuned",
            "a SAM with tuned mask tokens",
            takes=("--checkpoint", "--base-checkpoint"),
        ),
    },
    group="samrobust.segmenters",
)


def build_segmenter(
    name: str,
    *,
    variant: str = "",
    checkpoint: str | Path | None = None,
    base_checkpoint: str | Path | None = None,
    output: str = "",
    device: str = "auto",
    dtype: EncoderDtype = "float32",
    frame: Frame = "longest-side",
) -> Segmenter[Any]:
    """Return a segmenter, ready to run; published weights are downloaded and cached.

    Args:
        name: as registered; `samrobust ls segmenters` lists all with their variants.
        variant: one of its models, as "vit_b"; "" for its default.
        checkpoint: a weights file, None for the published or packaged one.
        base_checkpoint: weights file of the SAM that `checkpoint` is a part of.
        output: which masks an HQ-SAM gives, "sum" or "hq"; "" for its default.
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: precision of the image encoder.
        frame: how images reach a SAM: "longest-side" (aspect kept) or "squash".

    Raises:
        UnknownNameError: no segmenter has that name.
        SegmenterError: an option is not one of its own, or its weights cannot be had.
    """
    from samrobust.segmenters.device import resolve_device

    options = SegmenterOptions(
        variant,
        None if checkpoint is None else Path(checkpoint),
        resolve_device(device),
        dtype,
        frame,
        None if base_checkpoint is None else Path(base_checkpoint),
        output,
    )
    return SEGMENTERS.load(name)(options)
