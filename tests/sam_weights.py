"""SAMs with random weights whose masks are neither empty nor full."""

from functools import partial
from typing import Any, cast

import numpy as np
import torch
from PIL import Image as PillowImage
from segment_anything.build_sam import sam_model_registry
from segment_anything.modeling.image_encoder import ImageEncoderViT
from segment_anything.modeling.mask_decoder import MLP, MaskDecoder
from segment_anything.modeling.prompt_encoder import PromptEncoder
from segment_anything.modeling.sam import Sam as SamModel
from segment_anything.modeling.transformer import TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional

from samrobust.segmenters.hq_modules import HqDecoder, HqParts, untrained_parts
from samrobust.types import Image, PromptBatch
from tests.conftest import SHARED

PATCH = 16
NARROW_VIT: dict[str, Any] = {
    "img_size": 256,
    "patch_size": PATCH,
    "embed_dim": 48,
    "depth": 12,
    "num_heads": 3,
    "out_chans": 256,
    "norm_layer": partial(nn.LayerNorm, eps=1e-6),
    "use_rel_pos": True,
    "window_size": 14,
    "global_attn_indexes": (2, 5, 8, 11),
}
"""Arguments of the official image encoder: a ViT-B of a sixteenth of the width, at 256 pixels."""


def small_sam(
    side: int = 256, *, channels: int = 256, heads: int = 8, dtype: torch.dtype = torch.float32
) -> SamModel:
    """Return SAM's decoder behind an encoder of two narrow blocks, one of windows, one global."""
    torch.manual_seed(0)
    grid = (side // PATCH, side // PATCH)
    model = SamModel(
        ImageEncoderViT(
            img_size=side,
            patch_size=PATCH,
            embed_dim=32,
            depth=2,
            num_heads=2,
            out_chans=channels,
            use_rel_pos=True,
            window_size=14,
            global_attn_indexes=(1,),
        ),
        PromptEncoder(channels, grid, (side, side), mask_in_chans=16),
        MaskDecoder(
            transformer_dim=channels,
            transformer=TwoWayTransformer(2, channels, heads, mlp_dim=2 * channels),
        ),
    )
    return randomise(model).eval().to(dtype)


def narrow_vit_b() -> SamModel:
    """Return SAM's decoder in full behind `NARROW_VIT`, to stand in the registry as "vit_b"."""
    grid = (NARROW_VIT["img_size"] // PATCH,) * 2
    return SamModel(
        ImageEncoderViT(**NARROW_VIT),
        PromptEncoder(256, grid, (NARROW_VIT["img_size"],) * 2, mask_in_chans=16),
        MaskDecoder(transformer_dim=256, transformer=TwoWayTransformer(2, 256, 8, mlp_dim=2048)),
    )


def random_sam(variant: str) -> SamModel:
    """Return one of SAM's models, as the registry of segment_anything has it."""
    torch.manual_seed(0)
    model: SamModel = sam_model_registry[variant]()  # type: ignore[no-untyped-call]
    return randomise(model).eval()


def random_parts(model: SamModel) -> HqParts:
    """Return parts of HQ-SAM whose masks are about half of the image, and unlike SAM's."""
    torch.manual_seed(1)
    parts = untrained_parts(model)
    with torch.no_grad():
        for name, weight in parts.named_parameters():
            if weight.ndim == 1 and ".1." not in name:  # not the norms
                weight.normal_(std=0.3)
            elif weight.ndim > 1:
                weight.mul_(2.5)
        last = cast(nn.Conv2d, parts.embedding_maskfeature[3])
        last.weight[0] = 0  # one constant channel, with which the mean logit is subtracted
        cast(Tensor, last.bias)[0] = 1
        for stage in (parts.embedding_encoder[3], parts.compress_vit_feat[3]):
            last_up = cast(nn.ConvTranspose2d, stage)
            last_up.weight[:, 0] = 0
            cast(Tensor, last_up.bias)[0] = 0
        channels, width = model.prompt_encoder.embed_dim, len(last.weight)
        grid_hw = model.prompt_encoder.image_embedding_size
        first = cast(nn.ConvTranspose2d, parts.compress_vit_feat[0])
        early = torch.randn(1, first.in_channels, *grid_hw)
        features = torch.randn(1, channels, *grid_hw)
        tokens = torch.randn(4, 2, channels)
        _, _, hq = HqDecoder(model, parts)(
            features, parts.details(features, early), tokens, masks=range(1)
        )
        kernel = cast(nn.Linear, parts.hf_mlp.layers[-1])
        assert width == len(kernel.bias)
        kernel.bias[0] -= hq.mean()
    return parts


def randomise(model: SamModel) -> SamModel:
    """Give positions a meaning, attention peaks, and masks about half of the image."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "pos_embed" in name or "rel_pos" in name:
                weight.normal_(std=0.5)
            elif name.startswith("mask_decoder") and "norm" not in name:
                if weight.ndim == 1:
                    weight.normal_(std=0.3)
                elif ".mix." in name:  # of blocks that begin as the identity
                    weight.normal_(std=0.03)
                else:
                    weight.mul_(2.5 if weight.ndim == 2 else 4.0)
        _balance(model)
    return model


def _balance(model: SamModel) -> None:
    """Make one upscaled channel constant, and subtract with it the mean logit of each mask."""
    decoder = model.mask_decoder
    last = cast(nn.ConvTranspose2d, decoder.output_upscaling[-2])
    last.weight[:, 0] = 0
    cast(Tensor, last.bias)[0] = 1
    height, width = model.prompt_encoder.image_embedding_size
    channels = model.prompt_encoder.embed_dim
    logits, _ = decoder.predict_masks(
        torch.randn(1, channels, height, width),
        model.prompt_encoder.get_dense_pe().float(),
        torch.randn(4, 2, channels),
        torch.zeros(4, channels, height, width),
    )
    constant = functional.gelu(torch.ones(()))
    means = logits.mean((0, 2, 3))
    for network, mean in zip(decoder.output_hypernetworks_mlps, means, strict=True):
        cast(MLP, network).layers[-1].bias[0] -= mean / constant  # type: ignore[index,operator]


def random_image(size_hw: tuple[int, int]) -> Image:
    """Return an image of coarse colours with noise."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 200, (size_hw[0] // 40 + 1, size_hw[1] // 40 + 1, 3))
    smooth = coarse.repeat(40, axis=0).repeat(40, axis=1)[: size_hw[0], : size_hw[1]]
    return (smooth + rng.integers(0, 56, smooth.shape)).astype(np.uint8)


def photograph() -> Image:
    """Return a real photograph where there are some, or a random image."""
    paths = sorted((SHARED / "pennfudan" / "train").glob("*.jpg"))
    if not paths:
        return random_image((301, 410))
    return np.array(PillowImage.open(paths[0]).convert("RGB"))


def random_prompts(size_hw: tuple[int, int], n: int, n_points: int, *, boxes: bool) -> PromptBatch:
    """Return N prompts anywhere in an image; every third point is background."""
    rng = np.random.default_rng(n_points)
    last_xy = np.array(size_hw[::-1]) - 1
    corners = np.sort(rng.random((n, 2, 2)), axis=1) * last_xy
    points = (rng.random((n, n_points, 2)) * last_xy).astype(np.float32)
    labels = np.tile((np.arange(n_points) % 3 != 2).astype(np.int32), (n, 1))
    return PromptBatch(corners.reshape(n, 4).astype(np.float32) if boxes else None, points, labels)
