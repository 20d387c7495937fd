"""Segment Anything (Kirillov et al. 2023) as a segmenter: one image, many prompts, no state."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from segment_anything.build_sam import sam_model_registry
from segment_anything.modeling.sam import Sam as SamModel
from torch import Tensor

from samrobust.errors import SegmenterError
from samrobust.interfaces import EncoderDtype, SegmenterOptions
from samrobust.registry import known
from samrobust.segmenters.attention import AttentionKind, replace_attention
from samrobust.segmenters.checkpoints import SAM_CHECKPOINTS, fetch, fill_model, load_state
from samrobust.segmenters.decoder import (
    CANDIDATES,
    SINGLE,
    DecoderKind,
    FastDecoder,
    StockDecoder,
)
from samrobust.segmenters.device import resolve_device
from samrobust.segmenters.frames import MASK_THRESHOLD, InputFrame, input_scale
from samrobust.types import Frame, Image, Prediction, PromptBatch, SegmenterInfo

DEFAULT_VARIANT = "vit_b"
"""The smallest, which a CPU can run. Differs: segment_anything's default is vit_h."""


@dataclass(frozen=True)
class SamEmbedding:
    """What a SAM knows of one image.

    Attributes:
        features: (1, C, h, w) float32, on the model's device.
        size_hw: of the image.
        input_size_hw: of the image in the encoder's square input.
    """

    features: Tensor
    size_hw: tuple[int, int]
    input_size_hw: tuple[int, int]


@dataclass(frozen=True)
class SamOptions:
    """How a SAM is run; only `frame` and `dtype` change more than rounding.

    Attributes:
        frame: how images reach the encoder.
        dtype: of the encoder; prompts and masks are always float32.
        attention: of the encoder.
        decoder: ours or segment_anything's own.
    """

    frame: Frame = "longest-side"
    dtype: EncoderDtype = "float32"
    attention: AttentionKind = "blocked"
    decoder: DecoderKind = "fast"


class Sam:
    """A SAM that segments; see `samrobust.interfaces.Segmenter`.

    Args:
        model: with its weights, on its device. It is taken over: frozen, its encoder cast and its
            encoder's attention replaced.
        options: how to run it.
        name: as registered.
        variant: which model it is ("vit_b").
        checkpoint_sha256: of the weights file, "" where there is none.
    """

    def __init__(
        self,
        model: SamModel,
        options: SamOptions | None = None,
        *,
        name: str = "sam",
        variant: str = "",
        checkpoint_sha256: str = "",
    ) -> None:
        options = options or SamOptions()
        self.model = model.eval().requires_grad_(False)
        self.info = SegmenterInfo(
            name,
            frozenset({"box", "points"}),
            variant=variant,
            frame=options.frame,
            dtype=options.dtype,
            multimask=True,
            checkpoint_sha256=checkpoint_sha256,
            settings={
                "mask_threshold": MASK_THRESHOLD,
                "attention": options.attention,
                "decoder": options.decoder,
            },
        )
        self._dtype: torch.dtype = getattr(torch, options.dtype)
        self._frame = InputFrame(options.frame, model.image_encoder.img_size)
        self._decode = (FastDecoder if options.decoder == "fast" else StockDecoder)(model)
        model.image_encoder.to(self._dtype)
        replace_attention(model.image_encoder, options.attention)

    def encode(self, images: Sequence[Image]) -> list[SamEmbedding]:
        """Return the embeddings of images, each encoded alone: no image changes another's.

        Raises:
            SegmenterError: the encoder's dtype is too narrow for an image.
        """
        return [self._encode(image) for image in images]

    def predict(
        self, embedding: SamEmbedding, prompts: PromptBatch, *, multimask: bool = False
    ) -> Prediction:
        """Return M = 1 mask a prompt, or 3 with `multimask`; quality is the predicted IoU.

        Memory grows with N; the caller chooses how many prompts come at once.
        """
        masks_wanted = CANDIDATES if multimask else SINGLE
        logits, quality = self.logits(embedding, prompts, masks=masks_wanted)
        masks = self._frame.to_masks(
            logits, input_hw=embedding.input_size_hw, size_hw=embedding.size_hw
        )
        return Prediction(masks, quality)

    def logits(
        self, embedding: SamEmbedding, prompts: PromptBatch, *, masks: range = SINGLE
    ) -> tuple[Tensor, Tensor]:
        """Return what `predict` makes masks of: logits (N, M, 4h, 4w) and quality (N, M), float32.

        `masks` are the wanted ones of the decoder's four.

        Autocast is off: in bfloat16 a point moves by more than a pixel (facts/performance.md 6).
        """
        with torch.autocast(self.model.device.type, enabled=False):
            tokens = self._embed_prompts(embedding, prompts)
            return self._decode(embedding.features, tokens, masks=masks)

    def _encode(self, image: Image) -> SamEmbedding:
        pixels = self._frame.to_input(image).to(self.model.device)
        with torch.autocast(self.model.device.type, enabled=False):
            square = self.model.preprocess(pixels[None]).to(self._dtype)
            features = self.model.image_encoder(square).float()
        if not features.isfinite().all():
            raise SegmenterError(
                f"{self.info.label}: an embedding overflows in {self.info.dtype}; "
                "allowed: bfloat16, float32"
            )
        height, width = pixels.shape[-2:]
        return SamEmbedding(features, (image.shape[0], image.shape[1]), (height, width))

    def _embed_prompts(self, embedding: SamEmbedding, prompts: PromptBatch) -> Tensor:
        """Return (N, P, C), the tokens of points and box corners."""
        scale = input_scale(embedding.size_hw, embedding.input_size_hw)
        device = self.model.device
        points, boxes = None, None
        if prompts.points.shape[1]:
            xy = torch.tensor(prompts.points * scale, dtype=torch.float32, device=device)
            points = (xy, torch.tensor(prompts.labels, device=device))
        if prompts.boxes is not None:
            xyxy = prompts.boxes * np.tile(scale, 2)
            boxes = torch.tensor(xyxy, dtype=torch.float32, device=device)
        tokens: Tensor = self.model.prompt_encoder(points, boxes, masks=None)[0]
        return tokens


def build_sam(options: SegmenterOptions) -> Sam:
    """Return a SAM with the weights of a file, or with Meta's, fetched once.

    Raises:
        UnknownNameError: the variant is not one of SAM's.
        SegmenterError: the device is not here.
        CheckpointError: the weights cannot be had, or are of another model.
    """
    variant = known(options.variant or DEFAULT_VARIANT, SAM_CHECKPOINTS, kind="variant of sam")
    device = resolve_device(options.device)
    path = options.checkpoint or fetch(SAM_CHECKPOINTS[variant], progress=options.progress)
    state, sha256 = load_state(path, variant=variant)
    model: SamModel = sam_model_registry[variant]()  # type: ignore[no-untyped-call]
    fill_model(model, state, path=path)
    blocked = device == "cpu" and options.dtype == "float32"
    chosen = SamOptions(options.frame, options.dtype, "blocked" if blocked else "fused")
    return Sam(model.to(device), chosen, variant=variant, checkpoint_sha256=sha256)
