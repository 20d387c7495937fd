"""HQ-SAM (Ke et al. 2023): a frozen SAM with a token and a feature for masks of finer borders."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from segment_anything.build_sam import sam_model_registry
from torch import Tensor

from samrobust.errors import SegmenterError
from samrobust.registry import known, one_of
from samrobust.segmenters import ROWS
from samrobust.segmenters.adapters import adapted_info, describe_base, open_part
from samrobust.segmenters.device import resolve_device
from samrobust.segmenters.frames import MASK_THRESHOLD
from samrobust.segmenters.hq_modules import (
    HqDecoder,
    HqParts,
    StockHqDecoder,
    early_features,
    untrained_parts,
)
from samrobust.segmenters.mobile_sam import tiny_sam_model, with_timm_names
from samrobust.segmenters.published import fetch
from samrobust.segmenters.sam import BoxGradients, Sam, SamEmbedding, Sizes, sam_of
from samrobust.segmenters.sam_decoder import CANDIDATES, SINGLE
from samrobust.segmenters.weights import (
    Family,
    fill_model,
    is_safetensors,
    load_family,
    split_hq,
)
from samrobust.types import HqOutput, Image, Prediction, PromptBatch, SegmenterOptions

NAME = "hq-sam"
KIND = "hq-sam-parts"
"""What the header of a file of parts says that it is."""
MOBILE = "mobile-sam"
"""What Light HQ-SAM is made of, by its name among the segmenters."""
DEFAULT_OUTPUT: HqOutput = "sum"
"""As the official library's."""
HQ_CHECKPOINTS = ROWS[NAME].checkpoints
"""The official files by variant: whole models."""


@dataclass(frozen=True)
class HqEmbedding(SamEmbedding):
    """What an HQ-SAM knows of one image.

    Attributes:
        details: (1, C/8, 4h, 4w) float32, the part of the HQ feature that no prompt changes.
    """

    details: Tensor


class HqSam(BoxGradients):
    """A SAM with the parts of HQ-SAM; see `samrobust.types.Segmenter`.

    SAM's weights are neither copied nor changed, and stay frozen; the parts can learn.

    Args:
        base: with its weights; where its decoder is the stock one, so is this one's.
        parts: default: untrained. They are moved to the base's device.
        output: the masks: "hq", the HQ token's alone, which HQ-SAM's published tables of four data
            sets score, or "sum", SAM's logits and the HQ token's, its library's default.
        checkpoint_sha256: of the file of the parts, "" where there is none.
    """

    embedding_type = HqEmbedding

    def __init__(
        self,
        base: Sam,
        parts: HqParts | None = None,
        *,
        output: HqOutput = DEFAULT_OUTPUT,
        checkpoint_sha256: str = "",
    ) -> None:
        self.base = base
        parts = parts if parts is not None else untrained_parts(base.model)
        self.parts = parts.to(base.model.device).eval()
        self._output = output
        settings, model = base.info.settings, base.model
        self._decode: HqDecoder | StockHqDecoder = (
            HqDecoder(model, self.parts, compiled="compiled" in settings)
            if settings["decoder"] == "fast"
            else StockHqDecoder(model, self.parts)
        )
        self.info = adapted_info(base, NAME, checkpoint_sha256, {"output": output})

    @property
    def header(self) -> dict[str, str]:
        """Return what a file of parts must say for `load_hq_sam`."""
        return describe_base(KIND, self.base)

    @property
    def device(self) -> torch.device:
        """Return the base's."""
        return self.base.device

    @property
    def encoder_key(self) -> str:
        """Return the base's with the parts' SHA-256: its embeddings hold their details too."""
        parts, key = self.info.checkpoint_sha256, self.base.encoder_key
        return f"{key} {NAME} {parts}" if key and parts else ""

    def encode(self, images: Sequence[Image]) -> list[HqEmbedding]:
        """Return the embeddings of images, encoded together; see `Sam.encode`."""
        squares, sizes = zip(*map(self.base.to_square, images), strict=True)
        return self.embed(torch.stack(squares), sizes)

    def embed(self, squares: Tensor, sizes: Sequence[Sizes]) -> list[HqEmbedding]:
        """Return the embeddings of the encoder's inputs, with details; see `Sam.embed`."""
        with early_features(self.base.model) as found:
            embeddings = self.base.embed(squares, sizes)
        (early,) = found
        with torch.autocast(self.base.model.device.type, enabled=False):
            features = torch.cat([each.features for each in embeddings])
            details = self.parts.details(features, early)
        return [
            HqEmbedding(each.features, each.size_hw, each.input_size_hw, details[row : row + 1])
            for row, each in enumerate(embeddings)
        ]

    def predict(
        self, embedding: HqEmbedding, prompts: PromptBatch, *, multimask: bool = False
    ) -> Prediction:
        """Return one mask a prompt, with `multimask` too: then SAM's share is its best candidate.

        Quality is SAM's prediction of the IoU of its own share, not of the mask; so it is in the
        official library.
        """
        return self.predict_at(embedding, prompts, [MASK_THRESHOLD], multimask=multimask)[0]

    def predict_at(
        self,
        embedding: HqEmbedding,
        prompts: PromptBatch,
        thresholds: Sequence[float],
        *,
        multimask: bool = False,
    ) -> list[Prediction]:
        """Return a prediction per threshold of the logits; see `Sam.predict_at`."""
        wanted = CANDIDATES if multimask else SINGLE
        logits, quality = self.logits(embedding, prompts, masks=wanted)
        return self.base.predictions(embedding, logits, quality, thresholds)

    def logits(
        self, embedding: SamEmbedding, prompts: PromptBatch, *, masks: range = SINGLE
    ) -> tuple[Tensor, Tensor]:
        """Return logits (N, 1, 4h, 4w) and quality (N, 1), float32.

        Args:
            embedding: from `encode` or `embed`.
            prompts: in pixels of the original image.
            masks: of SAM's four; the one that it believes most in is taken.

        Raises:
            SegmenterError: the embedding is not one of an HQ-SAM, or the base does not take the
                prompts' logits.
        """
        tokens, dense = self.embed_prompts(embedding, prompts), self.base.embed_masks(prompts)
        return self.decode(embedding, tokens, masks=masks, dense=dense)

    def embed_prompts(self, embedding: SamEmbedding, prompts: PromptBatch) -> Tensor:
        """Return the tokens (N, P, C) of prompts: those of the base."""
        return self.base.embed_prompts(embedding, prompts)

    def decode(
        self,
        embedding: SamEmbedding,
        tokens: Tensor,
        *,
        masks: range = SINGLE,
        dense: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return what `logits` does, of tokens (N, P, C); see `Sam.decode`.

        Raises:
            SegmenterError: the embedding is not one of an HQ-SAM.
        """
        if not isinstance(embedding, HqEmbedding):
            raise SegmenterError(f"{NAME} needs embeddings of its own, got a SAM's")
        with torch.autocast(self.base.model.device.type, enabled=False):
            sam, quality, hq = self._decode(
                embedding.features, embedding.details, tokens, masks=masks, dense=dense
            )
        best = quality.argmax(dim=1)
        rows = torch.arange(len(best), device=best.device)
        chosen = sam[rows, best][:, None]
        return (hq if self._output == "hq" else chosen + hq), quality[rows, best][:, None]


def load_hq_sam(base: Sam, path: Path, *, output: HqOutput = DEFAULT_OUTPUT) -> HqSam:
    """Return a SAM with the parts of a file, which must have been trained on the very same SAM.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, base or size.
    """
    file = open_part(path, KIND)
    file.check_base(base)
    parts = untrained_parts(base.model)
    file.fill(parts)
    hq = HqSam(base, parts, output=output, checkpoint_sha256=file.sha256)
    hq.info = replace(hq.info, trained_on=file.trained_on(base))
    return hq


def build_hq_sam(options: SegmenterOptions) -> HqSam:
    """Return an official HQ-SAM, or a SAM with parts that training wrote.

    Without a checkpoint the variant says which of the official ones, fetched once. A user's own
    parts are told apart by their file's name, which stands as the variant.

    Raises:
        UnknownNameError: the variant or output is not one of HQ-SAM's.
        SegmenterError: an option is not for what was asked, or the device is not here.
        CheckpointError: the weights cannot be had, or are of another model.
    """
    output: HqOutput = one_of(HqOutput, options.output or DEFAULT_OUTPUT, kind="output of hq-sam")
    if options.checkpoint is not None and is_safetensors(options.checkpoint):
        return _with_parts(options.checkpoint, options, output)
    return _official(options, output)


def _with_parts(path: Path, options: SegmenterOptions, output: HqOutput) -> HqSam:
    base = open_part(path, KIND).open_base(options)
    found = load_hq_sam(base, path, output=output)
    found.info = replace(found.info, variant=path.stem)
    return found


def _official(options: SegmenterOptions, output: HqOutput) -> HqSam:
    variant = known(options.variant or "vit_b", HQ_CHECKPOINTS, kind=f"variant of {NAME}")
    if options.base_checkpoint is not None:
        raise SegmenterError(
            f"{NAME} {variant} is a whole model: --base-checkpoint {options.base_checkpoint} is "
            "only for parts that training wrote"
        )
    device = resolve_device(options.device)
    path = options.checkpoint or fetch(HQ_CHECKPOINTS[variant], progress=options.progress)
    tiny = variant == "vit_tiny"
    family: Family = "Light HQ-SAM" if tiny else "HQ-SAM"
    weights = load_family(path, family, variant=variant, published=HQ_CHECKPOINTS)
    own, added = split_hq(weights.state)
    if tiny:
        model = tiny_sam_model()
        own = with_timm_names(own)
    else:
        model = sam_model_registry[variant]()  # type: ignore[no-untyped-call]
    fill_model(model, own, path=path)
    parts = untrained_parts(model)
    fill_model(parts, added, path=path)
    name = MOBILE if tiny else "sam"
    base = sam_of(model.to(device), options, variant=variant, weights=weights, name=name)
    hq = HqSam(base, parts, output=output, checkpoint_sha256=weights.sha256)
    hq.info = replace(hq.info, trained_on=ROWS[NAME].trained_on)
    return hq
