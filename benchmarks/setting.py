"""What `benchmarks.speed` runs, by both ways; it crosses to their processes as JSON."""

from dataclasses import dataclass, replace
from pathlib import Path

from segment_anything.build_sam import sam_model_registry
from segment_anything.modeling.sam import Sam as SamModel

from benchmarks.photograph import DrawnPhotograph
from samrobust.protocol import load_protocol, with_trials
from samrobust.segmenters.nano import CHANNELS, NAME, build_sam_nano
from samrobust.segmenters.sam import Sam, build_sam
from samrobust.types import EncoderDtype, EvalProtocol, SegmenterOptions

WIDTH, HEIGHT = 1024, 768
PROTOCOL = "noisy-box"
Figures = dict[str, float]
"""Name -> what was measured."""


@dataclass(frozen=True)
class Setting:
    """What is run, by both ways.

    Attributes:
        variant: of SAM, or sam-nano.
        weights: file of a SAM's weights.
        device: "cpu" or "cuda".
        dtype: of our encoder; the careful loop is float32.
        objects: in the photograph.
        trials: of the protocol noisy-box.
        images: that samrobust evaluates; the careful loop takes one.
        workers: processes that load them.
        compiled: whether samrobust runs with `--compile`.
    """

    variant: str
    weights: str
    device: str
    dtype: EncoderDtype
    objects: int
    trials: int
    images: int
    workers: int
    compiled: bool = False

    def segmenter(self) -> Sam:
        """Return it as samrobust runs it."""
        options = SegmenterOptions(device=self.device, dtype=self.dtype, compile=self.compiled)
        if self.variant == NAME:
            return build_sam_nano(options)
        weights = Path(self.weights)
        return build_sam(replace(options, variant=self.variant, checkpoint=weights))

    def stock(self) -> SamModel:
        """Return the model as segment-anything runs it: SAM-nano without its finer features."""
        if self.variant == NAME:
            nano = build_sam_nano(SegmenterOptions(device=self.device)).model
            nano.image_encoder.register_forward_hook(lambda _, __, made: made[:, :CHANNELS])
            return nano
        build = sam_model_registry[self.variant]
        model: SamModel = build(checkpoint=self.weights)  # type: ignore[no-untyped-call]
        return model.to(self.device)

    def photographs(self, n_images: int) -> DrawnPhotograph:
        """Return the data."""
        return DrawnPhotograph(WIDTH, HEIGHT, self.objects, n_images)

    def protocol(self, trials: int) -> EvalProtocol:
        """Return noisy-box with so many trials."""
        return with_trials(load_protocol(PROTOCOL), trials)
