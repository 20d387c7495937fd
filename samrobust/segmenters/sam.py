"""Segment Anything (Kirillov et al. 2023) as a segmenter: one image, many prompts, no state."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from segment_anything.build_sam import sam_model_registry
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.image_encoder import ImageEncoderViT
from segment_anything.modeling.mask_decoder import MaskDecoder
from segment_anything.modeling.prompt_encoder import PromptEncoder
from segment_anything.modeling.sam import Sam as SamModel
from segment_anything.modeling.transformer import TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional

from samrobust.errors import SegmenterError
from samrobust.metrics.overlap import dice_loss
from samrobust.registry import known
from samrobust.segmenters import ROWS
from samrobust.segmenters.device import resolve_device, to_device
from samrobust.segmenters.frames import (
    MASK_THRESHOLD,
    InputFrame,
    input_scale,
    quality_or_nan,
)
from samrobust.segmenters.published import fetch
from samrobust.segmenters.sam_attention import AttentionKind, compile_blocks, replace_attention
from samrobust.segmenters.sam_decoder import (
    CANDIDATES,
    SINGLE,
    DecoderKind,
    FastDecoder,
    StockDecoder,
    prompt_tokens,
)
from samrobust.segmenters.weights import Weights, fill_model, load_family, split_hq
from samrobust.types import (
    EncoderDtype,
    Frame,
    Image,
    Prediction,
    PromptBatch,
    SegmenterInfo,
    SegmenterOptions,
    Selection,
)

DEFAULT_VARIANT = "vit_b"
"""The smallest, which a CPU can run. Differs: segment_anything's default is vit_h."""
SIDE, STRIDE, CHANNELS = 1024, 16, 256
"""Of the encoder's input and features, in Meta's SAMs and in those with another encoder."""
SAM_CHECKPOINTS = ROWS["sam"].checkpoints
"""Meta's files by variant."""

Sizes = tuple[tuple[int, int], tuple[int, int]]
"""(H, W) of an image, and (h, w) of it in the encoder's square input."""


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


E = TypeVar("E", bound=SamEmbedding)


@dataclass(frozen=True)
class SamOptions:
    """How a SAM is run; only `frame` and `dtype` change more than rounding.

    Attributes:
        frame: how images reach the encoder.
        dtype: of the encoder; prompts and masks are always float32.
        attention: of the encoder.
        decoder: ours or segment_anything's own.
        compiled: whether the blocks of a ViT encoder and the fast decoder are compiled, when they
            first run.
    """

    frame: Frame = "longest-side"
    dtype: EncoderDtype = "float32"
    attention: AttentionKind = "blocked"
    decoder: DecoderKind = "fast"
    compiled: bool = False


class _Decodes(Protocol):
    """A SAM, or a segmenter made of one."""

    @property
    def base(self) -> "Sam":
        """Return the SAM that makes tokens of prompts, and masks of logits."""
        ...

    def decode(
        self,
        embedding: Any,  # noqa: ANN401
        tokens: Tensor,
        *,
        masks: range = SINGLE,
    ) -> tuple[Tensor, Tensor]:
        """Return logits and quality; see `Sam.decode`."""
        ...


class BoxGradients:
    """What gives a SAM, and segmenters made of one, `samrobust.types.GivesGradients`."""

    def predict_with_gradients(
        self: _Decodes,
        embedding: SamEmbedding,
        prompts: PromptBatch,
        targets: Tensor,
        thresholds: Sequence[float],
        *,
        selection: Selection,
    ) -> list[Prediction]:
        """Return what `predict_at` does, with gradients; see `samrobust.types.GivesGradients`.

        The dice loss is taken in the decoder's own grid, of probabilities. Of several candidates it
        is that of the highest quality, or by "oracle" of the lowest loss. Pixels that no metric
        counts are background to it.

        Args:
            embedding: of the image.
            prompts: N boxes.
            targets: (N, H, W) bool, on the CPU.
            thresholds: of the logits.
            selection: which of several candidates.

        Raises:
            SegmenterError: the prompts are no boxes.
        """
        sam = self.base
        scale = np.tile(input_scale(embedding.size_hw, embedding.input_size_hw), 2)
        with torch.inference_mode(mode=False), torch.enable_grad():
            # a tensor of inference mode can be in no graph
            tensors: dict[str, Any] = {
                name: tensor.clone()
                for name, tensor in vars(embedding).items()
                if isinstance(tensor, Tensor)
            }
            boxes, points, labels = sam.to_input_pixels(embedding, prompts)
            if boxes is None:
                raise SegmenterError(f"{sam.info.label}: gradients are of boxes, got none")
            tokens = sam.tokens(boxes.requires_grad_(), points, labels)
            masks = SINGLE if selection == "single" else CANDIDATES
            logits, quality = self.decode(replace(embedding, **tensors), tokens, masks=masks)
            on_device = to_device(targets, logits.device)
            shares = sam.to_grid(embedding, on_device, logits.shape[-2:])[:, None].clone()
            losses = dice_loss(logits, shares)
            chosen = losses.argmin(dim=1) if selection == "oracle" else quality.argmax(dim=1)
            loss = losses.gather(1, chosen[:, None]).sum()
            (gradients,) = torch.autograd.grad(loss, boxes)
        of_pixels = gradients * to_device(torch.tensor(scale, dtype=torch.float32), logits.device)
        predictions = sam.predictions(embedding, logits.detach(), quality.detach(), thresholds)
        return [replace(prediction, gradients=of_pixels) for prediction in predictions]


class Sam(BoxGradients):
    """A SAM that segments; see `samrobust.types.Segmenter` and `SharesEmbeddings`.

    Args:
        model: with its weights, on its device. It is taken over: frozen, its encoder cast and its
            encoder's attention replaced.
        options: how to run it.
        name: as registered.
        variant: which model it is ("vit_b").
        checkpoint_sha256: of the weights file, "" where there is none.
        trained_on: collections that it has seen images of.
        takes_masks: whether it has learned mask prompts.
    """

    embedding_type = SamEmbedding

    def __init__(
        self,
        model: SamModel,
        options: SamOptions | None = None,
        *,
        name: str = "sam",
        variant: str = "",
        checkpoint_sha256: str = "",
        trained_on: tuple[str, ...] = (),
        takes_masks: bool = True,
    ) -> None:
        options = options or SamOptions()
        self.model = model.eval().requires_grad_(False)
        self.info = SegmenterInfo(
            name,
            frozenset({"box", "points", "mask"} if takes_masks else {"box", "points"}),
            variant=variant,
            frame=options.frame,
            dtype=options.dtype,
            multimask=True,
            checkpoint_sha256=checkpoint_sha256,
            settings={
                "mask_threshold": MASK_THRESHOLD,
                "attention": options.attention,
                "decoder": options.decoder,
                **({"compiled": "inductor"} if options.compiled else {}),
            },
            trained_on=trained_on,
        )
        self._dtype: torch.dtype = getattr(torch, options.dtype)
        self._frame = InputFrame(options.frame, model.image_encoder.img_size)
        self._decode: FastDecoder | StockDecoder = (
            FastDecoder(model, compiled=options.compiled)
            if options.decoder == "fast"
            else StockDecoder(model)
        )
        model.image_encoder.to(self._dtype)
        replace_attention(model.image_encoder, options.attention)
        if options.compiled and isinstance(model.image_encoder, ImageEncoderViT):
            compile_blocks(model.image_encoder)

    @property
    def base(self) -> "Sam":
        """Return itself, as segmenters made of a SAM return theirs."""
        return self

    @property
    def device(self) -> torch.device:
        """Return where the model and its embeddings are."""
        device: torch.device = self.model.device
        return device

    @property
    def encoder_key(self) -> str:
        """Return what its embeddings depend on; "" where the weights are of no file."""
        settings = self.info.settings
        weights = settings.get("base_sha256", self.info.checkpoint_sha256)
        run = (self.info.frame, self.info.dtype, settings["attention"], settings.get("compiled"))
        return " ".join(map(str, (weights, *run, self.device.type))) if weights else ""

    def encode(self, images: Sequence[Image]) -> list[SamEmbedding]:
        """Return the embeddings of images, encoded together: others' change one by rounding alone.

        Raises:
            SegmenterError: the encoder's dtype is too narrow for an image.
        """
        squares, sizes = zip(*map(self.to_square, images), strict=True)
        return self.embed(torch.stack(squares), sizes)

    def predict(
        self, embedding: SamEmbedding, prompts: PromptBatch, *, multimask: bool = False
    ) -> Prediction:
        """Return M = 1 mask a prompt, or 3 with `multimask`; quality is the predicted IoU.

        Memory grows with N; the caller chooses how many prompts come at once.
        """
        return self.predict_at(embedding, prompts, [MASK_THRESHOLD], multimask=multimask)[0]

    def predict_at(
        self,
        embedding: SamEmbedding,
        prompts: PromptBatch,
        thresholds: Sequence[float],
        *,
        multimask: bool = False,
    ) -> list[Prediction]:
        """Return a prediction per threshold of the logits, which are decoded once."""
        masks_wanted = CANDIDATES if multimask else SINGLE
        logits, quality = self.logits(embedding, prompts, masks=masks_wanted)
        return self.predictions(embedding, logits, quality, thresholds)

    def predictions(
        self,
        embedding: SamEmbedding,
        logits: Tensor,
        quality: Tensor,
        thresholds: Sequence[float],
    ) -> list[Prediction]:
        """Return a prediction per threshold of logits (N, M, 4h, 4w) with quality (N, M)."""
        quality = quality_or_nan(quality, logits)
        fed_back = logits.detach() if "mask" in self.info.prompts else None
        return [
            Prediction(self.to_masks(embedding, logits, threshold), quality, fed_back)
            for threshold in thresholds
        ]

    def logits(
        self, embedding: SamEmbedding, prompts: PromptBatch, *, masks: range = SINGLE
    ) -> tuple[Tensor, Tensor]:
        """Return what `predict` makes masks of: logits (N, M, 4h, 4w) and quality (N, M), float32.

        `masks` are the wanted ones of the decoder's four.

        Raises:
            SegmenterError: it takes no mask prompts, or not of this size.
        """
        tokens, dense = self.embed_prompts(embedding, prompts), self.embed_masks(prompts)
        return self.decode(embedding, tokens, masks=masks, dense=dense)

    def decode(
        self,
        embedding: SamEmbedding,
        tokens: Tensor,
        *,
        masks: range = SINGLE,
        dense: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return what `logits` does, of tokens (N, P, C) from `embed_prompts`.

        The embedding may be one that `one_per_prompt` made, unless the decoder is the stock one.
        `dense` is what `embed_masks` returned. Autocast is off: in bfloat16 a point moves by more
        than a pixel (docs/sources/performance.md 6).
        """
        with torch.autocast(self.model.device.type, enabled=False):
            return self._decode(embedding.features, tokens, masks=masks, dense=dense)

    def to_masks(
        self, embedding: SamEmbedding, logits: Tensor, threshold: float = MASK_THRESHOLD
    ) -> Tensor:
        """Return masks (N, M, H, W) bool in the image's own size, of logits (N, M, 4h, 4w)."""
        return self._frame.to_masks(
            logits,
            input_hw=embedding.input_size_hw,
            size_hw=embedding.size_hw,
            threshold=threshold,
        )

    def to_grid(self, embedding: SamEmbedding, masks: Tensor, grid_hw: Sequence[int]) -> Tensor:
        """Return (N, h, w) float32, which share of each position of a grid is inside of masks.

        Args:
            embedding: of the image.
            masks: (N, H, W) bool in the image's own size.
            grid_hw: (h, w), of positions of the square input, as of features or logits.
        """
        side, input_hw = self._frame.side, embedding.input_size_hw
        resized = functional.interpolate(masks[:, None].float(), input_hw, mode="area")
        square = functional.pad(resized, (0, side - input_hw[1], 0, side - input_hw[0]))
        return functional.interpolate(square, tuple(grid_hw), mode="area")[:, 0]

    def to_square(self, image: Image) -> tuple[Tensor, Sizes]:
        """Return the encoder's normalised input (3, side, side), and the sizes of an embedding."""
        pixels = to_device(self._frame.to_input(image), self.model.device)
        sizes = (image.shape[0], image.shape[1]), (pixels.shape[-2], pixels.shape[-1])
        return self.model.preprocess(pixels), sizes

    def embed(self, squares: Tensor, sizes: Sequence[Sizes]) -> list[SamEmbedding]:
        """Return the embeddings of images that are the encoder's inputs already.

        Args:
            squares: (B, 3, side, side), normalised and padded, on the model's device.
            sizes: of each of the B images, as in their embeddings: its own, and in the square.

        Raises:
            SegmenterError: the encoder's dtype is too narrow for an image or not supported here,
                or its weights are broken.
        """
        with torch.autocast(self.model.device.type, enabled=False):
            try:
                features = self.model.image_encoder(squares.to(self._dtype)).float()
            except NotImplementedError as error:  # some operations of half precision on a CPU
                raise SegmenterError(
                    f"{self.info.label} cannot run in {self.info.dtype} here: {error}"
                ) from error
        if not features.isfinite().all():
            reason = "is not finite (NaN or infinite)"
            if self._dtype == torch.float16:
                reason = "overflows in float16; allowed: bfloat16, float32"
            raise SegmenterError(f"{self.info.label}: an embedding {reason}")
        rows = features.split(1)
        return [SamEmbedding(row, *each) for row, each in zip(rows, sizes, strict=True)]

    def embed_prompts(self, embedding: SamEmbedding, prompts: PromptBatch) -> Tensor:
        """Return (N, P, C), the tokens of points and box corners.

        Autocast is off: in bfloat16 a point moves by more than a pixel (docs/sources/performance.md
        6).
        """
        return self.tokens(*self.to_input_pixels(embedding, prompts))

    def to_input_pixels(
        self, embedding: SamEmbedding, prompts: PromptBatch
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Return boxes (N, 4), points (N, K, 2) and labels (N, K) in pixels of the square input."""
        scale = input_scale(embedding.size_hw, embedding.input_size_hw)
        device = self.model.device
        boxes = None
        if prompts.boxes is not None:
            xyxy = torch.tensor(prompts.boxes * np.tile(scale, 2), dtype=torch.float32)
            boxes = to_device(xyxy, device)
        points = to_device(torch.tensor(prompts.points * scale, dtype=torch.float32), device)
        return boxes, points, to_device(torch.tensor(prompts.labels), device)

    def tokens(self, boxes: Tensor | None, points: Tensor, labels: Tensor) -> Tensor:
        """Return (N, P, C), the tokens of prompts in pixels of the square input."""
        with torch.autocast(self.model.device.type, enabled=False):
            return prompt_tokens(self.model.prompt_encoder, boxes, points, labels)

    def embed_masks(self, prompts: PromptBatch) -> Tensor | None:
        """Return (N, C, h, w) of the prompts' logits, None where they have none.

        Raises:
            SegmenterError: it takes no mask prompts, or not of this size.
        """
        if prompts.logits is None:
            return None
        if "mask" not in self.info.prompts:
            accepted = ", ".join(sorted(self.info.prompts))
            raise SegmenterError(f"{self.info.label} takes no mask prompts; allowed: {accepted}")
        encoder = self.model.prompt_encoder
        height, width = prompts.logits.shape[1:]
        if (height, width) != encoder.mask_input_size:
            wanted = "x".join(map(str, encoder.mask_input_size[::-1]))
            raise SegmenterError(
                f"{self.info.label} takes logits of {wanted}, got {width}x{height}"
            )
        logits = to_device(torch.tensor(prompts.logits), self.model.device)
        with torch.autocast(self.model.device.type, enabled=False):
            dense: Tensor = encoder.mask_downscaling(logits[:, None])
        return dense


def one_per_prompt(embeddings: Sequence[E], counts: Sequence[int]) -> E:
    """Return an embedding whose tensors have a row for each prompt of several images.

    So prompts of several images are decoded together. What depends on the image alone is then
    computed for each prompt, which gradients of many images are worth.

    Args:
        embeddings: of one image each; where all are the same one, it is returned as it is.
        counts: of each image's prompts.
    """
    first = embeddings[0]
    if all(embedding is first for embedding in embeddings):
        return first
    rows: dict[str, Any] = {}
    for name in (field.name for field in fields(first)):
        tensors = [getattr(embedding, name) for embedding in embeddings]
        if isinstance(tensors[0], Tensor):
            repeats = torch.tensor(counts, device=tensors[0].device)
            rows[name] = torch.cat(tensors).repeat_interleave(repeats, 0, output_size=sum(counts))
    return replace(first, **rows)


def build_sam(options: SegmenterOptions) -> Sam:
    """Return a SAM with the weights of a file, or with Meta's, fetched once.

    Of an HQ-SAM's file the SAM in it is taken, which its training left as it was.

    Raises:
        UnknownNameError: the variant is not one of SAM's.
        SegmenterError: the device is not here.
        CheckpointError: the weights cannot be had, or are of another model.
    """
    variant = known(options.variant or DEFAULT_VARIANT, SAM_CHECKPOINTS, kind="variant of sam")
    device = resolve_device(options.device)
    path = options.checkpoint or fetch(SAM_CHECKPOINTS[variant], progress=options.progress)
    weights = load_family(path, "SAM", variant=variant, published=SAM_CHECKPOINTS)
    with torch.device(device):  # whose random numbers, which weights replace, are drawn faster
        model: SamModel = sam_model_registry[variant]()  # type: ignore[no-untyped-call]
    fill_model(model, split_hq(weights.state)[0], path=path)
    return sam_of(model.to(device), options, variant=variant, weights=weights)


def sam_around(encoder: nn.Module) -> SamModel:
    """Return SAM's prompt encoder and mask decoder, with random weights, behind another encoder.

    Args:
        encoder: of squares of `SIDE` pixels to `CHANNELS` features at stride `STRIDE`.
    """
    grid = SIDE // STRIDE
    return SamModel(
        cast(ImageEncoderViT, encoder),
        PromptEncoder(CHANNELS, (grid, grid), (SIDE, SIDE), mask_in_chans=16),
        MaskDecoder(
            transformer_dim=CHANNELS,
            transformer=TwoWayTransformer(2, CHANNELS, num_heads=8, mlp_dim=2048),
        ),
    )


def sam_neck(width: int) -> nn.Sequential:
    """Return what brings features (B, width, h, w) of an encoder to `CHANNELS`, as in SAM's own."""
    return nn.Sequential(
        nn.Conv2d(width, CHANNELS, 1, bias=False),
        LayerNorm2d(CHANNELS),
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False),
        LayerNorm2d(CHANNELS),
    )


def sam_of(
    model: SamModel,
    options: SegmenterOptions,
    *,
    variant: str,
    weights: Weights,
    name: str = "sam",
) -> Sam:
    """Return a published SAM run in the way that suits its device, of a model that is on it."""
    attention: AttentionKind = "fused"
    encoder: nn.Module = model.image_encoder
    if not isinstance(encoder, ImageEncoderViT):
        attention = "stock"
    elif model.device.type == "cpu" and options.dtype == "float32":
        attention = "blocked"
    sam = Sam(
        model,
        SamOptions(options.frame, options.dtype, attention, compiled=options.compile),
        name=name,
        variant=variant,
        checkpoint_sha256=weights.sha256,
        trained_on=ROWS[name].trained_on,
    )
    sam.info = replace(sam.info, settings={**sam.info.settings, **weights.settings})
    return sam
