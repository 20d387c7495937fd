"""SAM's mask decoder for many prompts of one image: the same function with half of the work."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import torch
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.mask_decoder import MaskDecoder
from segment_anything.modeling.prompt_encoder import PromptEncoder
from segment_anything.modeling.sam import Sam as SamModel
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional

from samrobust.types import FOREGROUND

DecoderKind = Literal["fast", "stock"]

SINGLE, CANDIDATES, ALL_MASKS = range(1), range(1, 4), range(4)
"""Of a decoder's four masks: the one for a clear prompt, the three for an ambiguous one, all."""
PADDING = -1
"""The label of what is no point; one stands after the points of a prompt without a box."""
FEW_TOKENS = 16
"""Up to so many tokens, bringing them to the image's C channels is less work than projecting all
image positions to the attention's C / 2 (counted at 8 heads: break-even at 17)."""


@dataclass(frozen=True)
class Mixture:
    """What N prompts read, each its own mixture of shared features: regular + share * change.

    Attributes:
        keys: (N, L, C), the regular ones; or (1, L, C) where the prompts share them.
        values: likewise.
        key_change: of the same shape as the keys, what is added to them.
        value_change: likewise.
        share: (N,), of the changes that each prompt adds; (1,) where it is the same for all.
    """

    keys: Tensor
    values: Tensor
    key_change: Tensor
    value_change: Tensor
    share: Tensor

    @property
    def shares_parts(self) -> bool:
        """Return whether several prompts mix the same features, each in its own way."""
        return len(self.keys) < len(self.share)

    def mixed(self) -> tuple[Tensor, Tensor]:
        """Return keys and values (N, L, C); (1, L, C) where the prompts share all of it."""
        share = self.share[:, None, None]
        return (
            torch.addcmul(self.keys, share, self.key_change),
            torch.addcmul(self.values, share, self.value_change),
        )


class PreparesFeatures(Protocol):
    """An attention from tokens to image that reads other features than those of the image."""

    @property
    def attention(self) -> Attention:
        """Return SAM's own attention, which reads the features."""
        ...

    def calibrate(self, q: Tensor, k: Tensor, v: Tensor) -> Mixture:
        """Return what is read in place of k and v, (N, L, C) or, where shared, (1, L, C).

        Args:
            q: (N, T, C), the queries.
            k: (N, L, C), or (1, L, C) where the prompts share them.
            v: likewise.
        """
        ...


class FastDecoder:
    """SAM's mask decoder (Kirillov et al. 2023, app. A and fig. 14), re-associated.

    What depends on the image alone is computed once for all prompts; attention between few tokens
    and many image positions projects the tokens instead of the image; upscaling is two matrix
    products; what the wanted masks do not need is left out. Features of N rows are those of an
    image for each prompt.

    Weights are read at each call and gradients flow to them. Only the positional encoding of the
    image is kept, which SAM never trains.

    Args:
        model: a SAM.
        compiled: whether torch compiles it when it first runs, for any number of prompts.

    Differs: logits by rounding, about 3e-6 of their norm in float32.
    """

    def __init__(self, model: SamModel, *, compiled: bool = False) -> None:
        self._decoder: MaskDecoder = model.mask_decoder
        self._transformer = cast(TwoWayTransformer, model.mask_decoder.transformer)
        self._no_mask: nn.Embedding = model.prompt_encoder.no_mask_embed
        self._position = _flatten(model.prompt_encoder.get_dense_pe())  # 1 x L x C
        if compiled:  # method-assign: the parts that HQ-SAM's decoder calls too
            self.attend = torch.compile(self.attend, dynamic=True)  # type: ignore[method-assign]
            self.upscale = torch.compile(self.upscale, dynamic=True)  # type: ignore[method-assign]

    def __call__(
        self,
        features: Tensor,
        prompts: Tensor,
        *,
        masks: range = SINGLE,
        dense: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the logits (N, M, 4h, 4w) and qualities (N, M) of N prompts of one image.

        Args:
            features: (1, C, h, w), the image's embedding; channels beyond C are finer features,
                see `nested`.
            prompts: (N, P, C), P tokens a prompt from the prompt encoder.
            masks: which M of the decoder's four.
            dense: (N, C, h, w), mask prompts from the prompt encoder; None for no mask prompts.
        """
        decoder = self._decoder
        outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        queries, image = self.attend(features, prompts, outputs, n_read=1 + masks.stop, dense=dense)
        pixels = self.upscale(image, features)
        logits = self.kernels(queries, masks) @ pixels.mT  # N x M x 16L
        return unflatten(logits, features.shape[-2:]), self.qualities(queries, masks)

    def attend(
        self,
        features: Tensor,
        prompts: Tensor,
        outputs: Tensor,
        *,
        n_read: int,
        dense: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the first tokens (N, n_read, C) and the image (N, L, C) after the transformer.

        Args:
            features: (1, C, h, w), the image's embedding, of L positions; more channels are unread.
            prompts: (N, P, C).
            outputs: (O, C), the output tokens, which come before those of the prompt.
            n_read: how many tokens are wanted; they alone read the image in the end.
            dense: (N, C, h, w), mask prompts; None for no mask prompts.
        """
        tokens = torch.cat([outputs.expand(len(prompts), -1, -1), prompts], dim=1)  # N x T x C
        width = self._decoder.transformer_dim
        # 1 x L x C, with mask prompts or after a layer N x L x C
        image = _flatten(features[:, :width])
        image = image + (self._no_mask.weight if dense is None else _flatten(dense))
        queries = tokens
        for layer in self._transformer.layers:
            queries, image = self._attend(cast(TwoWayAttentionBlock, layer), queries, image, tokens)
        return self._read_image(queries, image, tokens, slice(0, n_read)), image

    def upscale(self, image: Tensor, features: Tensor) -> Tensor:
        """Return (N, 16L, C/8), the pixels of an image, in the order that `unflatten` undoes.

        Args:
            image: (N, L, C), after the transformer.
            features: (1, C, h, w), the image's embedding; of more channels, those beyond C join the
                doubled pixels.
        """
        finer = _flatten(features[:, self._decoder.transformer_dim :])
        return _upscale(self._decoder.output_upscaling, image, finer)

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


class StockDecoder:
    """segment_anything's own mask decoder behind the signature of `FastDecoder`.

    Args:
        model: a SAM.
    """

    def __init__(self, model: SamModel) -> None:
        self._model = model

    def __call__(
        self,
        features: Tensor,
        prompts: Tensor,
        *,
        masks: range = SINGLE,
        dense: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the same as `FastDecoder`."""
        encoder = self._model.prompt_encoder
        if dense is None:
            dense = encoder.no_mask_embed.weight[..., None, None]
        logits, quality = self._model.mask_decoder.predict_masks(
            image_embeddings=features,
            image_pe=encoder.get_dense_pe(),
            sparse_prompt_embeddings=prompts,
            dense_prompt_embeddings=dense.expand(len(prompts), -1, *features.shape[-2:]),
        )
        wanted = slice(masks.start, masks.stop)
        return logits[:, wanted], quality[:, wanted]


def prompt_tokens(
    encoder: PromptEncoder, boxes: Tensor | None, points: Tensor, labels: Tensor
) -> Tensor:
    """Return (N, P, C), the tokens of N prompts, equal to `encoder`'s own to the last bit.

    P is K, 1 more without boxes, for padding, and 2 more with them, for corners; but 2 where K = 0.

    Args:
        encoder: its positions and weights; gradients flow to them.
        boxes: (N, 4) float32 xyxy in pixels of the encoder's square input, or None.
        points: (N, K, 2) float32 xy likewise; K may be 0 where there are boxes.
        labels: (N, K), 1 foreground, 0 background or `PADDING`.
    """
    tokens = []
    if points.shape[1]:
        if boxes is None:
            points = functional.pad(points, (0, 0, 0, 1))
            labels = functional.pad(labels, (0, 1), value=PADDING)
        tokens.append(_point_tokens(encoder, points, labels[..., None]))
    if boxes is not None:
        tokens.append(_corner_tokens(encoder, boxes.view(-1, 2, 2)))
    return torch.cat(tokens, dim=1)


def tokens_to_image(
    attention: Attention | PreparesFeatures, queries: Tensor, *, keys: Tensor, values: Tensor
) -> Tensor:
    """Return (N, T, C), what T tokens of N prompts take from the image's L positions.

    With K = X W and V = Y U, softmax(Q K') V = softmax((Q W') X') Y U. The bias of the keys adds
    the same to all scores of a query; the bias of the values is added as it is, as weights sum
    to 1.

    Args:
        attention: its weights, and what it may make of keys and values before it reads them.
        queries: (N, T, C).
        keys: (N, L, C), or (1, L, C) where the prompts share them: then they are projected once.
        values: likewise.
    """
    if not isinstance(attention, Attention):
        mixture = attention.calibrate(queries, keys, values)
        attention = attention.attention
        if mixture.shares_parts:
            return _tokens_to_parts(attention, queries, mixture)
        keys, values = mixture.mixed()
    if len(keys) < len(queries):
        shared: Tensor = attention(queries.flatten(0, 1)[None], keys, values)
        return shared.view_as(queries)
    if queries.shape[1] > FEW_TOKENS:
        projected: Tensor = attention(queries, keys, values)
        return projected
    q = _scaled_heads(attention, attention.q_proj(queries))  # N x h x T x d
    q = q @ _by_head(attention, attention.k_proj.weight)  # N x h x T x C
    weights = (q.flatten(1, 2) @ keys.mT).softmax(dim=-1)  # N x hT x L
    context = (weights @ values).view(q.shape)  # N x h x T x C
    context = context @ _by_head(attention, attention.v_proj.weight).mT  # N x h x T x d
    out: Tensor = attention.out_proj(context.transpose(1, 2).flatten(2) + attention.v_proj.bias)
    return out


def image_to_tokens(
    attention: Attention, queries: Tensor, *, keys: Tensor, values: Tensor
) -> Tensor:
    """Return (N, L, C), what the image's L positions take from T tokens of N prompts.

    With Q = X W + b and output projection O, softmax(Q K') V O = softmax(X (K W')' + K b) (V O).

    Args:
        attention: its weights.
        queries: (N, L, C), or (1, L, C) where the prompts share them.
        keys: (N, T, C).
        values: likewise.
    """
    if keys.shape[1] > FEW_TOKENS:
        projected: Tensor = attention(queries, keys, values)
        return projected
    k = _scaled_heads(attention, attention.k_proj(keys))  # N x h x T x d
    bias = k @ attention.q_proj.bias.view(attention.num_heads, -1, 1)  # N x h x T x 1
    k = k @ _by_head(attention, attention.q_proj.weight)  # N x h x T x C
    scores = k.flatten(1, 2) @ queries.squeeze(0).mT  # N x hT x L
    weights = (scores.view(*k.shape[:3], -1) + bias).softmax(dim=2).flatten(1, 2)
    v = _heads(attention, attention.v_proj(values))
    v = v @ _by_head(attention, attention.out_proj.weight.mT)  # N x h x T x C
    return weights.mT @ (v + attention.out_proj.bias / attention.num_heads).flatten(1, 2)


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


def nested(features: Tensor, doublings: int) -> Tensor:
    """Return (B, 4^d C', h, w) of (B, C', 2^d h, 2^d w), in the order that `unflatten` undoes.

    An encoder appends such finer features to the C channels of its embedding, for one doubling and
    then two: they are added to a decoder's pixels after as many, as in SAM 2 (Ravi et al. 2024).

    Args:
        features: of an image, as many channels as the decoder's pixels have there: C/4, C/8.
        doublings: d, 1 or 2.
    """
    for _ in range(doublings):
        b, c, height, width = features.shape
        blocks = features.view(b, c, height // 2, 2, width // 2, 2)
        features = blocks.permute(0, 3, 5, 1, 2, 4).reshape(b, 4 * c, height // 2, width // 2)
    return features


def _tokens_to_parts(attention: Attention, queries: Tensor, mixture: Mixture) -> Tensor:
    """Return (N, T, C), what tokens of N prompts take from features that these mix, each its way.

    With keys K + s dK and values V + s dV, all L x d and projected once for all prompts, a query
    scores Q (K + s dK)' = (Q, s Q) (K, dK)', and its weights W take W V + s (W dV).

    Args:
        attention: its weights.
        queries: (N, T, C).
        mixture: of parts (1, L, C).
    """
    share = mixture.share[:, None, None, None]  # N x 1 x 1 x 1
    q = _scaled_heads(attention, attention.q_proj(queries))  # N x h x T x d
    q = torch.cat([q, share * q], dim=-1).transpose(0, 1)  # h x N x T x 2d
    k_change = functional.linear(mixture.key_change, attention.k_proj.weight)
    v_change = functional.linear(mixture.value_change, attention.v_proj.weight)
    parts = (attention.k_proj(mixture.keys), k_change), (attention.v_proj(mixture.values), v_change)
    k, v = (torch.cat([_heads(attention, x) for x in both], dim=-1) for both in parts)
    taken = functional.scaled_dot_product_attention(q.flatten(1, 2)[None], k, v, scale=1.0)
    regular, change = taken.view(q.shape).transpose(0, 1).chunk(2, dim=-1)  # N x h x T x d
    out: Tensor = attention.out_proj((regular + share * change).transpose(1, 2).flatten(2))
    return out


def _upscale(upscaling: nn.Sequential, image: Tensor, finer: Tensor) -> Tensor:
    """Return (N, 16L, C/8): each position as 2 x 2 of 2 x 2 pixels, channels last.

    Args:
        upscaling: of a decoder.
        image: (N, L, C).
        finer: (1, L, 3C), of the pixels after one and two doublings, or (N, L, 3C), of an image for
            each prompt; (1, L, 0) for none.
    """
    pixels = image
    for module in upscaling:
        if isinstance(module, nn.ConvTranspose2d):
            pixels = _double(module, pixels)
            if finer.shape[-1]:
                width = pixels[0].numel() // image.shape[1]
                pixels = pixels + finer[..., :width].reshape(len(finer), *pixels.shape[1:])
                finer = finer[..., width:]
        elif isinstance(module, LayerNorm2d):
            weight, bias = module.weight, module.bias
            pixels = functional.layer_norm(pixels, weight.shape, weight, bias, module.eps)
        else:
            pixels = module(pixels)  # an activation
    return pixels


def _double(convolution: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """Return (N, 4L, C') of (N, L, C): a 2x2 transposed convolution of stride 2 per position."""
    weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)  # 4C' x C
    bias = cast(Tensor, convolution.bias).repeat(4)
    return functional.linear(x, weight, bias).view(len(x), -1, convolution.out_channels)


def _flatten(grid: Tensor) -> Tensor:
    """Return (N, L, C) of (N, C, h, w)."""
    return grid.flatten(2).mT.contiguous()


def _heads(attention: Attention, x: Tensor) -> Tensor:
    """Return (N, h, T, d) of (N, T, h * d)."""
    return x.view(*x.shape[:2], attention.num_heads, -1).transpose(1, 2)


def _scaled_heads(attention: Attention, x: Tensor) -> Tensor:
    """Return the heads divided by the root of their dimension."""
    heads = _heads(attention, x)
    return heads / math.sqrt(heads.shape[-1])


def _by_head(attention: Attention, weight: Tensor) -> Tensor:
    """Return (h, d, C) of (h * d, C)."""
    return weight.reshape(attention.num_heads, -1, weight.shape[-1])


def _point_tokens(encoder: PromptEncoder, points: Tensor, labels: Tensor) -> Tensor:
    """Return (N, K, C) of points (N, K, 2) and labels (N, K, 1)."""
    background, foreground = _kinds(encoder)[:2]
    kinds = torch.where(labels == FOREGROUND, foreground, background)  # N x K x C
    tokens = _positions(encoder, points) + kinds
    return torch.where(labels == PADDING, encoder.not_a_point_embed.weight, tokens)


def _corner_tokens(encoder: PromptEncoder, corners: Tensor) -> Tensor:
    """Return (N, 2, C) of the first and the last corner, (N, 2, 2)."""
    kinds = torch.cat(_kinds(encoder)[2:])  # 2 x C
    return _positions(encoder, corners) + kinds


def _kinds(encoder: PromptEncoder) -> list[Tensor]:
    """Return (1, C) each: of a background and a foreground point, a first and a last corner."""
    return [cast(nn.Embedding, kind).weight for kind in encoder.point_embeddings]


def _positions(encoder: PromptEncoder, xy: Tensor) -> Tensor:
    """Return (N, K, C) of the middles of the pixels at (N, K, 2)."""
    positions: Tensor = encoder.pe_layer.forward_with_coords(xy + 0.5, encoder.input_image_size)
    return positions
