"""Promptable segmenters behind one face; the built-ins and how others are added."""

from samrobust.interfaces import SegmenterBuilder
from samrobust.registry import Entry, Registry

SEGMENTERS: Registry[SegmenterBuilder] = Registry(
    "segmenter",
    {
        "box-fill": Entry(
            "samrobust.segmenters.baselines:build_box_fill",
            "control: the box itself, filled; accepts boxes",
            takes=(),
        ),
        "ellipse": Entry(
            "samrobust.segmenters.baselines:build_ellipse",
            "control: the ellipse inscribed in the box; accepts boxes",
            takes=(),
        ),
        "grabcut": Entry(
            "samrobust.segmenters.baselines:build_grabcut",
            "control: OpenCV's GrabCut, 3 iterations; accepts boxes, points",
            takes=(),
        ),
        "sam-nano": Entry(
            "samrobust.segmenters.nano:build_sam_nano",
            "a small SAM that comes with the package; accepts boxes, points",
            takes=(),
        ),
        "sam": Entry(
            "samrobust.segmenters.sam:build_sam",
            "Segment Anything; accepts boxes, points; variants vit_b, vit_l, vit_h",
            takes=("--variant", "--checkpoint"),
        ),
        "stable-sam": Entry(
            "samrobust.segmenters.stable_sam:build_stable_sam",
            "Stable-SAM; accepts boxes, points; comes with plugins for sam-nano",
            takes=("--checkpoint", "--base-checkpoint"),
        ),
        "decoder-tuned": Entry(
            "samrobust.segmenters.tuned:build_decoder_tuned",
            "a SAM with a tuned mask decoder; accepts boxes, points",
            takes=("--checkpoint", "--base-checkpoint"),
        ),
        "token-tuned": Entry(
            "samrobust.segmenters.tuned:build_token_tuned",
            "a SAM with tuned mask tokens; accepts boxes, points",
            takes=("--checkpoint", "--base-checkpoint"),
        ),
    },
    group="samrobust.segmenters",
)
