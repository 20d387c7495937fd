"""What HQ-SAM adds to SAM's mask decoder (Ke et al. 2023, sec. 3.2): one token, one finer feature.

Module and tensor names are those of the official files.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, cast

import torch
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.image_encoder import Block, ImageEncoderViT
from segment_anything.modeling.mask_decoder import MLP, MaskDecoder
from segment_anything.modeling.sam import Sam as SamModel
from torch import Tensor, nn
from torch.nn import functional

from samrobust.segmenters.sam_decoder import FastDecoder, unflatten

GRID_TO_MASK = 4
"""Positions of a mask along each side for one of the embedding."""
START_SCALE = 0.25
"""What untrained HQ pixels are multiplied by: about the root mean square of SAM-nano's (0.26, mean
of 9 prompts), so that the logits start as large as SAM's."""
_N_SAM_OUTPUTS = 5
"""Output tokens of SAM: one of the quality, four of masks. The HQ token follows."""


class OffersEarly(Protocol):
    """An image encoder, other than SAM's ViT, that an HQ-SAM can be made of.

    Attributes:
        early_channels: C' of the early features.
        early_share: their positions along each side for one of the embedding.
    """

    early_channels: int
    early_share: int

    @property
    def early(self) -> nn.Module:
        """Return the layer whose output (B, C', h', w') is the early features."""
        ...


class HqParts(nn.Module):
    """The 25 tensors of HQ-SAM; nothing in SAM changes.

    Args:
        channels: C of the embedding; SAM's is 256.
        early_channels: of the early features.
        early_share: positions of the early features along each side for one of the embedding: 1 in
            a ViT, from which two upsamplings lead to the mask's grid; 2 in SAM-nano, from which one
            does, and the second is a 1x1 convolution (ours).
    """

    def __init__(self, channels: int, early_channels: int, early_share: int = 1) -> None:
        super().__init__()
        width = channels // 8  # of the pixels that a mask's token is multiplied with
        last: nn.Module
        if 2 * early_share == GRID_TO_MASK:
            last = nn.Conv2d(channels, width, 1)
        else:
            last = nn.ConvTranspose2d(channels, width, 2, stride=2)
        self.hf_token = nn.Embedding(1, channels)
        self.hf_mlp = MLP(channels, channels, width, 3)
        self.compress_vit_feat = nn.Sequential(
            nn.ConvTranspose2d(early_channels, channels, 2, stride=2),
            LayerNorm2d(channels),
            nn.GELU(),
            last,
        )
        self.embedding_encoder = nn.Sequential(
            nn.ConvTranspose2d(channels, channels // 4, 2, stride=2),
            LayerNorm2d(channels // 4),
            nn.GELU(),
            nn.ConvTranspose2d(channels // 4, width, 2, stride=2),
        )
        self.embedding_maskfeature = nn.Sequential(
            nn.Conv2d(width, channels // 4, 3, padding=1),
            LayerNorm2d(channels // 4),
            nn.GELU(),
            nn.Conv2d(channels // 4, width, 3, padding=1),
        )

    def details(self, features: Tensor, early: Tensor) -> Tensor:
        """Return (B, C/8, 4h, 4w), the part of the HQ feature that depends on the image alone.

        Args:
            features: (B, C, h, w), the embedding; more channels are unread.
            early: (B, C', s h, s w), early features of the encoder, s = `early_share`.
        """
        embedding = features[:, : self.hf_token.embedding_dim]
        fused: Tensor = self.embedding_encoder(embedding) + self.compress_vit_feat(early)
        return fused


class HqDecoder:
    """SAM's decoder with the HQ token, for many prompts of one image.

    Args:
        model: a SAM.
        parts: of its size.
        compiled: as of `FastDecoder`.

    Differs: logits by rounding, as those of `FastDecoder`. The last convolution of the HQ feature
    and the product with the prompt's kernel are one convolution.
    """

    def __init__(self, model: SamModel, parts: HqParts, *, compiled: bool = False) -> None:
        self._decoder = model.mask_decoder
        self._parts = parts
        self._fast = FastDecoder(model, compiled=compiled)

    def __call__(
        self,
        features: Tensor,
        details: Tensor,
        prompts: Tensor,
        *,
        masks: range,
        dense: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return SAM's logits (N, M, 4h, 4w) and qualities (N, M), and HQ logits (N, 1, 4h, 4w).

        SAM's are not quite those of SAM alone: its tokens attend to the HQ token too.

        Args:
            features: (1, C, h, w), the image's embedding.
            details: (1, C/8, 4h, 4w), of the same image, from `HqParts.details`.
            prompts: (N, P, C), P tokens a prompt from the prompt encoder.
            masks: which M of SAM's four.
            dense: (N, C, h, w), mask prompts from the prompt encoder; None for no mask prompts.
        """
        fast, outputs = self._fast, _output_tokens(self._decoder, self._parts)
        queries, image = fast.attend(features, prompts, outputs, n_read=len(outputs), dense=dense)
        grid_hw = features.shape[-2:]
        pixels = fast.upscale(image, features)  # N x 16L x C/8
        sam = unflatten(fast.kernels(queries, masks) @ pixels.mT, grid_hw)
        kernel = self._parts.hf_mlp(queries[:, _N_SAM_OUTPUTS])  # N x C/8
        hq = _hq_logits(self._parts, unflatten(pixels.mT, grid_hw), details, kernel)
        return sam, fast.qualities(queries, masks), hq


class StockHqDecoder:
    """The same by segment_anything's own modules and HQ-SAM's own order (Ke et al. 2023, sec. 3.2).

    Args:
        model: a SAM.
        parts: of its size.
    """

    def __init__(self, model: SamModel, parts: HqParts) -> None:
        self._model = model
        self._parts = parts

    def __call__(
        self,
        features: Tensor,
        details: Tensor,
        prompts: Tensor,
        *,
        masks: range,
        dense: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same as `HqDecoder`."""
        encoder, decoder, parts = self._model.prompt_encoder, self._model.mask_decoder, self._parts
        n = len(prompts)
        outputs = _output_tokens(decoder, parts).expand(n, -1, -1)
        if dense is None:
            dense = encoder.no_mask_embed.weight[..., None, None]
        image = (features + dense).expand(n, -1, -1, -1)
        positions = encoder.get_dense_pe().expand(n, -1, -1, -1)
        queries, image = decoder.transformer(image, positions, torch.cat([outputs, prompts], dim=1))
        grid = image.mT.reshape(n, -1, *features.shape[-2:])
        pixels = decoder.output_upscaling(grid)  # N x C/8 x 4h x 4w
        networks = decoder.output_hypernetworks_mlps
        kernels = torch.stack([networks[mask](queries[:, 1 + mask]) for mask in masks], dim=1)
        finer = parts.embedding_maskfeature(pixels) + details
        kernel = parts.hf_mlp(queries[:, _N_SAM_OUTPUTS])[:, None]
        quality = decoder.iou_prediction_head(queries[:, 0])[:, masks.start : masks.stop]
        return _product(kernels, pixels), quality, _product(kernel, finer)


def _output_tokens(decoder: MaskDecoder, parts: HqParts) -> Tensor:
    """Return (6, C)."""
    tokens = [decoder.iou_token.weight, decoder.mask_tokens.weight, parts.hf_token.weight]
    return torch.cat(tokens)


def _product(kernels: Tensor, pixels: Tensor) -> Tensor:
    """Return logits (N, M, 4h, 4w) of kernels (N, M, C/8) and pixels (N, C/8, 4h, 4w)."""
    return (kernels @ pixels.flatten(2)).view(*kernels.shape[:2], *pixels.shape[-2:])


def _hq_logits(parts: HqParts, pixels: Tensor, details: Tensor, kernel: Tensor) -> Tensor:
    """Return (N, 1, 4h, 4w), k (W * x + b + d) = (k W) * x + k b + k d for each prompt's kernel k.

    Args:
        parts: W and b are its last convolution's, x is what enters that.
        pixels: (N, C/8, 4h, 4w).
        details: (1, C/8, 4h, 4w), d.
        kernel: (N, C/8).
    """
    x = parts.embedding_maskfeature[:3](pixels)  # N x C/4 x 4h x 4w
    last = cast(nn.Conv2d, parts.embedding_maskfeature[3])
    weight = torch.einsum("nc,cdyx->nyxd", kernel, last.weight.flip(2, 3))  # N x 3 x 3 x C/4
    spread = weight.flatten(1, 2) @ x.flatten(2)  # N x 9 x 16L, from each position to neighbours
    own = functional.fold(spread, x.shape[2:], kernel_size=3, padding=1)  # N x 1 x 4h x 4w
    bias = kernel @ cast(Tensor, last.bias)
    return own + bias[:, None, None, None] + _product(kernel[:, None], details)


@contextmanager
def early_features(model: SamModel) -> Iterator[list[Tensor]]:
    """Give a list that gets the early features (B, C', h', w') of each use of a SAM's encoder.

    Of a ViT they are the output of the first block of global attention (2, 5 or 7 of B, L or H,
    counted from 0); other encoders say which layer's they are.
    """
    found: list[Tensor] = []
    encoder: nn.Module = model.image_encoder
    channels_last = isinstance(encoder, ImageEncoderViT)
    if isinstance(encoder, ImageEncoderViT):
        blocks = (cast(Block, block) for block in encoder.blocks)
        layer: nn.Module = next(block for block in blocks if block.window_size == 0)
    else:
        layer = cast(OffersEarly, encoder).early

    def keep(_layer: nn.Module, _inputs: object, output: Tensor) -> None:
        found.append((output.permute(0, 3, 1, 2) if channels_last else output).float())

    handle = layer.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def untrained_parts(model: SamModel) -> HqParts:
    """Return parts of a SAM's size with random weights, on its device."""
    encoder: nn.Module = model.image_encoder
    channels = model.mask_decoder.transformer_dim
    if isinstance(encoder, ImageEncoderViT):
        parts = HqParts(channels, early_channels=cast(Tensor, encoder.pos_embed).shape[-1])
    else:
        offers = cast(OffersEarly, encoder)
        parts = HqParts(channels, offers.early_channels, offers.early_share)
    return parts.to(model.device)


@torch.no_grad()
def parts_like_sam(model: SamModel) -> HqParts:
    """Return parts whose mask is, before any training, SAM's single mask but for the extra token.

    Ours, where HQ-SAM starts at random: a training then goes on from SAM instead of finding masks
    anew. The HQ token and its MLP are copies of the single mask's. Of the HQ feature, what comes
    from the encoder is 0 at first; what comes from the decoder's pixels x is x divided by their
    root mean square over channels, which changes no sign of a logit: the first convolution gives
    (x, -x), the norm divides, and GELU(x) - GELU(-x) = x.
    """
    decoder, parts = model.mask_decoder, untrained_parts(model)
    parts.hf_token.weight.copy_(decoder.mask_tokens.weight[:1])
    parts.hf_mlp.load_state_dict(decoder.output_hypernetworks_mlps[0].state_dict())
    for branch in (parts.compress_vit_feat, parts.embedding_encoder):
        for parameter in branch[3].parameters():
            parameter.zero_()
    first, _, _, last = parts.embedding_maskfeature
    for convolution in (first, last):
        for parameter in convolution.parameters():
            parameter.zero_()
    width = decoder.transformer_dim // 8
    both = torch.cat([torch.eye(width), -torch.eye(width)]).to(model.device)  # C/4 x C/8
    cast(Tensor, first.weight)[:, :, 1, 1] = both
    cast(Tensor, last.weight)[:, :, 1, 1] = START_SCALE * both.T
    return parts
