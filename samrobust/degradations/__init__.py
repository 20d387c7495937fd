"""The registries of degradations, which make prompts from masks, searches, and corruptions."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from samrobust.registry import Entry, Registry
from samrobust.types import Corruption, Degradation, Search


@dataclass(frozen=True)
class DegradationEntry(Entry):
    """A built-in degradation.

    Attributes:
        axes: what figures write at an axis, by the parameters that are the level of a condition,
            comma-separated.
    """

    axes: Mapping[str, str] = field(default_factory=dict)


DEGRADATION_ENTRIES = {
    "exact-box": DegradationEntry(
        "samrobust.degradations.boxes:ExactBox",
        "box of the first and last column and row of the mask; no parameters",
    ),
    "box-noise": DegradationEntry(
        "samrobust.degradations.boxes:BoxNoise",
        "box with noise on centre and sides; shift, scale",
        axes={
            "shift, scale": "box noise (fraction of side)",
            "shift": "centre noise (fraction of side)",
            "scale": "side noise (fraction of side)",
        },
    ),
    "box-shift": DegradationEntry(
        "samrobust.degradations.boxes:BoxShift",
        "box moved by a fraction of its sides in a random direction; amount",
        axes={"amount": "box shift (fraction of side)"},
    ),
    "box-scale": DegradationEntry(
        "samrobust.degradations.boxes:BoxScale",
        "box scaled about its centre; factor",
        axes={"factor": "scale of the box"},
    ),
    "human-box": DegradationEntry(
        "samrobust.degradations.human:HumanBox",
        "box as far from the tight one as people's are; percentile, shape, scale",
        axes={"percentile": "error of the box (human percentile)"},
    ),
    "random-points": DegradationEntry(
        "samrobust.degradations.points:RandomPoints",
        "points drawn uniformly from the mask; count, background",
        axes={"count": "points"},
    ),
    "centre-point": DegradationEntry(
        "samrobust.degradations.points:CentrePoint",
        "the mask's pixel farthest from the outside; background",
    ),
    "border-points": DegradationEntry(
        "samrobust.degradations.points:BorderPoints",
        "points inside the mask near its contour; count, band, background",
        axes={"count": "points near the border"},
    ),
    "click": DegradationEntry(
        "samrobust.degradations.clicks:Click",
        "the first click of a simulated user; policy, gamma, group",
    ),
    "part-box": DegradationEntry(
        "samrobust.degradations.parts:PartBox",
        "exact box of a random part of the object; side",
        axes={"side": "part (fraction of side)"},
    ),
    "part-points": DegradationEntry(
        "samrobust.degradations.parts:PartPoints",
        "points drawn uniformly from a random part of the object; count, side",
        axes={"count": "points on a part"},
    ),
}
DEGRADATIONS: Registry[type[Degradation]] = Registry(
    "degradation", DEGRADATION_ENTRIES, group="samrobust.degradations"
)
SEARCHES: Registry[type[Search]] = Registry(
    "search",
    {
        name: Entry(f"samrobust.degradations.search:{target}", summary)
        for name, target, summary in (
            ("worst-box", "WorstBox", "the box of lowest IoU among those as near as people's"),
            ("best-box", "BestBox", "the box of highest IoU that this search asks"),
            ("worst-box-by-gradient", "WorstBoxByGradient", "as worst-box, by steps of Adam"),
            ("best-box-by-gradient", "BestBoxByGradient", "as best-box, of that search"),
            ("worst-point", "WorstPoint", "the point of lowest IoU among those people may click"),
            ("best-point", "BestPoint", "the point of highest IoU that this search asks"),
        )
    },
    group="samrobust.searches",
)
"""What `search = "NAME"` of a condition means; it asks a segmenter, and finds a prompt for it."""

_BLUR = {"blur": "defocus-blur, glass-blur, motion-blur or zoom-blur"}
CORRUPTION_ENTRIES = {
    name: Entry(
        f"samrobust.degradations.corruptions:{attribute}",
        f"{summary}; severity",
        hints=_BLUR if "blur" in name else {},
    )
    for name, attribute, summary in (
        ("gaussian-noise", "GaussianNoise", "normal noise on each value"),
        ("shot-noise", "ShotNoise", "Poisson noise on each value"),
        ("impulse-noise", "ImpulseNoise", "single values set to 0 or 1"),
        ("defocus-blur", "DefocusBlur", "blur by a disc"),
        ("glass-blur", "GlassBlur", "blur with pixels replaced by near ones"),
        ("motion-blur", "MotionBlur", "blur to one side along a random line"),
        ("zoom-blur", "ZoomBlur", "mean of zooms into the centre"),
        ("snow", "Snow", "falling flakes in a paler image"),
        ("frost", "Frost", "a layer of drawn frost"),
        ("fog", "Fog", "a fractal haze"),
        ("brightness", "Brightness", "value of HSV raised"),
        ("contrast", "Contrast", "values drawn towards their mean"),
        ("elastic-transform", "ElasticTransform", "pixels displaced by smoothed noise"),
        ("pixelate", "Pixelate", "fewer pixels"),
        ("jpeg-compression", "JpegCompression", "stored as JPEG of low quality"),
    )
}
CORRUPTIONS: Registry[type[Corruption]] = Registry(
    "corruption", CORRUPTION_ENTRIES, group="samrobust.corruptions"
)
