"""Promptable image segmenters of the transformers library: SAM, SAM-HQ, SAM 2, EdgeTAM, SAM 3.

The library's own image processor, model and post-processing; an image is encoded once.
"""

import contextlib
import hashlib
import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from torch import Tensor

from samrobust.errors import CheckpointError, SegmenterError
from samrobust.registry import one_of
from samrobust.segmenters import ROWS
from samrobust.segmenters.device import resolve_device, says_out_of_memory
from samrobust.segmenters.frames import MASK_THRESHOLD, input_scale, quality_or_nan
from samrobust.segmenters.weights import UNREADABLE
from samrobust.types import (
    Frame,
    HqOutput,
    Image,
    Prediction,
    PromptBatch,
    PromptKind,
    SegmenterInfo,
    SegmenterOptions,
)

NAME = "transformers"
LibraryObject = Any
"""Of transformers, which is imported where it is used."""
_EXTRA = "pip install 'samrobust[transformers]'"
_OF_CONFIG = (ArithmeticError, ImportError, SafetensorError)
"""What a stranger's configuration makes the library raise, besides what damaged weights do."""
_OF_RUNNING = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a model raises whose configuration contradicts itself."""


@dataclass(frozen=True)
class Family:
    """One of the library's families.

    Attributes:
        model: name of its class for images.
        processor: name of the class that prepares images.
        frame: how that brings an image into the model's square. Runs of those that squash it can
            be compared with all others: the library offers no other way.
    """

    model: str
    processor: str
    frame: Frame


_SAM2 = Family("Sam2Model", "Sam2Processor", "squash")
_EDGETAM = Family("EdgeTamModel", "Sam2Processor", "squash")
_SAM3 = Family("Sam3TrackerModel", "Sam3TrackerProcessor", "squash")
FAMILIES = {
    "sam": Family("SamModel", "SamProcessor", "longest-side"),
    "sam_hq": Family("SamHQModel", "SamHQProcessor", "longest-side"),
    "sam2": _SAM2,
    "sam2_video": _SAM2,
    "edgetam": _EDGETAM,
    "edgetam_video": _EDGETAM,
    "sam3_tracker": _SAM3,
    "sam3_tracker_video": _SAM3,
    "sam3_video": _SAM3,
}
"""By what a model's configuration calls itself; of those for videos the memory is left out."""


@dataclass(frozen=True)
class TransformersEmbedding:
    """What a model knows of one image.

    Attributes:
        inputs: what the model's forward wants besides prompts.
        size_hw: of the image.
        input_size_hw: of the image in the model's square.
    """

    inputs: dict[str, Any]
    size_hw: tuple[int, int]
    input_size_hw: tuple[int, int]


class TransformersSegmenter:
    """A model of the library; see `samrobust.types.Segmenter`.

    Args:
        model: with its weights, on its device; it is frozen.
        processor: that belongs to it.
        label: its id or folder's name, for tables.
        output: of a SAM-HQ; None for the others.
        trained_on: collections that it has seen images of, where that is known.
    """

    def __init__(
        self,
        model: LibraryObject,
        processor: LibraryObject,
        *,
        label: str = "",
        output: HqOutput | None = None,
        trained_on: tuple[str, ...] = (),
    ) -> None:
        self._model = model.eval().requires_grad_(False)
        self._processor = processor
        self._squashes = FAMILIES[model.config.model_type].frame == "squash"
        self._options = {} if output is None else {"hq_token_only": output == "hq"}
        settings: dict[str, str | float] = {
            "mask_threshold": MASK_THRESHOLD,
            "family": model.config.model_type,
            "processor_sha256": _hash_settings(processor),
            "transformers": cast(str, _library().__version__),
        }
        if output is not None:
            settings["output"] = output
        self.info = SegmenterInfo(
            NAME,
            _prompts_of(model),
            variant=label,
            frame=None if self._squashes else "longest-side",
            multimask=True,
            checkpoint_sha256=_hash_weights(model),
            settings=settings,
            trained_on=trained_on,
        )

    def encode(self, images: Sequence[Image]) -> list[TransformersEmbedding]:
        """Return the embeddings of images, each encoded alone.

        Raises:
            SegmenterError: the library cannot prepare an image, or cannot run the model.
        """
        return [self._encode(image) for image in images]

    def predict(
        self, embedding: TransformersEmbedding, prompts: PromptBatch, *, multimask: bool = False
    ) -> Prediction:
        """Return M masks a prompt: 1, or the library's candidates with `multimask`.

        Raises:
            SegmenterError: the library cannot run the model.
        """
        return self.predict_at(embedding, prompts, [MASK_THRESHOLD], multimask=multimask)[0]

    def predict_at(
        self,
        embedding: TransformersEmbedding,
        prompts: PromptBatch,
        thresholds: Sequence[float],
        *,
        multimask: bool = False,
    ) -> list[Prediction]:
        """Return a prediction per threshold of the logits, which are decoded once.

        Raises:
            SegmenterError: the library cannot run the model.
        """
        sizes = [torch.tensor([each]) for each in (embedding.size_hw, embedding.input_size_hw)]
        if self._squashes:
            sizes.pop()
        inputs = {**embedding.inputs, **self._embed_prompts(embedding, prompts)}
        if prompts.logits is not None:
            inputs = self._with_masks(inputs, prompts.logits)
        with _running(self.info.label):
            found = self._model(**inputs, **self._options, multimask_output=multimask)
            logits, quality = found.pred_masks, found.iou_scores.float()
            if prompts.logits is not None:
                logits, quality = logits.transpose(0, 1), quality.transpose(0, 1)
            masks = [
                self._processor.post_process_masks(logits, *sizes, mask_threshold=threshold)[0]
                for threshold in thresholds
            ]
        logits, quality = logits[0], quality[0]  # of the one image
        if masks[0].shape[1] == 1:  # SAM-HQ's own mask comes with the qualities of SAM's candidates
            quality = quality.amax(dim=1, keepdim=True)
        quality = quality_or_nan(quality, logits)
        fed_back = logits if "mask" in self.info.prompts else None
        return [Prediction(each, quality, fed_back) for each in masks]

    def _encode(self, image: Image) -> TransformersEmbedding:
        try:
            prepared = self._processor(images=image, return_tensors="pt")
        except ValueError as error:
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise SegmenterError(
                f"{self.info.label}: the library cannot prepare an image of {size}: {error}"
            ) from error
        pixels = prepared["pixel_values"].to(self._model.device)
        with _running(self.info.label):
            found = self._model.get_image_embeddings(pixels)
        inputs = {"image_embeddings": found}
        if isinstance(found, tuple):  # of SAM-HQ
            inputs = {"image_embeddings": found[0], "intermediate_embeddings": found[1]}
        if self._squashes:
            height, width = pixels.shape[-2:]
        else:
            height, width = prepared["reshaped_input_sizes"][0].tolist()
        return TransformersEmbedding(inputs, (image.shape[0], image.shape[1]), (height, width))

    def _embed_prompts(
        self, embedding: TransformersEmbedding, prompts: PromptBatch
    ) -> dict[str, Tensor]:
        """Return prompts in pixels of the model's square: (1, N, K, 2), (1, N, K), (1, N, 4)."""
        scale = input_scale(embedding.size_hw, embedding.input_size_hw)
        device, found = self._model.device, {}
        if prompts.points.shape[1]:
            xy = torch.tensor(prompts.points * scale, dtype=torch.float32)
            found["input_points"] = xy[None].to(device)
            found["input_labels"] = torch.tensor(prompts.labels)[None].to(device)
        if prompts.boxes is not None:
            xyxy = torch.tensor(prompts.boxes * np.tile(scale, 2), dtype=torch.float32)
            found["input_boxes"] = xyxy[None].to(device)
        return found

    def _with_masks(
        self, inputs: dict[str, Any], logits: npt.NDArray[np.float32]
    ) -> dict[str, Any]:
        """Return inputs with mask prompts: N images of one prompt, as images alone have own masks.

        Raises:
            SegmenterError: the model takes no mask prompts.
        """
        if "mask" not in self.info.prompts:
            accepted = ", ".join(sorted(self.info.prompts))
            raise SegmenterError(f"{self.info.label} takes no mask prompts; allowed: {accepted}")
        n, repeated = len(logits), {}
        for name, value in inputs.items():
            if name.startswith("input_"):
                repeated[name] = value.transpose(0, 1)
            elif isinstance(value, Tensor):
                repeated[name] = value.repeat_interleave(n, 0)
            else:
                repeated[name] = [each.repeat_interleave(n, 0) for each in value]
        masks = torch.from_numpy(logits)[:, None].to(self._model.device)
        return {**repeated, "input_masks": masks}


def build_transformers(options: SegmenterOptions) -> TransformersSegmenter:
    """Return the model of a name or id (the variant), or of a local folder (the checkpoint).

    A name may come with a folder that holds a copy of the model.

    Raises:
        SegmenterError: the library is not installed, neither or both are named, or an option is not
            for such a model.
        CheckpointError: the model cannot be had, or is of no family of `FAMILIES`.
    """
    library = _library()
    named = ROWS[NAME].models.get(options.variant)
    if named is None and bool(options.variant) == bool(options.checkpoint):
        raise SegmenterError(
            f"{NAME} needs a model: its id with --variant, as facebook/sam2.1-hiera-tiny, or a "
            f"folder with --checkpoint; or a name: {', '.join(ROWS[NAME].models)}"
        )
    if options.dtype != "float32":
        raise SegmenterError(f"{NAME} runs in float32 alone, got --dtype {options.dtype}")
    device = resolve_device(options.device)
    source = named.model_id if named is not None else options.variant
    if options.checkpoint is not None:
        source = str(options.checkpoint)
    from_disk = {"local_files_only": options.checkpoint is not None}
    with _in_one_line(source):
        kind = library.PreTrainedConfig.get_config_dict(source, **from_disk)[0].get(
            "model_type", ""
        )
        family = FAMILIES.get(kind)
        if family is None:
            raise CheckpointError(
                f"{source}: is of the family '{kind}'; allowed: {', '.join(sorted(FAMILIES))}"
            )
        if named is not None and family != FAMILIES[named.family]:
            raise CheckpointError(
                f"{source}: is of the family '{kind}', but {options.variant} is of '{named.family}'"
            )
        model, loading = getattr(library, family.model).from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, **from_disk
        )
        processor = getattr(library, family.processor).from_pretrained(source, **from_disk)
    if loading["missing_keys"] or loading["mismatched_keys"]:
        missing = sorted(map(str, {*loading["missing_keys"], *loading["mismatched_keys"]}))
        raise CheckpointError(f"{source}: lacks {len(missing)} weights, as {missing[0]}")
    _check_frame(options.frame, family, source)
    _check_side(model, processor, source)
    output = _chosen_output(options.output, kind, source)
    label = options.variant or Path(source).resolve().name
    return TransformersSegmenter(
        model.to(device),
        processor,
        label=label,
        output=output,
        trained_on=() if named is None else named.trained_on,
    )


def _library() -> LibraryObject:
    if find_spec("transformers") is None:
        raise SegmenterError(f"{NAME} is not installed; install it with {_EXTRA}")
    import transformers

    return transformers


@contextlib.contextmanager
def _in_one_line(source: str) -> Iterator[None]:
    """Say in one line why the library cannot load a model, and keep its bars and notes silent."""
    from huggingface_hub.errors import StrictDataclassError

    logging = _library().logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except (*UNREADABLE, *_OF_CONFIG, StrictDataclassError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{source}: cannot be loaded by transformers: {reason}") from error
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


@contextlib.contextmanager
def _running(label: str) -> Iterator[None]:
    """Say in one line why a model that was loaded cannot be run; out of memory stays as it is."""
    try:
        yield
    except _OF_RUNNING as error:
        if says_out_of_memory(error):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise SegmenterError(
            f"{label}: the library cannot run the model: {type(error).__name__}: {reason}; does "
            "its config.json fit its weights and its preprocessor_config.json?"
        ) from error


def _check_side(model: LibraryObject, processor: LibraryObject, source: str) -> None:
    """Raise a CheckpointError where the processor makes other squares than the model reads."""
    with _in_one_line(source):
        blank = np.zeros((8, 8, 3), np.uint8)
        made = tuple(processor(images=blank, return_tensors="pt")["pixel_values"].shape[-2:])
    for part in ("vision_config", "prompt_encoder_config"):
        side = getattr(getattr(model.config, part, None), "image_size", None)
        read = (side, side) if isinstance(side, int) else tuple(side or made)
        if read != made:
            raise CheckpointError(
                f"{source}: its processor makes images of {made[1]} x {made[0]} pixels, but "
                f"{part} of its model wants {read[1]} x {read[0]}; wanted are a model and a "
                "processor that were saved together"
            )


def _check_frame(frame: Frame, family: Family, source: str) -> None:
    """Raise where squash is asked for and the library pads instead."""
    if frame == "squash" and family.frame != "squash":
        raise SegmenterError(
            f"{source}: the library frames its images by {family.frame}, got --frame {frame}"
        )


def _chosen_output(asked: str, kind: str, source: str) -> HqOutput | None:
    if kind == "sam_hq":
        output: HqOutput = one_of(HqOutput, asked or "sum", kind="output of SAM-HQ")
        return output
    if asked:
        raise SegmenterError(f"{source}: has one output, got --output {asked}")
    return None


def _prompts_of(model: LibraryObject) -> frozenset[PromptKind]:
    """Return the kinds of prompt that a model's forward takes."""
    named = inspect.signature(model.forward).parameters
    kinds: dict[str, PromptKind] = {
        "input_boxes": "box",
        "input_points": "points",
        "input_masks": "mask",
    }
    return frozenset(kind for name, kind in kinds.items() if name in named)


def _hash_settings(processor: LibraryObject) -> str:
    text = json.dumps(processor.image_processor.to_dict(), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _hash_weights(model: torch.nn.Module) -> str:
    """Return the SHA-256 of names and weights: such a model may come in several files."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
