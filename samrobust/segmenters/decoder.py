"""SAM's mask decoder for many prompts of one image: the same function with half of the work."""

import math
from typing import Literal, cast

import torch
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.mask_decoder import MaskDecoder
from segment_anything.modeling.sam import Sam as SamModel
from segment_anything.modeling.transformer import TwoWayAttentionBlock, TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional

from samrobust.segmenters.cross_attention import image_to_tokens, tokens_to_image
from samrobust.segmenters.spatial import SpatialBlock

DecoderKind = Literal["fast", "stock"]

SINGLE, CANDIDATES, ALL_MASKS = range(1), range(1, 4), range(4)
"""Of a decoder's four masks: the one for a clear prompt, the three for an ambiguous one, all."""


class StockDecoder:
    """segment_anything's own mask decoder behind the signature of `FastDecoder`.

    Args:
        model: a SAM.
    """

    def __init__(self, model: SamModel) -> None:
        self._model = model

    def __call__(
        self, features: Tensor, prompts: Tensor, *, masks: range = SINGLE
    ) -> tuple[Tensor, Tensor]:
        """Return the same as `FastDecoder`."""
        encoder = self._model.prompt_encoder
        no_mask = encoder.no_mask_embed.weight[..., None, None]
        logits, quality = self._model.mask_decoder.predict_masks(
            image_embeddings=features,
            image_pe=encoder.get_dense_pe(),
            sparse_prompt_embeddings=prompts,
            dense_prompt_embeddings=no_mask.expand(len(prompts), -1, *features.shape[-2:]),
        )
        wanted = slice(masks.start, masks.stop)
        return logits[:, wanted], quality[:, wanted]


class FastDecoder:
    """SAM's mask decoder (Kirillov et al. 2023, app. A and fig. 14), re-associated.

    What depends on the image alone is computed once for all prompts; attention between few tokens
    and many image positions projects the tokens instead of the image; upscaling is two matrix
    products; what the wanted masks do not need is left out.

    Weights are read at each call and gradients flow to them. Only the positional encoding of the
    image is kept, which SAM never trains.

    Args:
        model: a SAM.

    Differs: logits by rounding, about 3e-6 of their norm in float32; there are no mask prompts.
    """

    def __init__(self, model: SamModel) -> None:
        self._decoder: MaskDecoder = model.mask_decoder
        self._transformer = cast(TwoWayTransformer, model.mask_decoder.transformer)
        self._no_mask: nn.Embedding = model.prompt_encoder.no_mask_embed
        self._position = _flatten(model.prompt_encoder.get_dense_pe())  # 1 x L x C

    def __call__(
        self, features: Tensor, prompts: Tensor, *, masks: range = SINGLE
    ) -> tuple[Tensor, Tensor]:
        """Return the logits (N, M, 4h, 4w) and qualities (N, M) of N prompts of one image.

        Args:
            features: (1, C, h, w), the image's embedding.
            prompts: (N, P, C), P tokens a prompt from the prompt encoder.
            masks: which M of the decoder's four.
        """
        decoder = self._decoder
        outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        queries, image = self.attend(features, prompts, outputs, n_read=1 + masks.stop)
        pixels = self.upscale(image, features.shape[-2:])
        logits = self.kernels(queries, masks) @ pixels.mT  # N x M x 16L
        return unflatten(logits, features.shape[-2:]), self.qualities(queries, masks)

    def attend(
        self, features: Tensor, prompts: Tensor, outputs: Tensor, *, n_read: int
    ) -> tuple[Tensor, Tensor]:
        """Return the first tokens (N, n_read, C) and the image (N, L, C) after the transformer.

        Args:
            features: (1, C, h, w), the image's embedding, of L positions.
            prompts: (N, P, C).
            outputs: (O, C), the output tokens, which come before those of the prompt.
            n_read: how many tokens are wanted; they alone read the image in the end.
        """
        tokens = torch.cat([outputs.expand(len(prompts), -1, -1), prompts], dim=1)  # N x T x C
        image = _flatten(features) + self._no_mask.weight  # 1 x L x C, after a layer N x L x C
        queries = tokens
        for layer in self._transformer.layers:
            queries, image = self._attend(cast(TwoWayAttentionBlock, layer), queries, image, tokens)
        return self._read_image(queries, image, tokens, slice(0, n_read)), image

    def upscale(self, image: Tensor, grid_hw: torch.Size) -> Tensor:
        """Return (N, 16L, C/8), the pixels of (N, L, C), in the order that `unflatten` undoes."""
        return _upscale(self._decoder.output_upscaling, image, grid_hw)

    def kernels(self, queries: Tensor, masks: range) -> Tensor:
        """Return (N, M, C/8), what pixels are multiplied by, of the wanted masks' tokens."""
        networks = self._decoder.output_hypernetworks_mlps
        return torch.stack([networks[mask](queries[:, 1 + mask]) for mask in masks], dim=1)

    def qualities(self, queries: Tensor, masks: range) -> Tensor:
        """Return (N, M), the predicted IoU of the wanted masks."""
        quality: Tensor = self._decoder.iou_prediction_head(queries[:, 0])
        return quality[:, masks.start : masks.stop]

    def _attend(
        self, layer: TwoWayAttentionBlock, queries: Tensor, image: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return queries and image after a layer of the two-way transformer."""
        # (1) self-attention of the tokens
        if layer.skip_first_layer_pe:
            queries = layer.norm1(layer.self_attn(queries, queries, queries))
        else:
            q = queries + tokens
            queries = layer.norm1(queries + layer.self_attn(q, q, queries))
        # (2) cross-attention from tokens to image
        keys = image + self._position
        attended = tokens_to_image(
            layer.cross_attn_token_to_image, queries + tokens, keys=keys, values=image
        )
        queries = layer.norm2(queries + attended)
        # (3) MLP of each token
        queries = layer.norm3(queries + layer.mlp(queries))
        # (4) cross-attention from image to tokens
        attended = image_to_tokens(
            layer.cross_attn_image_to_token, keys, keys=queries + tokens, values=queries
        )
        return queries, layer.norm4(image + attended)

    def _read_image(self, queries: Tensor, image: Tensor, tokens: Tensor, wanted: slice) -> Tensor:
        """Return the wanted queries after the last attention from tokens to image."""
        queries, tokens = queries[:, wanted], tokens[:, wanted]
        attended = tokens_to_image(
            self._transformer.final_attn_token_to_image,
            queries + tokens,
            keys=image + self._position,
            values=image,
        )
        read: Tensor = self._transformer.norm_final_attn(queries + attended)
        return read


def unflatten(pixels: Tensor, grid_hw: torch.Size) -> Tensor:
    """Return (N, M, 4h, 4w) of (N, M, 16L), undoing the order in which a decoder doubles.

    Args:
        pixels: of N prompts, M numbers each.
        grid_hw: (h, w), of L positions.
    """
    n, m, _ = pixels.shape
    height, width = grid_hw
    nested = pixels.view(n, m, height, width, 2, 2, 2, 2)
    return nested.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(n, m, 4 * height, 4 * width)


def _upscale(upscaling: nn.Sequential, image: Tensor, grid_hw: torch.Size) -> Tensor:
    """Return (N, 16L, C/8): each position as 2 x 2 of 2 x 2 pixels, channels last."""
    pixels = image
    for module in upscaling:
        if isinstance(module, nn.ConvTranspose2d):
            pixels = _double(module, pixels)
        elif isinstance(module, LayerNorm2d):
            weight, bias = module.weight, module.bias
            pixels = functional.layer_norm(pixels, weight.shape, weight, bias, module.eps)
        elif isinstance(module, SpatialBlock):
            pixels = _in_grid(module, pixels, grid_hw)
        else:
            pixels = module(pixels)
    return pixels


def _in_grid(block: SpatialBlock, pixels: Tensor, grid_hw: torch.Size) -> Tensor:
    """Return what a block makes of pixels (N, L, C), or of (N, 4L, C), where L is once doubled."""
    n, length, width = pixels.shape
    height, across = grid_hw
    doubled = math.isqrt(length // (height * across))  # 1 or 2
    nested = pixels.view(n, height, across, doubled, doubled, width).transpose(2, 3)
    grid = nested.reshape(n, doubled * height, doubled * across, width).movedim(-1, 1)
    seen: Tensor = block(grid).movedim(1, -1)
    seen = seen.reshape(n, height, doubled, across, doubled, width)
    return seen.transpose(2, 3).reshape(n, length, width)


def _double(convolution: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """Return (N, 4L, C') of (N, L, C): a 2x2 transposed convolution of stride 2 per position."""
    weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)  # 4C' x C
    bias = cast(Tensor, convolution.bias).repeat(4)
    return functional.linear(x, weight, bias).view(len(x), -1, convolution.out_channels)


def _flatten(grid: Tensor) -> Tensor:
    """Return (N, L, C) of (N, C, h, w)."""
    return grid.flatten(2).mT
