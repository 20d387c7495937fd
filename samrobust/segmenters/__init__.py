"""Promptable segmenters behind one face; the built-ins and how others are added."""

from samrobust.registry import Entry, Registry
from samrobust.types import SegmenterBuilder

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
